"""Laws of the mixture of experts: it is its definition, forgets no token and no expert, and balance is a number."""

import pytest
import torch
import torch.nn.functional as F

from llm.losses import router_balance_sum, router_z_sum
from llm.nn import MoE, balanced_bias

ALL = torch.ones(2, 8, dtype=torch.bool)


def random_moe(num_experts: int = 4, per_token: int = 2, **settings: object) -> MoE:
    generator = torch.Generator().manual_seed(0)
    moe = MoE(dim=8, num_experts=num_experts, experts_per_token=per_token, mlp_dim=6, **settings)   # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return moe


def tokens(batch: int = 2, length: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(seed))


def one_by_one(moe: MoE, x: torch.Tensor) -> torch.Tensor:
    """The definition, token by token, for a plain mixture."""
    rows = []
    for token in x.flatten(0, 1):
        probabilities = (moe.router.weight @ token).softmax(-1)
        best = probabilities.argsort(descending=True)[: moe.experts_per_token]
        weights = probabilities[best] / (probabilities[best].sum() if moe.norm_topk_prob else 1)
        row = torch.zeros(8)
        for weight, expert in zip(weights, best, strict=True):
            inner = F.silu(moe.experts.gate_proj[expert] @ token) * (moe.experts.up_proj[expert] @ token)
            row = row + weight * (moe.experts.down_proj[expert] @ inner)
        if moe.shared is not None and moe.shared_gate is not None:
            row = row + torch.sigmoid(moe.shared_gate.weight @ token) * moe.shared(token)
        rows.append(row)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("per_token", [1, 2, 4])
@pytest.mark.parametrize("norm_topk_prob", [True, False])
@pytest.mark.parametrize("shared_dim", [None, 5])
def test_a_mixture_is_its_definition_with_gradients(
    per_token: int, norm_topk_prob: bool, shared_dim: int | None
) -> None:
    moe = random_moe(per_token=per_token, norm_topk_prob=norm_topk_prob, shared_dim=shared_dim)
    x, wanted = tokens().requires_grad_(), tokens(seed=2)
    result, expected = moe(x)[0], one_by_one(moe, x)
    assert torch.allclose(result, expected, atol=1e-5)
    inputs = [x, *moe.parameters()]
    for mine, other in zip(torch.autograd.grad((result * wanted).sum(), inputs),
                           torch.autograd.grad((expected * wanted).sum(), inputs), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_experts_without_a_token_get_gradients_of_zeros() -> None:
    moe = random_moe(num_experts=6, per_token=1)
    y, routing = moe(tokens(1, 2))
    y.sum().backward()
    idle = sorted(set(range(6)) - set(routing.experts.flatten().tolist()))
    assert len(idle) >= 4
    for parameter in moe.experts.parameters():
        assert parameter.grad is not None
        assert not parameter.grad[idle].any()
        assert parameter.grad.any()


def test_a_token_s_answer_does_not_depend_on_its_neighbours() -> None:
    moe, x = random_moe(), tokens()
    alone = torch.cat([moe(x[:, place : place + 1])[0] for place in range(8)], dim=1)
    assert torch.allclose(moe(x)[0], alone, atol=1e-6)


def test_the_router_decides_in_float32_under_autocast() -> None:
    moe, x = random_moe(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = moe(x.bfloat16())
    assert (y.dtype, routing.logits.dtype) == (torch.bfloat16, torch.float32)
    exact, _ = moe(x.bfloat16().float())
    assert torch.allclose(y.float(), exact, atol=0.05)   # bf16 keeps two or three digits
    assert torch.equal(routing.experts, moe(x.bfloat16().float())[1].experts)


@pytest.mark.parametrize("per_token", [1, 2, 4])
def test_a_uniform_router_costs_exactly_one_a_token_and_a_collapsed_one_more(per_token: int) -> None:
    logits = torch.zeros(2, 8, 4)
    balanced = (torch.arange(16).view(2, 8, 1) + torch.arange(per_token)) % 4
    assert float(router_balance_sum(logits, balanced, ALL)) == pytest.approx(16.0)
    ties = logits.topk(per_token, dim=-1).indices   # all to the same experts: probabilities alone make it 1
    assert float(router_balance_sum(logits, ties, ALL)) == pytest.approx(16.0)
    if per_token < 4:
        collapsed = torch.zeros(2, 8, 4).index_fill(-1, torch.arange(per_token), 50.0)
        loss = router_balance_sum(collapsed, collapsed.topk(per_token, dim=-1).indices, ALL)
        assert float(loss) == pytest.approx(16.0 * 4 / per_token)


def test_the_balance_adds_up_over_sequences_and_knows_only_tokens_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 8, 4, generator=generator)
    experts = logits.topk(2, dim=-1).indices
    counted = torch.rand(3, 8, generator=generator) < 0.6
    counted[2] = False
    whole = router_balance_sum(logits, experts, counted)
    parts = sum(router_balance_sum(logits[row, counted[row]][None], experts[row, counted[row]][None],
                                   torch.ones(1, int(counted[row].sum()), dtype=torch.bool)) for row in range(2))
    assert torch.allclose(whole, torch.as_tensor(parts))
    assert torch.allclose(router_z_sum(logits, counted), logits[counted].logsumexp(-1).square().sum())
    nothing = router_balance_sum(logits.requires_grad_(), experts, torch.zeros_like(counted))
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()


def skewed() -> tuple[MoE, torch.Tensor]:
    """A router that sends nearly everything to the first two experts: they like the constant first coordinate."""
    moe, x = random_moe(), tokens(4, 16)
    x[..., 0] = 1.0
    with torch.no_grad():
        moe.router.weight[:2, 0] += 3.0
    return moe, x


def peak(moe: MoE, x: torch.Tensor, bias: torch.Tensor | None = None) -> float:
    load = moe(x, bias)[1].experts.flatten().bincount(minlength=4)
    return float(load.max() / load.float().mean())


def test_twenty_steps_of_the_balance_loss_lower_the_highest_load() -> None:
    moe, x = skewed()
    before = peak(moe, x)
    optimizer = torch.optim.SGD([moe.router.weight], lr=2.0)
    counted = torch.ones(4, 16, dtype=torch.bool)
    for _ in range(20):
        logits, experts = moe(x)[1]
        loss = router_balance_sum(logits, experts, counted) / 64
        optimizer.zero_grad()
        loss.backward()
        assert moe.router.weight.grad is not None and moe.router.weight.grad.any()
        optimizer.step()
    assert before > 1.8 and peak(moe, x) < 1.4


def test_forty_steps_of_the_bias_lower_the_highest_load_and_touch_no_weight() -> None:
    (moe, x), bias = skewed(), torch.zeros(4)
    before = peak(moe, x)
    for _ in range(40):
        load = moe(x, bias)[1].experts.flatten().bincount(minlength=4)
        bias = balanced_bias(bias, load, rate=0.01)
    assert before > 1.8 and peak(moe, x, bias) < 1.25
    # the bias chooses, but the answers are weighed by the probabilities alone
    routing, weights = moe.route(x, bias)
    chosen = routing.logits.softmax(-1).gather(-1, routing.experts)
    assert torch.allclose(weights, chosen / chosen.sum(-1, keepdim=True))


def test_more_experts_a_token_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="experts_per_token=5 must lie between 1 and num_experts=4"):
        random_moe(per_token=5)
