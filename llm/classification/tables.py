"""Judgements and rows as Markdown tables. Next: `report.py`, which puts them together."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from llm.classification.judge import Judgement
from llm.data.labelled import Labelled

SHOWN = 10   # of the most confident mistakes


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(table(["a", "b"], [["1", "2|3"]]))
        | a | b |
        | --- | --- |
        | 1 | 2\\|3 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """A text on one line in which nothing means something to Markdown's tables or to HTML."""
    return " ".join(text.split("\n")).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def percent(value: float) -> str:
    """A share, or a dash where it is undefined."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def scores_table(judged: Mapping[str, Judgement]) -> str:
    """One line of scores for each name."""
    rows = []
    for name, judgement in judged.items():
        found = judgement.numbers()
        rows.append([
            name, f"{found['rows']:,}", f"{found['errors']:,}", percent(found["accuracy"]),
            f"{percent(found['accuracy_low'])} to {percent(found['accuracy_high'])}", percent(found["f1_macro"]),
            percent(found["precision"]), percent(found["recall"]), percent(found["f1"]), percent(found["roc_auc"]),
            percent(found["pr_auc"]), f"{found['log_loss']:.4f}", percent(found["calibration_error"])])
    return table(["", "rows", "errors", "accuracy", "95% interval", "F1 macro", "precision", "recall", "F1", "ROC-AUC",
                  "PR-AUC", "log loss", "ECE"], rows)


def confusion_table(judgement: Judgement) -> str:
    """True classes in rows, predicted ones in columns."""
    names = list(judgement.names)
    return table(["true \\ predicted", *names],
                 [[name, *(f"{count:,}" for count in row)]
                  for name, row in zip(names, judgement.table.tolist(), strict=True)])


def class_table(judgement: Judgement) -> str:
    """Precision, recall and F1 of each class."""
    found = judgement.numbers()["per_class"]
    return table(["class", "rows", "precision", "recall", "F1"],
                 [[name, f"{row['rows']:,}", percent(row["precision"]), percent(row["recall"]), percent(row["f1"])]
                  for name, row in found.items()])


def mistakes(judgement: Judgement, rows: Labelled) -> str:
    """The wrong predictions that the classifier is surest of: its faults, or those of the labels."""
    wrong = np.flatnonzero(judgement.predicted != judgement.truth)
    surest = wrong[np.argsort(-judgement.probabilities[wrong, judgement.predicted[wrong]], kind="stable")][:SHOWN]
    if not len(surest):
        return "None."
    lines = [[rows.places[number], judgement.names[judgement.truth[number]],
              judgement.names[judgement.predicted[number]],
              f"{judgement.probabilities[number, judgement.predicted[number]]:.3f}", _short(rows.texts[number])]
             for number in surest]
    return table(["where", "label", "predicted", "probability", "text"], lines)


def shares(rows: Labelled) -> str:
    """How many of each class."""
    return ", ".join(f"{count:,} {name} ({count / len(rows):.1%})" for name, count in sorted(
        Counter(rows.labels).items()))


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 160 else plain[:157] + "..."

