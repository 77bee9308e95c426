"""Laws of rotary embedding."""

import math

import pytest
import torch

from llm.nn import apply_rope, rope_tables


def turned(vector: torch.Tensor, position: int, theta: float = 100.0) -> torch.Tensor:
    cos, sin = rope_tables(torch.tensor([[position]]), head_dim=vector.numel(), theta=theta)
    return apply_rope(vector.view(1, 1, 1, -1), cos, sin).flatten()


def test_a_dot_product_depends_only_on_the_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(8, generator=generator), torch.randn(8, generator=generator)
    for distance in (0, 1, 5):
        products = [turned(q, start + distance) @ turned(k, start) for start in (0, 3, 50)]
        assert torch.allclose(torch.stack(products), products[0].expand(3), atol=1e-5)
    assert not torch.isclose(turned(q, 1) @ k, turned(q, 2) @ k)


def test_each_pair_turns_by_position_over_its_wavelength() -> None:
    """Worked by hand for D = 4, theta = 100: frequencies 1 and 1/10; coordinates 0, 2 and 1, 3 are the pairs."""
    result = turned(torch.tensor([1.0, 1.0, 0.0, 0.0]), 3)
    expected = [math.cos(3), math.cos(0.3), math.sin(3), math.sin(0.3)]
    assert result.tolist() == pytest.approx(expected, abs=1e-6)


def test_position_zero_changes_nothing_and_lengths_stay() -> None:
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(turned(vector, 0), vector)
    assert torch.isclose(turned(vector, 777).norm(), vector.norm())


def test_time_is_the_axis_that_turns() -> None:
    """Heads at the same position turn alike, neighbours in time do not."""
    x = torch.ones(1, 3, 4, 8)   # (B, H, T, D)
    out = apply_rope(x, *rope_tables(torch.arange(4)[None], head_dim=8, theta=100.0))
    assert torch.equal(out[:, 0], out[:, 2])
    assert not torch.equal(out[:, :, 0], out[:, :, 1])


def test_bf16_comes_back_as_bf16() -> None:
    tables = rope_tables(torch.arange(4)[None], head_dim=8, theta=100.0)
    assert apply_rope(torch.ones(1, 3, 4, 8, dtype=torch.bfloat16), *tables).dtype == torch.bfloat16
