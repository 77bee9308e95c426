"""Loss functions return sums over supervised positions, and nothing else counts."""

import torch

from llm.losses import IGNORE_INDEX, next_token_loss_sum, supervised_rows, token_log_likelihood


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
