"""Muon: momentum whose direction is made orthogonal, for the matrices inside the blocks.

A gradient matrix is dominated by a few directions; replacing it by the nearest orthogonal matrix makes every direction
count alike. The nearest orthogonal matrix is approximated by five steps of a Newton-Schulz iteration, which needs only
matrix products and bears bf16.

Origin: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; scaled up: Liu et al. 2025, arXiv:2502.16982.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from llm.runtime import has_fast_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)   # chosen so that small singular values grow fastest


def orthogonalize(matrices: Tensor, *, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest matrices with all singular values near 1 (between about 0.7 and 1.2).

    Args:
        matrices: (..., rows, columns), any float dtype; each is treated on its own.
        steps: of the iteration.
        dtype: of the iteration; default bf16 where the hardware multiplies it, else float32, since emulated bf16
            is many times slower.

    Returns:
        The same shape in that dtype.

    Example:
        >>> singular = torch.linalg.svdvals(orthogonalize(torch.diag(torch.tensor([3.0, 2.0, 1.0]))).float())
        >>> bool((singular > 0.6).all() and (singular < 1.3).all())
        True
    """
    a, b, c = COEFFICIENTS
    if dtype is None:
        dtype = torch.bfloat16 if has_fast_bf16(matrices.device.type) else torch.float32
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])   # (n, rows, columns)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT   # the smaller of the two Gram matrices is the cheaper
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)   # a x + (b g + c g g) x
    return (x.mT if is_tall else x).reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized; for parameters of two or more dimensions, the last two being the matrix.

    Args:
        parameters: matrices, or stacks of them (experts).
        lr: learning rate; 0.02 is usual. Tall matrices take sqrt(rows / columns) more.
        momentum: share of the past in the running mean of gradients.
        weight_decay: decoupled, as in AdamW.
        dtype: of the orthogonalization, see `orthogonalize`.

    Raises:
        ValueError: for a parameter with fewer than two dimensions.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2, 2))
        >>> optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
        >>> weight.grad = torch.tensor([[5.0, 0.0], [0.0, 5.0]])
        >>> optimizer.step()
        >>> bool((weight.diagonal() < -0.05).all())
        True
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95,
                 weight_decay: float = 0.1, dtype: torch.dtype | None = None):
        self.dtype = dtype
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() < 2:
                    raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:   # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None, "the Trainer computes the loss"
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)   # one batched iteration for each shape
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                means = torch.stack([self._nesterov(parameter, group["momentum"]) for parameter in parameters])
                directions = orthogonalize(means, dtype=self.dtype)
                rate = group["lr"] * max(1.0, shape[-2] / shape[-1]) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(direction, alpha=rate)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)
