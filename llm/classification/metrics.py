"""How good predictions are: accuracy with what chance leaves open, rates of each class, ranking, calibration.

Everything is computed from one matrix of probabilities and the true classes, in numpy and by definition. Undefined
values (a precision without a prediction, a curve with one class) are NaN, never 0 or 1.
"""

import math
from typing import NamedTuple

import numpy as np

CALIBRATION_BINS = 10


class ClassScores(NamedTuple):
    """One class against all others."""

    precision: float
    recall: float
    f1: float
    rows: int


class Curve(NamedTuple):
    """Rates as the threshold falls past each different probability; first with nothing predicted positive."""

    thresholds: np.ndarray        # (points,) predict the class from this probability on
    true_positives: np.ndarray    # (points,)
    false_positives: np.ndarray   # (points,)


def wilson(successes: int, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The interval of 95% for a share, good also for few trials and for shares near 0 and 1.

    Paper: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.

    Example:
        >>> [round(bound, 4) for bound in wilson(294, 300)]
        [0.9571, 0.9908]
    """
    if count < 1:
        return 0.0, 1.0
    share = successes / count
    centre = share + z * z / (2 * count)
    reach = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5
    scale = 1 + z * z / count
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(classes, classes) counts; row is the true class, column the predicted one."""
    table = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(table, (truth, predicted), 1)
    return table


def class_scores(table: np.ndarray) -> list[ClassScores]:
    """Precision, recall and F1 of each class from a confusion matrix."""
    scores = []
    for number, hits in enumerate(np.diag(table)):
        predicted, actual = table[:, number].sum(), table[number].sum()
        scores.append(ClassScores(_ratio(hits, predicted), _ratio(hits, actual), _ratio(2 * hits, predicted + actual),
                                  int(actual)))
    return scores


def macro_f1(table: np.ndarray) -> float:
    """The mean F1 of the classes that occur, in truth or in prediction."""
    return float(np.nanmean([score.f1 for score in class_scores(table)]))


def curve(is_positive: np.ndarray, belief: np.ndarray) -> Curve:
    """What every threshold would give; equal probabilities are passed together.

    Args:
        is_positive: (rows,) bool, the truth.
        belief: (rows,) probability of the positive class.
    """
    order = np.argsort(-belief, kind="stable")
    hits = np.cumsum(is_positive[order])
    ends = np.flatnonzero(np.append(np.diff(belief[order]) != 0, True))
    thresholds = np.append(np.inf, belief[order][ends])
    return Curve(thresholds, np.append(0, hits[ends]), np.append(0, ends + 1 - hits[ends]))


def roc_auc(is_positive: np.ndarray, belief: np.ndarray) -> float:
    """The chance that a positive row is believed more than a negative one, a tie counting half; NaN with one class.

    Example:
        >>> roc_auc(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))
        0.875
    """
    points = curve(is_positive, belief)
    positives, negatives = points.true_positives[-1], points.false_positives[-1]
    area = np.trapezoid(points.true_positives, points.false_positives)
    return _ratio(area, positives * negatives)


def pr_auc(is_positive: np.ndarray, belief: np.ndarray) -> float:
    """Average precision: the precision at each threshold, weighted by the recall it adds; NaN without positives.

    Example:
        >>> pr_auc(np.array([True, False, True]), np.array([0.9, 0.5, 0.4]))
        0.8333333333333333
    """
    points = curve(is_positive, belief)
    hits, misses = points.true_positives[1:], points.false_positives[1:]
    if not points.true_positives[-1]:
        return float("nan")
    gained = np.diff(points.true_positives) / points.true_positives[-1]
    return float((hits / (hits + misses) * gained).sum())


def calibration(truth: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(bins, 3): in bins of equal width by the confidence of the prediction, rows, mean confidence, accuracy."""
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    table = np.full((CALIBRATION_BINS, 3), np.nan)
    for number in range(CALIBRATION_BINS):
        chosen = bins == number
        table[number, 0] = chosen.sum()
        if chosen.any():
            table[number, 1:] = confidence[chosen].mean(), is_right[chosen].mean()
    return table


def calibration_error(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """How far confidence and accuracy are apart, on average over the rows.

    Paper: expected calibration error: Guo et al. 2017, arXiv:1706.04599, eq. 3.

    Example:
        >>> round(calibration_error(np.array([0, 1]), np.array([[0.8, 0.2], [0.8, 0.2]])), 3)
        0.3
    """
    counts, confidence, accuracy = calibration(truth, probabilities).T
    gaps = np.where(counts > 0, np.abs(confidence - accuracy), 0.0)
    return float((counts * gaps).sum() / counts.sum())


def log_loss(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean -log p of the true class, in nats; probabilities below 1e-12 count as that."""
    chosen = probabilities[np.arange(len(truth)), truth]
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


def sign_test(wins: int, losses: int) -> float:
    """How often chance alone would part two equally good classifiers so far, from the rows that only one gets right.

    Paper: McNemar 1947, Psychometrika 12, with exact binomial probabilities; two-sided.

    Example:
        >>> sign_test(8, 2)
        0.109375
    """
    count, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, number) for number in range(fewer + 1)) / 2**count
    return min(1.0, 2 * tail)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
