"""The metrics against their definitions, computed the slow way on random predictions with ties."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm.classification import baselines, metrics
from llm.classification.baselines import (
    LONGEST,
    STRENGTH,
    LogisticRegression,
    Majority,
    NaiveBayes,
    character_ngrams,
    fitted_baselines,
    words,
)
from llm.classification.judge import Judgement
from llm.classification.report import pool

RNG = np.random.default_rng(4)
TRUTH = RNG.random(60) < 0.3
BELIEF = np.round(np.clip(RNG.random(60) * 0.7 + 0.3 * TRUTH, 0, 1), 1)   # one digit: many ties


def test_roc_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in BELIEF[TRUTH] for b in BELIEF[~TRUTH]]
    assert metrics.roc_auc(TRUTH, BELIEF) == pytest.approx(np.mean(pairs))
    assert metrics.roc_auc(~TRUTH, 1 - BELIEF) == pytest.approx(np.mean(pairs))
    assert math.isnan(metrics.roc_auc(np.ones(3, bool), BELIEF[:3]))


def test_pr_auc_adds_up_precision_times_gained_recall() -> None:
    area, before = 0.0, 0.0
    for threshold in sorted(set(BELIEF), reverse=True):
        chosen = threshold <= BELIEF
        recall = TRUTH[chosen].sum() / TRUTH.sum()
        area, before = area + TRUTH[chosen].mean() * (recall - before), recall
    assert metrics.pr_auc(TRUTH, BELIEF) == pytest.approx(area)
    assert math.isnan(metrics.pr_auc(np.zeros(3, bool), BELIEF[:3]))


def test_wilson_bounds_solve_their_equation() -> None:
    """At the bounds the observed share lies 1.96 standard errors of the true share away."""
    for hits, count in ((294, 300), (1, 9), (5, 10)):
        for bound in metrics.wilson(hits, count):
            assert abs(hits / count - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / count) ** 0.5)
    assert metrics.wilson(0, 10)[0] == 0 and metrics.wilson(0, 0) == (0, 1)
    assert metrics.wilson(10, 10)[1] == pytest.approx(1)


def test_class_scores_of_a_table_worked_by_hand() -> None:
    table = metrics.confusion(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0]), 4)
    assert table.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    first, second, third, absent = metrics.class_scores(table)
    assert first == (pytest.approx(0.5), pytest.approx(2 / 3), pytest.approx(4 / 7), 3)
    assert second == (0.5, 0.5, 0.5, 2)
    assert math.isnan(third.precision) and third.recall == 0 and third.f1 == 0
    assert math.isnan(absent.f1) and metrics.macro_f1(table) == pytest.approx((4 / 7 + 0.5 + 0) / 3)


def test_calibration_error_is_zero_for_one_who_is_as_sure_as_right() -> None:
    sure = np.tile([0.8, 0.2], (10, 1))
    truth = np.array([0] * 8 + [1] * 2)
    assert metrics.calibration_error(truth, sure) == pytest.approx(0)
    assert metrics.calibration_error(1 - truth, sure) == pytest.approx(0.6)
    assert metrics.log_loss(np.array([0]), np.array([[0.0, 1.0]])) == pytest.approx(-math.log(1e-12))


def test_the_sign_test_counts_tails() -> None:
    assert metrics.sign_test(0, 0) == metrics.sign_test(3, 3) == 1
    assert metrics.sign_test(5, 0) == metrics.sign_test(0, 5) == pytest.approx(2 / 2**5)


def test_a_threshold_moves_predictions_and_pooling_keeps_them() -> None:
    probabilities = np.stack([1 - BELIEF, BELIEF], axis=1)
    parts = [Judgement(TRUTH[half].astype(int), probabilities[half], ["ham", "spam"], 1, threshold)
             for half, threshold in ((slice(0, 30), 0.25), (slice(30, 60), 0.75))]
    assert parts[0].predicted.tolist() == (BELIEF[:30] >= 0.25).astype(int).tolist()
    assert pool(parts).predicted.tolist() == [*parts[0].predicted, *parts[1].predicted]
    found = parts[0].numbers()
    assert found["errors"] == (parts[0].predicted != parts[0].truth).sum()
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc(TRUTH[:30], BELIEF[:30]))


def test_naive_bayes_is_bayes_rule_with_half_a_count_more() -> None:
    model = NaiveBayes(words, num_classes=2).fit(["a b", "b b", "c"], [0, 0, 1])
    spelled = np.array([2 / 3 * (1.5 / 5.5) * (3.5 / 5.5), 1 / 3 * (0.5 / 2.5) * (0.5 / 2.5)])
    assert model.probabilities(["a b unknown"])[0] == pytest.approx(spelled / spelled.sum())


def test_logistic_regression_is_where_the_penalised_likelihood_has_no_slope() -> None:
    """Worked out from its definition, densely, with autograd."""
    texts, labels = ["a b", "b b b", "c a", "c c", "d"], [0, 0, 1, 2, 1]
    model = LogisticRegression(words, num_classes=3).fit(texts, labels)
    counts = torch.tensor([[text.split().count(word) for word in "abcd"] for text in texts], dtype=torch.float64)
    rarity = 1 + torch.log(6 / (1 + (counts > 0).sum(0)))
    values = torch.where(counts > 0, 1 + counts.clamp(min=1).log(), 0.0) * rarity
    values = torch.cat([values / values.norm(dim=1, keepdim=True), torch.ones(5, 1)], dim=1)   # (texts, features + 1)
    weights = torch.tensor(model.weights, requires_grad=True)
    scores = values @ weights
    assert np.allclose(scores.softmax(-1).detach().numpy(), model.probabilities(texts))
    loss = STRENGTH * F.cross_entropy(scores, torch.tensor(labels), reduction="sum") + weights.square().sum() / 2
    loss.backward()
    assert weights.grad.abs().max() < 1e-4 < weights.abs().max()
    unknown = model.probabilities(["e f", ""])
    assert np.allclose(unknown, (weights[-1]).softmax(-1).detach().numpy())


def test_a_text_without_end_and_very_many_texts_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    long = "".join(map(str, range(LONGEST)))
    for model in (NaiveBayes, LogisticRegression):
        short, whole = (model(words, num_classes=2).fit(["a", text], [0, 1]) for text in (long[:LONGEST], long))
        assert np.array_equal(short.weights, whole.weights)
        assert np.array_equal(short.probabilities([long]), short.probabilities([long[:LONGEST]]))
    monkeypatch.setattr(baselines, "MOST", 5)
    assert len(fitted_baselines(["abc", "de"], [0, 1], num_classes=2)) == 4
    assert len(fitted_baselines(["abc", "def"], [0, 1], num_classes=2)) == 3
    monkeypatch.setattr(baselines, "LONGEST", 2)   # only what is read counts
    assert len(fitted_baselines(["abc", long], [0, 1], num_classes=2)) == 4


def test_baselines_learn_what_can_be_counted_and_survive_a_class_without_rows() -> None:
    texts, labels = ["win cash", "win a prize", "see you", "see me later"], [1, 1, 0, 0]
    for name, model in fitted_baselines(texts, labels, num_classes=3).items():
        found = model.probabilities(["cash prize", "you later"])
        assert found.shape == (2, 3) and np.allclose(found.sum(axis=1), 1) and not found[:, 2].any()
        assert name == "majority" or found.argmax(axis=1).tolist() == [1, 0]
    assert Majority(num_classes=2).fit(texts, [0, 0, 0, 1]).probabilities(["x"]).tolist() == [[0.75, 0.25]]
    assert list(character_ngrams("", shortest=2, longest=2)) == ["  "]
