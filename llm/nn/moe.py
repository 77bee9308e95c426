"""Mixture of experts: many feed-forward layers, of which each token visits a few.

A router scores all E experts for a token, the K best of them work on it, and their answers are mixed by the scores.
So a model has the weights of E experts and pays for K. Tokens are sorted by expert and each expert works on its
share at once; no token is ever dropped. What the router did comes back as a result, since the losses that keep the
experts equally busy (`llm/losses.py`) and the measures of their health are computed from it.

Papers: Shazeer et al. 2017, arXiv:1701.06538; Fedus et al. 2021, arXiv:2101.03961; shared expert: Dai et al. 2024,
arXiv:2401.06066. Read before: `mlp.py`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.nn.mlp import SwiGLU


class Routing(NamedTuple):
    """Where a layer sent its tokens."""

    logits: Tensor    # (B, T, E) float32, the router's scores
    experts: Tensor   # (B, T, K) int64, the chosen ones, best first


class RouterReport(NamedTuple):
    """Sums over the supervised tokens, without gradient. L is the number of layers."""

    load: Tensor      # (L, E) float32, how often each expert was chosen
    entropy: Tensor   # (L,) float32 nats; ln E a token where a router is undecided, 0 where it is sure
    tokens: Tensor    # scalar float32, how many tokens were counted

    @property
    def dead(self) -> Tensor:
        """(L,) int64, experts that no token chose."""
        return (self.load == 0).sum(-1)

    @property
    def peak(self) -> Tensor:
        """(L,) float32, the load of the busiest expert over the mean: 1 is balance, E / K collapse."""
        return self.load.amax(-1) / self.load.mean(-1).clamp(min=1e-9)


class Experts(nn.Module):
    """E SwiGLU layers in three stacked parameters.

    Args:
        num_experts: E.
        dim: C, width in and out.
        mlp_dim: width inside one expert.
    """

    def __init__(self, *, num_experts: int, dim: int, mlp_dim: int):
        super().__init__()
        self.gate_proj = nn.Parameter(torch.zeros(num_experts, mlp_dim, dim))
        self.up_proj = nn.Parameter(torch.zeros(num_experts, mlp_dim, dim))
        self.down_proj = nn.Parameter(torch.zeros(num_experts, dim, mlp_dim))

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """Let each expert work on its rows.

        Args:
            x: (N, C), the rows of expert 0 first, then those of expert 1, ...
            counts: how many rows each expert has; they add up to N. 0 is fine, and still gives its weights a
                gradient of zeros, without which data-parallel training would wait for ever.

        Returns:
            (N, C).
        """
        # in low precision, sizes that differ at every step make CPU kernels build and keep a new program each time
        step = 32 if x.device.type == "cpu" and x.dtype != torch.float32 else 1
        results = []
        # unbind, not indexing: the gradient of each x[e] would be a tensor of the size of all experts
        for rows, gate, up, down in zip(x.split(counts), self.gate_proj.unbind(), self.up_proj.unbind(),
                                        self.down_proj.unbind(), strict=True):
            if not len(rows) and not torch.is_grad_enabled():
                continue   # of many experts one more token visits few
            padded = F.pad(rows, (0, 0, 0, -len(rows) % step)) if step > 1 else rows   # (n, C)
            inner = F.silu(F.linear(padded, gate)) * F.linear(padded, up)
            results.append(F.linear(inner, down)[: len(rows)])
        return torch.cat(results)


class MoE(nn.Module):
    """Router, experts, and optionally one shared expert that every token visits.

    Args:
        dim: C, width in and out.
        num_experts: E.
        experts_per_token: K, at most E.
        mlp_dim: width inside one expert.
        norm_topk_prob: let the K weights of a token add up to 1 (Qwen3); otherwise they are the softmax over all E.
        shared_dim: width inside the shared expert, whose answer is weighed by a sigmoid gate (Qwen2-MoE); None: none.

    Raises:
        ValueError: if experts_per_token is not between 1 and num_experts.

    Example:
        >>> moe = MoE(dim=8, num_experts=4, experts_per_token=2, mlp_dim=16)
        >>> y, routing = moe(torch.randn(2, 3, 8))
        >>> y.shape, routing.experts.shape
        (torch.Size([2, 3, 8]), torch.Size([2, 3, 2]))
    """

    def __init__(
        self,
        *,
        dim: int,
        num_experts: int,
        experts_per_token: int,
        mlp_dim: int,
        norm_topk_prob: bool = True,
        shared_dim: int | None = None,
    ):
        super().__init__()
        if not 1 <= experts_per_token <= num_experts:
            raise ValueError(f"experts_per_token={experts_per_token} must lie between 1 and num_experts={num_experts}")
        self.experts_per_token = experts_per_token
        self.norm_topk_prob = norm_topk_prob
        self.router = nn.Linear(dim, num_experts, bias=False)
        self.experts = Experts(num_experts=num_experts, dim=dim, mlp_dim=mlp_dim)
        self.shared = SwiGLU(dim=dim, mlp_dim=shared_dim) if shared_dim is not None else None
        self.shared_gate = nn.Linear(dim, 1, bias=False) if shared_dim is not None else None

    def route(self, x: Tensor, selection_bias: Tensor | None = None) -> tuple[Routing, Tensor]:
        """Choose experts.

        Args:
            x: (B, T, C).
            selection_bias: (E,) added to the probabilities for the choice, not for the weights.

        Returns:
            The routing, and (B, T, K) float32 weights.
        """
        with torch.autocast(x.device.type, enabled=False):   # bf16 could not tell close scores apart
            logits = F.linear(x.float(), self.router.weight.float())   # (B, T, E)
        probabilities = logits.softmax(dim=-1)
        scores = probabilities if selection_bias is None else probabilities + selection_bias
        experts = scores.topk(self.experts_per_token, dim=-1).indices   # (B, T, K)
        weights = probabilities.gather(-1, experts)
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(logits, experts), weights

    def forward(self, x: Tensor, selection_bias: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Send each token to its experts and mix their answers.

        Args:
            x: (B, T, C).
            selection_bias: (E,) float32, see `balanced_bias`; default none.

        Returns:
            (B, T, C), and what the router did.
        """
        routing, weights = self.route(x, selection_bias)
        flat = x.flatten(0, 1)   # (N, C)
        order = routing.experts.flatten().argsort(stable=True)   # (N K,), by expert
        tokens = order // self.experts_per_token
        counts = self.group_sizes(routing.experts)
        answers = self.experts(flat.index_select(0, tokens), counts)   # (N K, C)
        answers = answers * weights.flatten()[order, None]   # float32, as the sum
        mixed = torch.zeros(flat.shape, dtype=answers.dtype, device=x.device).index_add(0, tokens, answers)   # (N, C)
        mixed = mixed.view(x.shape)
        if self.shared is not None and self.shared_gate is not None:
            mixed = mixed + self.shared_gate(x).sigmoid() * self.shared(x)
        return mixed.to(x.dtype), routing

    def group_sizes(self, experts: Tensor) -> list[int]:
        """How many tokens each expert gets; the one place where numbers leave the device."""
        return experts.flatten().bincount(minlength=self.router.out_features).tolist()


def balanced_bias(bias: Tensor, load: Tensor, *, rate: float) -> Tensor:
    """The selection bias for the next step: up for experts with less than their share, down for those with more.

    Balancing without a loss, hence without its gradient in the way of the task's. The bias belongs to the training
    loop, which passes it into `MoE.forward` and gets the load back. Configurations do not have it, since no class of
    transformers with these weights would choose the same experts.

    Args:
        bias: (E,) float32; zeros at the start.
        load: (E,) how many tokens each expert got in the whole step.
        rate: size of the change, > 0; 0.001 in the paper, more in short runs.

    Returns:
        (E,) float32, a new tensor.

    Paper: Wang et al. 2024, arXiv:2408.15664, algorithm 1.

    Example:
        >>> balanced_bias(torch.zeros(3), torch.tensor([8, 0, 4]), rate=0.1)
        tensor([-0.1000,  0.1000,  0.0000])
    """
    load = load.float()
    return bias + rate * (load.mean() - load).sign()
