"""Rotary position embedding: turn each query and key by an angle that grows with its position.

The dot product of two turned vectors depends only on the distance between them, which is how attention learns
"three tokens ago" without learned positions. The layout is that of Hugging Face and Qwen: coordinate i is paired
with coordinate i + D/2 ("half-split"), not with its neighbour. Next: `attention.py`.

Paper: Su et al. 2021, arXiv:2104.09864, eq. 34.
"""

import torch
from torch import Tensor


def rope_tables(positions: Tensor, *, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle that `apply_rope` needs.

    Pair i turns by position * theta^(-2i/D): the first pairs turn fast and tell near distances apart, the last
    turn slowly and tell far ones.

    Args:
        positions: (B or 1, T) int64, absolute positions >= 0.
        head_dim: D, even.
        theta: base of the wavelengths, > 0; 10,000 in the paper, 1,000,000 in Qwen3.

    Returns:
        cos and sin, each (B or 1, 1, T, D/2) float32, ready to broadcast over heads.

    Example:
        >>> cos, sin = rope_tables(torch.arange(3)[None], head_dim=4, theta=10_000.0)
        >>> cos.shape, float(sin[0, 0, 0].sum())
        (torch.Size([1, 1, 3, 2]), 0.0)
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    angles = positions[:, None, :, None].float() * frequencies   # (B or 1, 1, T, D/2)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle.

    Args:
        x: (B, H, T, D) queries or keys, any float dtype.
        cos, sin: (B or 1, 1, T, D/2) float32, from `rope_tables`.

    Returns:
        (B, H, T, D) in the dtype of x; lengths are unchanged, position 0 is unchanged.

    Example:
        >>> cos, sin = rope_tables(torch.tensor([[0, 7]]), head_dim=4, theta=10_000.0)
        >>> x = torch.ones(1, 1, 2, 4)
        >>> torch.allclose(apply_rope(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
        True
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
