"""From what probability on to predict the class that is looked for, where F1 is what counts.

The threshold that has the best F1 on a few dozen rows is that of the two or three rows beside it, and often costs on
new rows what it gained on these. So all rows say first, together, how often the class is there where it is believed
with some probability: a curve of two numbers. The threshold is the best one if that curve is true.
"""

import numpy as np

EPSILON = 1e-3   # beliefs are taken for no surer than that, lest one row decide the curve
TOLERANCE = 1e-6   # of log-odds and of the curve's two numbers: what differs by less is equal


def best_threshold(is_positive: np.ndarray, belief: np.ndarray) -> float:
    """The threshold of the highest F1 that is to be expected on rows such as these.

    It is where the class is there half as often as the best F1 is high. Beliefs that are too sure, not sure enough or
    tilted to one side are seen through. From beliefs that tell nothing, or the contrary, nothing is learned: one half.
    Where only a few rows are positive, one half serves new rows as well or better.

    Args:
        is_positive: (rows,) bool, the truth; both classes occur.
        belief: (rows,) probability of the positive class.

    Paper: Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure", arXiv:1402.1892,
        theorem 1.

    Example:
        >>> truth = np.arange(40) < 20
        >>> round(best_threshold(truth, np.where(truth, 0.9, 0.6)), 2)   # the beliefs are tilted
        0.78
    """
    odds = log_odds(belief)
    slope, shift = logistic_curve(is_positive, odds) if np.ptp(odds) > TOLERANCE else (0.0, 0.0)
    if slope <= 0:
        return 0.5
    share = np.sort(_logistic(slope * odds + shift))[::-1]   # how often the class is there
    f1 = (2 * share.cumsum() / (np.arange(1, len(share) + 1) + share.sum())).max()   # of the first, first two, ...
    return float(_logistic((log_odds(f1 / 2) - shift) / slope))


def log_odds(belief: np.ndarray | float) -> np.ndarray:
    """log(p / (1 - p)), of p no nearer to 0 and 1 than `EPSILON`."""
    inside = np.clip(belief, EPSILON, 1 - EPSILON)
    return np.log(inside) - np.log1p(-inside)


def logistic_curve(is_positive: np.ndarray, odds: np.ndarray) -> tuple[float, float]:
    """Slope and shift of the line through the log-odds that makes the truth most likely, by Newton's method.

    One more row of each class is thought to exist, so that the line is finite where the rows are told apart wholly.

    Paper: Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2; with halved steps where a whole
        one goes too far, as Lin, Lin and Weng 2007, "A note on Platt's probabilistic outputs", Machine Learning 68.
    """
    positives, negatives = is_positive.sum(), (~is_positive).sum()
    target = np.where(is_positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    columns = np.stack([odds, np.ones(len(odds))], axis=1)   # (rows, 2)

    def loss(line: np.ndarray) -> float:
        return float((np.logaddexp(0, columns @ line) - target * (columns @ line)).sum())

    line = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    for _ in range(100):
        found = _logistic(columns @ line)
        curvature = columns.T @ (columns * (found * (1 - found))[:, None]) + 1e-9 * np.eye(2)   # equal odds: singular
        step = np.linalg.solve(curvature, columns.T @ (found - target))
        size = 1.0
        while size > TOLERANCE and loss(line - size * step) > loss(line):
            size /= 2
        line = line - size * step
        if np.abs(size * step).max() < TOLERANCE:
            break
    return float(line[0]), float(line[1])


def _logistic(odds: np.ndarray | float) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))
