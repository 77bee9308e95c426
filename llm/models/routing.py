"""What the routers of a model did in one forward, over all layers: losses to train with, and measures of health."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm.losses import router_balance_sum, router_z_sum
from llm.nn import RouterReport, Routing


def summarize(routings: Sequence[Routing], is_counted: Tensor) -> dict[str, Any]:
    """The fields that experts add to the output of a model.

    Args:
        routings: one for each layer.
        is_counted: (B, T) bool, the tokens that are learned from; what pads a row is none of them.

    Returns:
        `aux_loss` and `z_loss`, means over the layers of `router_balance_sum` and `router_z_sum`, and `router`.
    """
    balance = torch.stack([router_balance_sum(logits, experts, is_counted) for logits, experts in routings])
    size = torch.stack([router_z_sum(logits, is_counted) for logits, _ in routings])
    return {"aux_loss": balance.mean(), "z_loss": size.mean(), "router": _report(routings, is_counted)}


@torch.no_grad()
def _report(routings: Sequence[Routing], is_counted: Tensor) -> RouterReport:
    logits = torch.stack([routing.logits for routing in routings])   # (L, B, T, E)
    experts = torch.stack([routing.experts for routing in routings]).flatten(1)   # (L, B T K)
    counted = is_counted.float()
    weights = counted[None, :, :, None].expand(*logits.shape[:3], experts.shape[1] // counted.numel()).flatten(1)
    load = torch.zeros(len(logits), logits.shape[-1], device=logits.device).scatter_add(1, experts, weights)
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1) * counted   # (L, B, T)
    return RouterReport(load, entropy.sum((1, 2)), counted.sum())
