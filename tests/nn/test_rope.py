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


PLAIN = {"head_dim": 16, "theta": 10_000.0}
KINDS = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0, "trained_context": 64},
    "yarn": {"factor": 4.0, "trained_context": 64},
    "llama3": {"factor": 4.0, "trained_context": 64},
}


def angles(positions: torch.Tensor, **settings: object) -> torch.Tensor:
    cos, sin = rope_tables(positions, **settings)   # type: ignore[arg-type]
    half = cos.shape[-1] // 2
    return torch.atan2(sin[..., half:], cos[..., half:])   # whatever factor is on both


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_of_one_scales_nothing(kind: str) -> None:
    positions = torch.arange(60)[None]
    for scaled, plain in zip(rope_tables(positions, **PLAIN, scaling=kind, **{**KINDS[kind], "factor": 1.0}),
                             rope_tables(positions, **PLAIN), strict=True):
        assert torch.allclose(scaled, plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_fast_pairs_stay_and_slow_pairs_turn_slower_by_the_factor(kind: str) -> None:
    """Within 64 tokens pair 0 turns 10 times (yarn keeps it from 32 turns on), the last pair not once."""
    one = torch.tensor([[1]])
    numbers = {**KINDS[kind], **({"beta_fast": 9.0} if kind == "yarn" else {})}
    ratio = (angles(one, **PLAIN) / angles(one, **PLAIN, scaling=kind, **numbers)).flatten()
    assert float(ratio[0]) == pytest.approx(1.0)
    assert ratio[-3:].tolist() == pytest.approx([4.0] * 3, rel=1e-5)
    assert (ratio.diff() > -1e-5).all()


def test_linear_scaling_is_a_shorter_text() -> None:
    far, near = torch.arange(0, 240, 4)[None], torch.arange(60)[None]
    assert torch.equal(rope_tables(far, **PLAIN, scaling="linear", factor=4.0)[0], rope_tables(near, **PLAIN)[0])


def test_dynamic_scaling_begins_past_the_trained_context_and_knows_each_row() -> None:
    short, long = torch.arange(64)[None], torch.arange(100, 164)[None]
    settings = {**PLAIN, "scaling": "dynamic", **KINDS["dynamic"]}
    assert torch.allclose(rope_tables(short, **settings)[0], rope_tables(short, **PLAIN)[0], atol=1e-6)
    assert not torch.allclose(rope_tables(long, **settings)[0], rope_tables(long, **PLAIN)[0], atol=1e-2)
    together = rope_tables(torch.cat([short, long]), **settings)[0]
    assert torch.equal(together[1:], rope_tables(long, **settings)[0])
    assert torch.equal(together[:1], rope_tables(short, **settings)[0])


def test_yarn_sharpens_attention_and_the_others_leave_lengths_alone() -> None:
    for kind, numbers in KINDS.items():
        cos, sin = rope_tables(torch.arange(9)[None], **PLAIN, scaling=kind, **numbers)
        expected = 0.1 * math.log(4.0) + 1 if kind == "yarn" else 1.0
        assert torch.allclose((cos.square() + sin.square()).sqrt(), torch.tensor(expected)), kind
    cos, _ = rope_tables(torch.zeros(1, 1), **PLAIN, scaling="yarn", **KINDS["yarn"], attention_factor=0.5)
    assert (cos == 0.5).all()
