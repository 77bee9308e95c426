"""Rotary position embedding: turn each query and key by an angle that grows with its position.

The dot product of two turned vectors depends only on the distance between them, which is how attention learns
"three tokens ago" without learned positions. The layout is that of Hugging Face and Qwen: coordinate i is paired
with coordinate i + D/2 ("half-split"), not with its neighbour.

A model trained on short texts meets angles beyond its experience on long ones. Four ways to bend the frequencies so
that it copes stand here too, each one function; they are data of published models, not tricks to try blindly.
Next: `attention.py`.

Paper: Su et al. 2021, arXiv:2104.09864, eq. 34.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def rope_frequencies(positions: Tensor, *, head_dim: int, theta: float) -> tuple[Tensor, float]:
    """The plain frequencies: pair i turns by theta^(-2i/D) a position.

    The first pairs turn fast and tell near distances apart, the last turn slowly and tell far ones.

    Args:
        positions: only its device is read.
        head_dim: D, even.
        theta: base of the wavelengths, > 0; 10,000 in the paper, 1,000,000 in Qwen3.

    Returns:
        (D/2,) float32 radians per position, and 1.0: the factor on cosine and sine, for the others' sake.
    """
    return 1.0 / theta ** _exponents(positions, head_dim), 1.0


def _exponents(positions: Tensor, head_dim: int) -> Tensor:
    """2i/D for each pair i, (D/2,) float32."""
    return torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim


def linear_frequencies(positions: Tensor, *, head_dim: int, theta: float, factor: float) -> tuple[Tensor, float]:
    """Position interpolation: everything turns `factor` times slower, as if the text were that much shorter.

    Paper: Chen et al. 2023, arXiv:2306.15595, eq. 4.
    """
    frequencies, scale = rope_frequencies(positions, head_dim=head_dim, theta=theta)
    return frequencies / factor, scale


def dynamic_frequencies(
    positions: Tensor, *, head_dim: int, theta: float, factor: float, trained_context: int
) -> tuple[Tensor, float]:
    """Dynamic NTK: a larger theta, the larger the longer the text; up to `trained_context` nothing changes.

    The length is that of each row, its last position + 1, so that rows of a batch do not disturb each other. Keys in
    a cache keep the angles of the length at which they were read, as in transformers.

    Paper: Peng et al. 2023, arXiv:2309.00071, section 3.3 and eq. 16.
    """
    lengths = positions.amax(dim=-1).clamp(min=trained_context - 1) + 1   # (B or 1,)
    stretch = factor * lengths.float() / trained_context - (factor - 1)
    bases = theta * stretch ** (head_dim / (head_dim - 2))
    return 1.0 / bases[:, None, None, None] ** _exponents(positions, head_dim), 1.0   # (B or 1, 1, 1, D/2)


def yarn_frequencies(
    positions: Tensor,
    *,
    head_dim: int,
    theta: float,
    factor: float,
    trained_context: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    truncate: bool = True,
) -> tuple[Tensor, float]:
    """YaRN: pairs that turn often within the trained context stay, pairs that turn less than once are interpolated.

    Args:
        positions, head_dim, theta: as in `rope_frequencies`.
        factor: how many times longer the texts are than `trained_context`.
        trained_context: tokens of the longest text in the original training.
        beta_fast: pairs with at least so many turns within it stay as they are.
        beta_slow: pairs with at most so many turn `factor` times slower; those between are blended.
        attention_factor: multiplies cosine and sine, and so sharpens attention; default 0.1 ln(factor) + 1.
        truncate: round the two boundaries outwards to whole pairs, as the paper's code does.

    Paper: Peng et al. 2023, arXiv:2309.00071, eq. 20 to 23.
    """
    def pair_with(turns: float) -> float:
        """The pair, as a fraction, that turns so often within the trained context."""
        return head_dim * math.log(trained_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(beta_fast), pair_with(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001   # both boundaries on one pair: a step
    pairs = torch.arange(head_dim // 2, device=positions.device, dtype=torch.float32)
    stays = 1 - ((pairs - low) / width).clamp(0, 1)   # (D/2,), 0: interpolated
    if attention_factor is None:
        attention_factor = 0.1 * math.log(factor) + 1.0
    slowness = theta ** _exponents(positions, head_dim)
    return 1.0 / (factor * slowness) * (1 - stays) + 1.0 / slowness * stays, attention_factor


def llama3_frequencies(
    positions: Tensor,
    *,
    head_dim: int,
    theta: float,
    factor: float,
    trained_context: int,
    low_freq_factor: float = 1.0,
    high_freq_factor: float = 4.0,
) -> tuple[Tensor, float]:
    """Llama 3.1: as YaRN, with the blend linear in the number of turns, and no factor on attention.

    Args:
        positions, head_dim, theta: as in `rope_frequencies`.
        factor: how much slower the slowest pairs turn.
        trained_context: tokens of the longest text before the extension.
        low_freq_factor: pairs with at most so many turns within it turn `factor` times slower.
        high_freq_factor: pairs with at least so many stay; must be larger.

    Paper: Llama team 2024, arXiv:2407.21783, section 3.4.2 names the extension; the formula is that of their code.
    """
    frequencies, scale = rope_frequencies(positions, head_dim=head_dim, theta=theta)
    turns = trained_context / (2 * math.pi / frequencies)
    stays = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0, 1)   # (D/2,)
    return (1 - stays) * frequencies / factor + stays * frequencies, scale


SCALINGS: dict[str, Callable[..., tuple[Tensor, float]]] = {
    "none": rope_frequencies,
    "linear": linear_frequencies,
    "dynamic": dynamic_frequencies,
    "yarn": yarn_frequencies,
    "llama3": llama3_frequencies,
}


def rope_tables(
    positions: Tensor, *, head_dim: int, theta: float, scaling: str = "none", **numbers: float | None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle that `apply_rope` needs.

    Args:
        positions: (B or 1, T) int64, absolute positions >= 0.
        head_dim: D, even.
        theta: base of the wavelengths, > 0.
        scaling: how frequencies are bent for long texts: "none", "linear", "dynamic", "yarn" or "llama3".
        numbers: what the function of that scaling takes, such as factor and trained_context.

    Returns:
        cos and sin, each (B or 1, 1, T, D) float32, ready to broadcast over heads and to be multiplied with: both
        halves of D hold the D/2 pairs, sin with its sign turned in the first.

    Example:
        >>> cos, sin = rope_tables(torch.arange(3)[None], head_dim=4, theta=10_000.0)
        >>> cos.shape, float(sin[0, 0, 0].sum())
        (torch.Size([1, 1, 3, 4]), 0.0)
        >>> slower, _ = rope_tables(torch.arange(3)[None] * 2, head_dim=4, theta=10_000.0, scaling="linear", factor=2)
        >>> torch.equal(slower, cos)
        True
    """
    frequencies, scale = SCALINGS[scaling](positions, head_dim=head_dim, theta=theta, **numbers)
    angles = positions[:, None, :, None].float() * frequencies   # (B or 1, 1, T, D/2)
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its angle.

    Args:
        x: (B, H, T, D) queries or keys, any float dtype.
        cos, sin: (B or 1, 1, T, D), from `rope_tables`; cast to the dtype of x if need be.

    Returns:
        (B, H, T, D) in the dtype of x; lengths are unchanged, position 0 is unchanged.

    Example:
        >>> cos, sin = rope_tables(torch.tensor([[0, 7]]), head_dim=4, theta=10_000.0)
        >>> x = torch.ones(1, 1, 2, 4)
        >>> torch.allclose(apply_rope(x, cos, sin).norm(dim=-1), x.norm(dim=-1))
        True
    """
    partners = x.roll(x.shape[-1] // 2, dims=-1)   # x[i + D/2] beside x[i], and the other way round
    return x * cos.to(x.dtype) + partners * sin.to(x.dtype)
