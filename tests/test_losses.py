"""Loss functions return sums over supervised positions, and nothing else counts."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import llm
from llm import losses
from llm.losses import IGNORE_INDEX, next_token_loss_sum, supervised_rows, token_log_likelihood

LOSSES = {"sum": next_token_loss_sum, "none": lambda *arguments: -token_log_likelihood(*arguments).sum()}


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8, generator=generator), torch.randn(11, 8, generator=generator)
    targets = torch.randint(11, (2, 5), generator=generator)
    targets[0, 1] = targets[1, 3:] = IGNORE_INDEX
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def test_both_reductions_equal_the_definition() -> None:
    hidden, weight, targets = inputs()
    log_p = (hidden @ weight.T).double().log_softmax(-1)
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for row, place in (targets != IGNORE_INDEX).nonzero().tolist():
        expected[row, place] = log_p[row, place, targets[row, place]]
    likelihood = token_log_likelihood(hidden, weight, targets).double()
    assert torch.allclose(likelihood, expected, atol=3e-6)   # of logits near 10
    assert torch.allclose(next_token_loss_sum(hidden, weight, targets).double(), -expected.sum(), rtol=1e-6)


def test_both_reductions_have_the_same_gradients() -> None:
    gradients = []
    for loss in (lambda *a: next_token_loss_sum(*a), lambda *a: -token_log_likelihood(*a).sum()):
        hidden, weight, targets = inputs()
        loss(hidden, weight, targets).backward()
        gradients.append((hidden.grad, weight.grad))
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_hidden_states_without_a_target_have_no_gradient() -> None:
    hidden, weight, targets = inputs()
    next_token_loss_sum(hidden, weight, targets).backward()
    assert (hidden.grad.abs().sum(-1) == 0).equal(targets == IGNORE_INDEX)


def test_the_number_of_rows_at_the_head_is_rounded_up_and_changes_nothing() -> None:
    for count in (0, 1, 127, 128, 129, 300):
        targets = torch.full((2, 150), IGNORE_INDEX)
        targets.view(-1)[torch.randperm(300, generator=torch.Generator().manual_seed(0))[:count]] = 3
        rows, wanted = supervised_rows(targets)
        assert len(rows) == len(wanted) == -(-count // 128) * 128
        assert rows[:count].equal((targets.flatten() != IGNORE_INDEX).nonzero()[:, 0])
        assert (wanted[:count] == 3).all() and (wanted[count:] == IGNORE_INDEX).all()
        hidden, weight = torch.zeros(2, 150, 4), torch.zeros(8, 4)
        assert torch.isclose(next_token_loss_sum(hidden, weight, targets), torch.tensor(8.0).log() * count)


@pytest.mark.parametrize("ignored", [[], [0], [0, 100, 255]])
def test_rows_that_are_not_picked_are_those_that_are(ignored: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(8, (2, 128), generator=generator)   # 256 places, as many as rows at the head
    targets.view(-1)[ignored] = IGNORE_INDEX
    found = []
    for head in (next_token_loss_sum, lambda *inputs: -token_log_likelihood(*inputs).sum()):   # which always picks
        hidden = torch.randn(2, 128, 4, generator=generator.manual_seed(1)).requires_grad_()
        weight = torch.randn(8, 4, generator=generator).requires_grad_()
        loss = head(hidden, weight, targets)
        loss.backward()
        found.append((loss, hidden.grad, weight.grad))
    assert (found[0][1].abs().sum(-1) == 0).equal(targets == IGNORE_INDEX)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 128 rows, gone over by 50, so that a small batch, and a small vocabulary, takes several."""
    monkeypatch.setattr(losses, "CACHE_BYTES", 4 * 300 * 50)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 0)
    monkeypatch.setattr(losses, "MIN_CHUNK", 128)


def large_inputs(vocab_size: int = 300, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(3, 150, dim, generator=generator), torch.randn(vocab_size, dim, generator=generator)
    targets = torch.randint(vocab_size, (3, 150), generator=generator)
    targets[:, ::7] = IGNORE_INDEX
    return hidden, weight, targets


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = hidden.flatten(0, 1) @ weight.T
    return F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=IGNORE_INDEX)


def loss_and_gradients(
    loss: Callable[..., torch.Tensor], hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> list[torch.Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    value = loss(hidden, weight, targets)
    (value * 0.37).backward()
    return [value.detach(), hidden.grad, weight.grad]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", LOSSES)
def test_in_chunks_it_is_the_plain_cross_entropy_of_float64(reduction: str) -> None:
    hidden, weight, targets = large_inputs()
    expected = loss_and_gradients(plain, hidden.double(), weight.double(), targets)
    for found, exact in zip(loss_and_gradients(LOSSES[reduction], hidden, weight, targets), expected, strict=True):
        assert found.dtype == torch.float32
        assert (found - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.usefixtures("small_chunks")
def test_it_equals_the_fused_loss_of_torch() -> None:
    if not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")

    def theirs(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), reduction="sum",
                                      ignore_index=IGNORE_INDEX)

    inputs = large_inputs()
    for found, expected in zip(loss_and_gradients(next_token_loss_sum, *inputs), loss_and_gradients(theirs, *inputs),
                               strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", LOSSES)
def test_in_bf16_it_is_as_near_to_the_exact_loss_as_logits_in_bf16_are(reduction: str) -> None:
    hidden, weight, targets = large_inputs()
    exact = loss_and_gradients(plain, hidden.double(), weight.double(), targets)
    low = hidden.bfloat16()
    reference = loss_and_gradients(lambda h, w, t: plain(h, w.bfloat16(), t), low, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss_and_gradients(LOSSES[reduction], low, weight, targets)
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16 and found[2].dtype == torch.float32
    for ours, theirs, wanted in zip(found, reference, exact, strict=True):
        assert (ours - wanted).norm() <= 1.1 * (theirs - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.parametrize("reduction", LOSSES)
def test_a_batch_without_targets_costs_nothing_and_is_still_connected(reduction: str) -> None:
    hidden, weight, targets = large_inputs()
    value, *gradients = loss_and_gradients(LOSSES[reduction], hidden, weight, torch.full_like(targets, IGNORE_INDEX))
    assert value == 0
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("reduction", LOSSES)
@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_what_is_frozen_gets_no_gradient_and_the_other_gets_its_own(reduction: str, frozen: str) -> None:
    hidden, weight, targets = large_inputs()
    _, grad_hidden, grad_weight = loss_and_gradients(LOSSES[reduction], hidden, weight, targets)
    hidden.requires_grad_(frozen == "weight")
    weight.requires_grad_(frozen == "hidden")
    value = LOSSES[reduction](hidden, weight, targets)
    assert value.requires_grad == (frozen != "both")
    if value.requires_grad:
        (value * 0.37).backward()
        assert torch.equal(hidden.grad, grad_hidden) if frozen == "weight" else torch.equal(weight.grad, grad_weight)


@pytest.mark.parametrize("reduction", LOSSES)
def test_without_gradients_the_value_is_the_same_and_nothing_is_kept(reduction: str) -> None:
    hidden, weight, targets = large_inputs()
    expected = LOSSES[reduction](hidden, weight, targets)
    with torch.no_grad():
        value = LOSSES[reduction](hidden.requires_grad_(), weight.requires_grad_(), targets)
    assert value.equal(expected) and value.grad_fn is None


def test_gradients_are_handed_out_once() -> None:
    hidden, weight, targets = inputs()
    value = next_token_loss_sum(hidden, weight, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="handed out already; compute the loss again"):
        value.backward()


@pytest.mark.parametrize("target", [11, -1])
@pytest.mark.parametrize("reduction", LOSSES)
def test_a_target_outside_the_vocabulary_is_refused(reduction: str, target: int) -> None:
    hidden, weight, targets = inputs()
    targets[0, 0] = target
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        LOSSES[reduction](hidden, weight, targets)


@pytest.mark.usefixtures("small_chunks")
def test_a_tied_weight_gets_the_gradients_of_both_its_uses() -> None:
    ids = torch.randint(300, (2, 100), generator=torch.Generator().manual_seed(2))
    model = llm.Qwen(llm.QwenConfig(vocab_size=300, num_layers=1, num_heads=2, num_kv_heads=1, dim=16))
    logits = model(ids).logits
    F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="sum").backward()
    expected = model.embed.weight.grad.clone()
    model.zero_grad()
    model(ids, targets=ids).loss_sum.backward()
    assert torch.allclose(model.embed.weight.grad, expected, rtol=1e-5, atol=1e-4)
