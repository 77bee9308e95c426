"""One picture of a judgement: confusion matrix, ROC curve, calibration, and how sure it is."""

import os
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from llm.classification import metrics
from llm.classification.judge import Judgement

BLUE, RED, GREY = "#1f77b4", "#d62728", "#999999"
OTHERS = ("#ff7f0e", "#2ca02c", GREY)   # of baselines
MOST_NAMED = 12   # classes whose counts are written into the confusion matrix


def draw(path: Path, judgement: Judgement, others: Mapping[str, Judgement], *, title: str) -> None:
    """Write the picture as PNG.

    Args:
        path: where.
        judgement: of the classifier.
        others: of the baselines on the same rows, drawn beside it in the curves.
        title: what it is about.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 9), dpi=120)
    figure.suptitle(title)
    _confusion(axes[0, 0], judgement)
    _roc(axes[0, 1], judgement, others)
    _reliability(axes[1, 0], judgement)
    _certainty(axes[1, 1], judgement)
    for part in axes.flat:
        part.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    unfinished = path.with_name(f".unfinished-{path.name}")
    figure.savefig(unfinished, format="png")
    os.replace(unfinished, path)
    plt.close(figure)


def _label(name: str, number: int) -> str:
    """A name that the default font can write, which knows no Chinese, and takes what stands between $ for a formula."""
    is_plain = name.isascii() and name.isprintable() and "$" not in name
    return name if is_plain and len(name) < 16 else f"class {number}"


def _confusion(axes: Any, judgement: Judgement) -> None:
    table = judgement.table
    with np.errstate(invalid="ignore"):
        rates = table / table.sum(axis=1, keepdims=True)
    axes.imshow(np.nan_to_num(rates), cmap="Blues", vmin=0, vmax=1)
    names = [_label(name, number) for number, name in enumerate(judgement.names)]
    if len(names) <= MOST_NAMED:
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        for row in range(len(names)):
            for column in range(len(names)):
                axes.text(column, row, str(table[row, column]), ha="center", va="center",
                          color="white" if rates[row, column] > 0.5 else "black")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{int(np.diag(table).sum())} of {table.sum()} right", fontsize=10)


def _curves(judgement: Judgement) -> metrics.Curve:
    """The curve of the positive class of two; of more classes that of all their beliefs together."""
    if len(judgement.names) == 2:
        return metrics.curve(judgement.truth == judgement.positive, judgement.probabilities[:, judgement.positive])
    is_true = judgement.truth[:, None] == np.arange(len(judgement.names))
    return metrics.curve(is_true.ravel(), judgement.probabilities.ravel())


def _roc(axes: Any, judgement: Judgement, others: Mapping[str, Judgement]) -> None:
    for name, shown, color in [*zip(others, others.values(), cycle(OTHERS), strict=False),
                               ("this classifier", judgement, BLUE)]:
        points = _curves(shown)
        if not points.true_positives[-1] or not points.false_positives[-1]:
            continue
        is_ours = shown is judgement
        axes.plot(points.false_positives / points.false_positives[-1],
                  points.true_positives / points.true_positives[-1], label=name, linewidth=2 if is_ours else 1,
                  color=color, linestyle="-" if is_ours else "--")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel("share of other texts that are reported")
    axes.set_ylabel("share of the class that is found")
    axes.set_title("ROC", fontsize=10)
    if axes.get_lines():   # none where all texts are of one class
        axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.25)
    curves = [line.get_data() for line in axes.get_lines()]
    # good classifiers differ in the corner; worse ones would run behind a picture of it
    if curves and all((found[reported <= 0.1] > 0.9).any() for reported, found in curves):
        inset = axes.inset_axes((0.35, 0.3, 0.45, 0.4))
        for line in axes.get_lines():
            inset.plot(*line.get_data(), color=line.get_color(), linestyle=line.get_linestyle())
        inset.set_xlim(0, 0.1)
        inset.set_ylim(0.8, 1.005)
        inset.tick_params(labelsize=7)
        inset.grid(alpha=0.25)


def _reliability(axes: Any, judgement: Judgement) -> None:
    counts, confidence, accuracy = metrics.calibration(judgement.truth, judgement.probabilities).T
    there = counts > 0
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="as sure as right")
    for count, sure, right in zip(counts[there], confidence[there], accuracy[there], strict=True):
        low, high = metrics.wilson(round(right * count), int(count))
        axes.plot([sure, sure], [low, high], color=BLUE, linewidth=1)
    axes.scatter(confidence[there], accuracy[there], s=15 + 250 * counts[there] / counts.sum(), color=BLUE, alpha=0.7,
                 label="texts, area by number; 95% interval")
    axes.set_xlim(1 / len(judgement.names) - 0.05, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("probability of the predicted class")
    axes.set_ylabel("share that is right")
    error = metrics.calibration_error(judgement.truth, judgement.probabilities)
    axes.set_title(f"calibration: {100 * error:.2f} points off on average", fontsize=10)
    axes.legend(loc="lower right", fontsize=8)
    axes.grid(alpha=0.25)


def _certainty(axes: Any, judgement: Judgement) -> None:
    chosen = judgement.probabilities[np.arange(len(judgement.truth)), judgement.truth]
    is_right = judgement.predicted == judgement.truth
    axes.hist([chosen[is_right], chosen[~is_right]], bins=np.linspace(0, 1, 21), stacked=True, color=[BLUE, RED],
              label=["right", "wrong"])
    axes.set_yscale("symlog", linthresh=10)
    axes.set_xlabel("probability of the true class")
    axes.set_ylabel("texts")
    axes.set_title("how sure it is of the truth", fontsize=10)
    axes.legend(loc="upper left", fontsize=8)
    axes.grid(alpha=0.25)
