"""The threshold from few rows serves new rows: near the best one there is, whatever the beliefs' units."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.classification.threshold import best_threshold, log_odds, logistic_curve


def drawn(count: int, share: float, *, gap: float = 3.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth, and the log-odds that are true of a measurement that is normal in both classes, `gap` apart."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < share
    return truth, gap * (rng.normal(size=count) + gap * truth) - gap**2 / 2 + np.log(share / (1 - share))


def belief_of(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


def f1(truth: np.ndarray, belief: np.ndarray, threshold: float) -> float:
    chosen = belief >= threshold
    return float(2 * (chosen & truth).sum() / (chosen.sum() + truth.sum()))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (1.0, 3.0), (0.4, -2.0), (1.4, 0.0)])
def test_of_many_rows_it_is_the_best_for_new_ones_however_the_beliefs_are_bent(
        share: float, slope: float, shift: float) -> None:
    truth, odds = drawn(20_000, share)
    belief = belief_of(slope * odds + shift)
    new_truth, new_odds = drawn(20_000, share, seed=1)
    new_belief = belief_of(slope * new_odds + shift)
    best = max(f1(new_truth, new_belief, threshold) for threshold in belief_of(np.linspace(-14, 14, 400)))
    assert f1(new_truth, new_belief, best_threshold(truth, belief)) > best - 0.005


@pytest.mark.parametrize(("share", "count"), [(0.1, 300), (0.5, 100)])
def test_of_few_rows_it_serves_new_ones_better_than_the_best_of_these(share: float, count: int) -> None:
    new_truth, new_odds = drawn(20_000, share, seed=10_000)
    gains = []
    for seed in range(50):
        truth, odds = drawn(count, share, seed=seed)
        ours, own = best_threshold(truth, belief_of(odds)), max(belief_of(odds), key=lambda at: f1(
            truth, belief_of(odds), at))
        gains.append(f1(new_truth, belief_of(new_odds), ours) - f1(new_truth, belief_of(new_odds), own))
    assert np.mean(gains) > 3 * np.std(gains) / 50**0.5


def test_beliefs_that_are_tilted_tilt_it_too() -> None:
    truth, odds = drawn(60, 0.3)
    plain, tilted = (best_threshold(truth, belief_of(np.clip(odds, -4, 4) + shift)) for shift in (0.0, 2.5))
    assert log_odds(tilted) == pytest.approx(log_odds(plain) + 2.5, abs=1e-3)


def test_the_curve_is_the_one_that_gradients_find_too() -> None:
    truth, odds = drawn(80, 0.3, gap=2.0)
    target = torch.tensor(np.where(truth, (truth.sum() + 1) / (truth.sum() + 2), 1 / ((~truth).sum() + 2)))
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([line], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(line[0] * torch.tensor(odds) + line[1], target, reduction="sum")
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    assert logistic_curve(truth, odds) == pytest.approx(line.tolist(), abs=1e-5)


@pytest.mark.parametrize("belief", [
    [0.1, 0.2, 0.8, 0.9],   # the contrary of the truth
    [0.5, 0.5, 0.5, 0.5], [0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0],
    [0.5 + 1e-7, 0.5 + 1e-7, 0.5, 0.5]])
def test_from_beliefs_that_tell_nothing_one_half_is_kept(belief: list[float]) -> None:
    assert best_threshold(np.array([True, True, False, False]), np.array(belief)) == 0.5


def test_one_row_that_is_surely_wrong_does_not_decide() -> None:
    truth = np.arange(24) < 2
    belief = np.array([1e-6, 0.99] + 22 * [0.01])
    threshold = best_threshold(truth, belief)
    assert f1(truth, belief, threshold) == f1(truth, belief, 0.5) == pytest.approx(2 / 3)


def test_sure_beliefs_that_are_right_are_parted_between() -> None:
    truth = np.array([True] * 20 + [False] * 20)
    assert 0.3 < best_threshold(truth, np.where(truth, 1.0, 0.0)) < 0.7
