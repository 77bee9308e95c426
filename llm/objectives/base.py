"""The contract between a loss and the Trainer: say how much a batch weighs, and return sums.

Because both are sums, the Trainer can add up any number of micro-batches and processes and divide once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Result(NamedTuple):
    """What an objective found on one micro-batch."""

    loss_sum: Tensor                            # scalar, connected to the parameters
    metrics: Mapping[str, tuple[Tensor | float, float]] = {}   # name to (sum, count): shown as sum / count


class Objective(Protocol):
    """Anything with these two methods trains in our Trainer."""

    def weight(self, batch: Any) -> float:
        """How many tokens, examples or pairs the batch supervises; known without a forward."""

    def __call__(self, model: nn.Module, batch: Any) -> Result:
        """The summed loss of the batch under the model."""
