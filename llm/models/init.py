"""Every initial value in one table.

| parameter                          | initial value                                    |
| ---------------------------------- | ------------------------------------------------ |
| token and position embeddings      | normal, std 0.02                                 |
| head (untied)                      | normal, std 0.02                                 |
| q, k, v, gate and up projections   | normal, std 0.02                                 |
| attention out, feed-forward down   | normal, std 0.02 / sqrt(2 x layers)              |
| norm gains                         | 1                                                |
| all biases                         | 0                                                |

The projections that write into the residual stream start smaller, so that its variance does not grow with depth
(Radford et al. 2019, section 2.3).
"""

import re
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from llm.models.decoder import Decoder

STD = 0.02

# (what the parameter's name matches, std of its normal distribution, whether it writes into the residual stream)
TABLE: list[tuple[str, float, bool]] = [
    (r"embed(_positions)?\.weight", STD, False),
    (r"head\.weight", STD, False),
    (r".*\.(q|k|v|gate|up)_proj\.weight", STD, False),
    (r".*\.(out|down)_proj\.weight", STD, True),
]


def init_weights(model: "Decoder", generator: torch.Generator | None = None) -> None:
    """Give every parameter its initial value by its name, in place.

    Args:
        model: a decoder.
        generator: source of the random numbers; default torch's global one.

    Raises:
        ValueError: for a parameter that the table does not know.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            std = initial_std(name, num_layers=model.config.num_layers)
            nn.init.normal_(parameter, std=std, generator=generator)


def initial_std(name: str, *, num_layers: int) -> float:
    """The standard deviation that the table gives to a matrix.

    Example:
        >>> initial_std("blocks.0.mlp.down_proj.weight", num_layers=2)
        0.01
    """
    for pattern, std, is_residual in TABLE:
        if re.fullmatch(pattern, name):
            return std / (2 * num_layers) ** 0.5 if is_residual else std
    raise ValueError(f"no initial value for parameter {name!r}; add it to the table in llm/models/init.py")
