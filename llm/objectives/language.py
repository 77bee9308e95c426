"""Predict the next token: pretraining, and on masked data also instruction tuning."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llm.losses import IGNORE_INDEX
from llm.objectives.base import Result
from llm.objectives.routers import Metrics, router_terms


class NextToken:
    """-log p(next token), summed over the supervised tokens.

    Args:
        byte_counts: how many bytes of text each id stands for (`Tokenizer.byte_counts`); with them the metrics
            carry `bits_per_byte`, which compares models across tokenizers.
        balance: weight of the loss that keeps experts equally busy, per supervised token; its value is `balance` in
            the metrics, 1 at best. Like dropout it acts in training mode only, so that validation losses compare.
        router_z: weight of the loss that keeps the routers' scores small, the same way.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=4, num_layers=1, num_heads=1, dim=8))
        >>> batch = {"input_ids": torch.tensor([[0, 1]]), "targets": torch.tensor([[1, IGNORE_INDEX]])}
        >>> objective = NextToken()
        >>> objective.weight(batch), objective(model, batch).loss_sum.shape
        (1.0, torch.Size([]))
    """

    def __init__(self, byte_counts: Sequence[int] | None = None, *, balance: float = 0.01, router_z: float = 0.0):
        self.balance = balance
        self.router_z = router_z
        # one slot more: IGNORE_INDEX is moved onto it, and it holds no bytes
        self.byte_counts = None if byte_counts is None else torch.tensor([*byte_counts, 0])

    def weight(self, batch: dict[str, Tensor]) -> float:
        return float((batch["targets"] != IGNORE_INDEX).sum())

    def __call__(self, model: nn.Module, batch: dict[str, Tensor]) -> Result:
        extra = {key: batch[key] for key in ("positions", "segment_ids") if key in batch}
        output = model(batch["input_ids"], targets=batch["targets"], **extra)
        metrics: Metrics = {}
        if self.byte_counts is not None:
            table = self.byte_counts.to(batch["targets"].device)
            num_bytes = float(table[batch["targets"].clamp(min=-1)].sum())   # index -1 is the last slot
            metrics["bits_per_byte"] = output.loss_sum.detach() / math.log(2), num_bytes
        added, health = router_terms(output, balance=self.balance, router_z=self.router_z, is_training=model.training)
        return Result(output.loss_sum + added, metrics | health)
