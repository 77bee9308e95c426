"""A classifier's beliefs about texts, and all that follows from them in numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llm.classification import metrics
from llm.models.classifier import Classifier
from llm.runtime import World
from llm.tokenizers.ends import ends
from llm.tokenizers.tokenizer import Tokenizer


def encode(texts: Sequence[str], tokenizer: Tokenizer, *, context: int) -> tuple[list[list[int]], int]:
    """The ids of each text, no more than `context`, and how many texts were cut for that.

    What a tokenizer puts around every text it puts around a text that was cut, too.

    Raises:
        ValueError: for a text that the tokenizer makes nothing of, or a context too short for any.
    """
    own = ends(tokenizer)
    room = context - len(own.around([]))
    if room < 1:
        raise ValueError(f"context={context} has no room for a text beside the tokens around it; give "
                         f"{context - room + 1} at least")
    rows = [tokenizer.first_ids(text, room + 1) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not row:
            raise ValueError(f"{text!r} has no token; leave empty texts out")
    return [own.around(row[:room]) for row in rows], sum(len(row) > room for row in rows)


def batches_by_length(lengths: Sequence[int] | np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The numbers of all texts in batches of like lengths, the shortest first.

    Example:
        >>> [batch.tolist() for batch in batches_by_length([9, 2, 8, 1], 2)]
        [[3, 1], [2, 0]]
    """
    order = np.argsort(lengths, kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


@torch.no_grad()
def beliefs(model: Classifier, rows: Sequence[Sequence[int]], *, world: World, batch_size: int = 32) -> np.ndarray:
    """The probabilities of the classes for each text.

    Texts of like lengths are read together, so that little of a batch is padding.

    Args:
        model: in evaluation mode.
        rows: ids of each text.
        world: device and precision.
        batch_size: texts at a time.

    Returns:
        (texts, classes) float64.
    """
    found = np.empty((len(rows), len(model.labels)))
    with world.autocast():   # once for all batches, so that it casts the weights but once
        for chosen in batches_by_length([len(row) for row in rows], batch_size):
            lengths = torch.tensor([len(rows[number]) for number in chosen])
            inputs = torch.zeros((len(chosen), int(lengths.max())), dtype=torch.int64)
            for place, number in enumerate(chosen):
                inputs[place, : len(rows[number])] = torch.tensor(rows[number])
            scores = model(*world.to_device((inputs, lengths))).scores
            found[chosen] = scores.double().softmax(-1).cpu().numpy()
    return found


@dataclass(frozen=True)
class Judgement:
    """Predictions for the rows of one part, and what they are worth. For two classes `positive` is the one looked for.

    With a threshold the positive class is predicted from that probability on, else the most probable class.
    """

    truth: np.ndarray           # (rows,) class numbers
    probabilities: np.ndarray   # (rows, classes)
    names: Sequence[str]
    positive: int
    threshold: float | None = None

    @property
    def predicted(self) -> np.ndarray:
        """(rows,) class numbers."""
        if self.threshold is None:
            return self.probabilities.argmax(axis=1)
        assert len(self.names) == 2
        return np.where(self.probabilities[:, self.positive] >= self.threshold, self.positive, 1 - self.positive)

    @property
    def table(self) -> np.ndarray:
        """The confusion matrix."""
        return metrics.confusion(self.truth, self.predicted, len(self.names))

    def take(self, chosen: np.ndarray) -> "Judgement":
        """The same of some of the rows."""
        return Judgement(self.truth[chosen], self.probabilities[chosen], self.names, self.positive, self.threshold)

    def numbers(self) -> dict[str, Any]:
        """Everything in numbers; ranking scores are those of the positive class, or means over the classes."""
        table, hits = self.table, int((self.predicted == self.truth).sum())
        low, high = metrics.wilson(hits, len(self.truth))
        scores = metrics.class_scores(table)
        chosen = [self.positive] if len(self.names) == 2 else range(len(self.names))
        ranking = [(metrics.roc_auc(self.truth == number, self.probabilities[:, number]),
                    metrics.pr_auc(self.truth == number, self.probabilities[:, number])) for number in chosen]
        roc, pr = np.array(ranking).mean(axis=0).tolist()
        return {
            "rows": len(self.truth), "errors": len(self.truth) - hits, "accuracy": hits / len(self.truth),
            "accuracy_low": low, "accuracy_high": high, "f1_macro": metrics.macro_f1(table),
            "precision": scores[self.positive].precision, "recall": scores[self.positive].recall,
            "f1": scores[self.positive].f1, "roc_auc": roc, "pr_auc": pr,
            "log_loss": metrics.log_loss(self.truth, self.probabilities),
            "calibration_error": metrics.calibration_error(self.truth, self.probabilities),
            "per_class": {name: score._asdict() for name, score in zip(self.names, scores, strict=True)},
            "confusion": table.tolist(),
        }
