"""Laws of attention on its own: both implementations agree wherever a mask is involved."""

import pytest
import torch

from llm.nn import Attention, AttentionPlan, attention, fused_attention, naive_attention, plan_attention


def heads(num_queries: int, num_keys: int, *, batch: int = 2, groups: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, 4, num_queries, 8, generator=generator)
    k, v = (torch.randn(batch, groups, num_keys, 8, generator=generator) for _ in range(2))
    return q, k, v


PLANS: dict[str, tuple[int, AttentionPlan]] = {
    "whole text": (6, plan_attention(6)),
    "one more token": (1, plan_attention(1, cached=5)),
    "a chunk behind a cache": (3, plan_attention(3, cached=3)),
    "rows at different places": (1, plan_attention(1, cached=5, slots=torch.tensor([[5], [2]]))),
    "ragged chunk": (2, plan_attention(2, cached=4, slots=torch.tensor([[4, 5], [1, 2]]))),
    "packed": (6, plan_attention(6, segment_ids=torch.tensor([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 1]]))),
    "window": (6, plan_attention(6, window=3)),
    "window of one": (6, plan_attention(6, window=1)),
    "window as long as the text": (6, plan_attention(6, window=6)),
    "window, one more token": (1, plan_attention(1, cached=5, window=3)),
    "window, a chunk behind a cache": (3, plan_attention(3, cached=3, window=2)),
    "window, rows at different places": (1, plan_attention(1, cached=5, slots=torch.tensor([[5], [2]]), window=2)),
    "window, packed": (6, plan_attention(6, segment_ids=torch.tensor([[0, 0, 0, 0, 1, 1]]), window=2)),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_naive_and_fused_agree_on_every_kind_of_plan(name: str, groups: int) -> None:
    num_queries, plan = PLANS[name]
    q, k, v = heads(num_queries, plan.num_keys - plan.first_key, groups=groups)
    assert torch.allclose(naive_attention(q, k, v, plan), fused_attention(q, k, v, plan), atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_learning_from_short_texts_both_agree_with_their_gradients(
    groups: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where torch's kernel is slow the matrix is written out; one token more and it is the kernel again."""
    monkeypatch.setattr(attention, "SHORT", {torch.float32: 6, torch.bfloat16: 6})
    calls = []
    short = attention._short_attention
    monkeypatch.setattr(attention, "_short_attention", lambda *heads: calls.append(1) or short(*heads))
    for length, count in ((6, 1), (7, 0)):
        calls.clear()
        found = []
        for attend, kind in ((naive_attention, torch.float32), (fused_attention, dtype)):
            leaves = [tensor.to(dtype).to(kind).requires_grad_() for tensor in heads(length, length, groups=groups)]
            mixed = attend(*leaves, plan_attention(length))
            gradients = torch.autograd.grad(mixed, leaves, torch.ones_like(mixed) + mixed.detach())
            found.append([mixed.detach(), *gradients])
        assert len(calls) == count
        for exact, tensor in zip(*found, strict=True):
            assert tensor.dtype == dtype
            error = (tensor.float() - exact).norm() / exact.norm()
            assert error < (1e-6 if dtype == torch.float32 else 1e-2)
    nothing = [tensor[:0].requires_grad_() for tensor in heads(6, 6, groups=groups)]
    assert fused_attention(*nothing, plan_attention(6)).shape == (0, 4, 6, 8)
    calls.clear()
    with torch.no_grad():
        fused_attention(*(tensor.to(dtype) for tensor in heads(6, 6)), plan_attention(6))
    assert not calls


@pytest.mark.parametrize("attend", [naive_attention, fused_attention])
@pytest.mark.parametrize("name", PLANS)
def test_keys_that_a_plan_hides_have_no_influence(attend: object, name: str) -> None:
    """Counted from the definition: a query sees slots up to its own, in its own segment and window."""
    num_queries, plan = PLANS[name]
    q, k, v = heads(num_queries, plan.num_keys)
    k, read = k[:, :, plan.first_key :], slice(plan.first_key, None)
    slots = plan.slots.expand(2, -1)
    before = attend(q, k, v[:, :, read], plan)
    for key in range(plan.num_keys):
        other = v.clone()
        other[:, :, key] += 1
        changed = (attend(q, k, other[:, :, read], plan) != before).any(dim=-1).any(dim=1)   # (B, T)
        for row in range(2):
            for query in range(num_queries):
                is_seen = key <= int(slots[row, query])
                if plan.segment_ids is not None:
                    segments = plan.segment_ids.expand(2, -1)
                    is_seen &= bool(segments[row, key] == segments[row, query])
                if plan.window is not None:
                    is_seen &= int(slots[row, query]) - key < plan.window
                assert bool(changed[row, query]) == is_seen, (row, query, key)


@pytest.mark.parametrize("attend", [naive_attention, fused_attention])
def test_equal_keys_give_the_mean_of_the_values_so_far(attend: object) -> None:
    """Worked by hand: with equal scores, token t averages the values 0 .. t."""
    v = torch.tensor([[3.0], [5.0], [10.0]])[None, None]
    q = k = torch.zeros(1, 1, 3, 1)
    assert attend(q, k, v, plan_attention(3)).flatten().tolist() == pytest.approx([3.0, 4.0, 6.0])


def test_grouped_heads_equal_full_heads_with_repeated_keys() -> None:
    q, k, v = heads(5, 5, groups=2)
    plan = plan_attention(5)
    repeated = fused_attention(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1), plan)
    assert torch.allclose(fused_attention(q, k, v, plan), repeated, atol=1e-6)


def test_a_row_without_anything_to_see_does_not_exist() -> None:
    """Every query sees at least itself, so no softmax is over nothing."""
    for num_queries, plan in PLANS.values():
        q, k, v = heads(num_queries, plan.num_keys - plan.first_key)
        assert torch.isfinite(naive_attention(q, k, v, plan)).all()


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads=6 does not divide dim=64"):
        Attention(dim=64, num_heads=6)
    with pytest.raises(ValueError, match="num_kv_heads=3 does not divide num_heads=4"):
        Attention(dim=64, num_heads=4, num_kv_heads=3)
    with pytest.raises(ValueError, match="only for training"):
        plan_attention(2, cached=1, segment_ids=torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        plan_attention(2, window=0)


def test_a_mask_is_made_only_where_the_kernel_needs_one() -> None:
    for plan in (plan_attention(6), plan_attention(6, window=6), plan_attention(1, cached=5, window=6)):
        assert plan.mask is None
    assert plan_attention(7, window=6).mask is not None
