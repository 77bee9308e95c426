"""LayerNorm (GPT) and RMSNorm (Qwen, Llama): keep the residual stream at a scale the next layer expects.

Both normalise each token's vector on its own, so they never mix positions. Next: `rope.py`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def compute_dtype(x: Tensor) -> torch.dtype:
    """What the matrix products behind a norm compute in: autocast's dtype, without autocast that of x.

    Casting here, once, saves each of the projections that read the same normed vectors a cast of its own.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class LayerNorm(nn.Module):
    """Centre each vector, scale it to unit variance, then apply a learned gain and bias.

    y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

    Args:
        dim: width of the vectors, C.
        eps: added to the variance, > 0; GPT-2 uses 1e-5.

    Paper: Ba et al. 2016, arXiv:1607.06450, eq. 4.

    Example:
        >>> LayerNorm(4)(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().abs() < 1e-5
        tensor(True)
    """

    def __init__(self, dim: int, *, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps).to(compute_dtype(x))


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square, then apply a learned gain; no centring, no bias.

    y = x / sqrt(mean(x^2) + eps) * weight

    Args:
        dim: width of the vectors, C (or D for the norms on queries and keys).
        eps: added to the mean square, > 0; Qwen uses 1e-6.

    Paper: Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4.

    Example:
        >>> RMSNorm(2, eps=1e-6)(torch.tensor([3.0, 4.0])).square().mean()
        tensor(1.0000, grad_fn=<MeanBackward0>)
    """

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():   # without a gradient torch's own is as fast, and for few tokens three times
            wide = x.to(self.weight.dtype)   # under autocast
            return F.rms_norm(wide, self.weight.shape, self.weight, self.eps).to(compute_dtype(x))
        return _RMSNorm.apply(x, self.weight, self.eps, compute_dtype(x))


class _RMSNorm(torch.autograd.Function):
    """The formula with its gradient worked out: three times as fast on a CPU as what autograd makes of its parts.

    With n = x / rms(x), the gradient g of y = n * weight gives d weight = sum of g * n over all vectors, and
    d x = (g * weight - n * mean(g * weight * n)) / rms(x): the part of the gradient along x itself is taken out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()   # a bf16 mean over thousands of squares would keep only two digits
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()   # 1 / rms, (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight, scale = ctx.saved_tensors
        normed, grad = x * scale, grad.float()
        along = grad * normed
        grad_weight = along.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        share = (along @ weight.float())[..., None].div_(x.shape[-1])   # mean of grad * weight * normed
        grad_x = (grad * weight).addcmul_(normed, share, value=-1.0).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None, None
