"""What a classifier must beat: the most frequent class, Naive Bayes on words and on characters, logistic regression.

They are fitted on the same training rows in a second or two, and on short texts they are strong.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llm.train.optimizer import minimize

log = logging.getLogger(__name__)

LONGEST = 10_000      # characters of a text that are read, so that one text cannot take all time and memory
MOST = 4_000_000      # of these in all texts, above which logistic regression would take minutes
ALPHA = 0.5           # added to every count; chosen by nobody, so that no data set is favoured
STRENGTH = 30.0       # of the labels against the penalty; from 3 to 100 the spam data of the README cannot tell


def words(text: str) -> list[str]:
    """Runs of letters and digits in lower case; signs by themselves. In scripts without spaces, single characters.

    Example:
        >>> words("WIN £100! 中奖")
        ['win', '£', '100', '!', '中', '奖']
    """
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]", text.casefold())


def character_ngrams(text: str, *, shortest: int = 2, longest: int = 5) -> Iterator[str]:
    """All stretches of 2 to 5 characters, in lower case, with a space at both ends.

    Example:
        >>> list(character_ngrams("ab", longest=3))
        [' a', 'ab', 'b ', ' ab', 'ab ']
    """
    padded = f" {text.casefold()} "
    return (padded[start : start + size] for size in range(shortest, longest + 1)
            for start in range(len(padded) - size + 1))


def counted(features: Callable[[str], Iterable[str]], text: str) -> Counter[str]:
    """How often each feature occurs in what is read of a text."""
    return Counter(features(text[:LONGEST]))


class NaiveBayes:
    """Multinomial Naive Bayes: every feature of a text speaks for each class by how often it occurred there.

    Args:
        features: from a text to its features, repeated as often as they occur.
        num_classes: how many.

    Paper: Rennie et al. 2003, "Tackling the Poor Assumptions of Naive Bayes Text Classifiers", ICML, section 2.

    Example:
        >>> model = NaiveBayes(words, num_classes=2).fit(["see you", "win cash"], [0, 1])
        >>> model.probabilities(["cash"]).argmax(axis=1)
        array([1])
    """

    def __init__(self, features: Callable[[str], Iterable[str]], *, num_classes: int):
        self.features = features
        self.num_classes = num_classes

    def fit(self, texts: Iterable[str], labels: Sequence[int]) -> "NaiveBayes":
        """Count; returns itself."""
        counts: list[Counter[str]] = [Counter() for _ in range(self.num_classes)]
        for text, label in zip(texts, labels, strict=True):
            counts[label].update(counted(self.features, text))
        self.columns = {feature: place for place, feature in enumerate(sorted(set().union(*counts)))}
        table = np.full((self.num_classes, len(self.columns)), ALPHA)
        for row, found in zip(table, counts, strict=True):
            for feature, count in found.items():
                row[self.columns[feature]] += count
        self.weights = np.log(table / table.sum(axis=1, keepdims=True))
        shares = np.bincount(np.asarray(labels), minlength=self.num_classes) / len(labels)
        with np.errstate(divide="ignore"):   # a class without rows is never predicted
            self.prior = np.log(shares)
        return self

    def probabilities(self, texts: Iterable[str]) -> np.ndarray:
        """(texts, classes); features that training did not know say nothing."""
        scores = []
        for text in texts:
            counts = counted(self.features, text)
            known = {self.columns[feature]: count for feature, count in counts.items() if feature in self.columns}
            scores.append(self.prior + self.weights[:, [*known]] @ np.fromiter(known.values(), np.float64))
        table = np.array(scores) - np.max(scores, axis=1, keepdims=True)
        return np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)


class LogisticRegression:
    """Weights by which every feature of a text speaks for each class, all learned together.

    A feature counts by the logarithm of how often it occurs, times how rare it is; those of a text have length 1, and
    beside them each text has a constant 1. A word that others always come with does not speak twice, as in Naive Bayes.

    Args:
        features: from a text to its features, repeated as often as they occur.
        num_classes: how many.

    Paper: features: Manning et al. 2008, "Introduction to Information Retrieval", sections 6.2 and 6.4. Penalised
        likelihood, minimised by L-BFGS: Malouf 2002, "A Comparison of Algorithms for Maximum Entropy Parameter
        Estimation", CoNLL.

    Example:
        >>> model = LogisticRegression(words, num_classes=2).fit(["see you", "win cash"], [0, 1])
        >>> model.probabilities(["cash"]).argmax(axis=1)
        array([1])
    """

    def __init__(self, features: Callable[[str], Iterable[str]], *, num_classes: int):
        self.features = features
        self.num_classes = num_classes

    def fit(self, texts: Iterable[str], labels: Sequence[int]) -> "LogisticRegression":
        """Minimise -STRENGTH log p(labels) + |weights|^2 / 2; returns itself."""
        counts = [counted(self.features, text) for text in texts]
        occurrences = Counter(feature for found in counts for feature in found)   # in how many texts
        self.columns = {feature: place for place, feature in enumerate(sorted(occurrences))}
        self.rarity = 1 + np.log((1 + len(counts)) / (1 + np.array([occurrences[name] for name in self.columns])))
        table = self._table(counts)
        wanted = np.eye(self.num_classes)[np.asarray(labels)]   # (texts, classes)
        self.is_known = wanted.any(axis=0)   # a class without rows is never predicted
        weights = torch.zeros(len(self.columns) + 1, self.num_classes, dtype=torch.float64)
        weights.grad = torch.zeros_like(weights)
        self.weights, slope = weights.numpy(), weights.grad.numpy()   # the same memory

        def loss() -> float:
            told = self._log_probabilities(table)
            change = STRENGTH * (np.exp(told) - wanted)
            for number in range(self.num_classes):
                slope[:, number] = self.weights[:, number] + np.bincount(
                    table.columns, table.values * change[table.rows, number], len(weights))
            return (self.weights**2).sum() / 2 - STRENGTH * told[wanted > 0].sum()

        minimize(loss, weights)
        return self

    def probabilities(self, texts: Iterable[str]) -> np.ndarray:
        """(texts, classes); features that training did not know say nothing."""
        return np.exp(self._log_probabilities(self._table([counted(self.features, text) for text in texts])))

    def _log_probabilities(self, table: "_Table") -> np.ndarray:
        scores = np.stack([np.bincount(table.rows, table.values * weights[table.columns], table.num_texts)
                           for weights in self.weights.T], axis=1)   # (texts, classes)
        scores[:, ~self.is_known] = -np.inf
        scores -= scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    def _table(self, counts: Sequence[Counter[str]]) -> "_Table":
        columns, values = [], []
        for found in counts:
            known = {self.columns[feature]: count for feature, count in found.items() if feature in self.columns}
            places = np.fromiter(known, np.int64)
            weights = (1 + np.log(np.fromiter(known.values(), np.float64))) * self.rarity[places]
            columns.append(np.append(places, len(self.columns)))
            values.append(np.append(weights / max(float(np.linalg.norm(weights)), 1e-9), 1.0))
        rows = np.repeat(np.arange(len(counts)), [len(places) for places in columns])
        return _Table(rows, np.concatenate(columns), np.concatenate(values), len(counts))


class _Table(NamedTuple):
    """Features of texts: what is not 0, and where."""

    rows: np.ndarray      # (entries,) int64, the texts
    columns: np.ndarray   # (entries,) int64, the features
    values: np.ndarray    # (entries,) float64
    num_texts: int


class Majority:
    """Always the shares of the training rows, so always their most frequent class."""

    def __init__(self, *, num_classes: int):
        self.num_classes = num_classes

    def fit(self, texts: Sequence[str], labels: Sequence[int]) -> "Majority":
        """Count the classes; returns itself."""
        self.shares = np.bincount(np.asarray(labels), minlength=self.num_classes) / len(labels)
        return self

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, classes), every row the same."""
        return np.tile(self.shares, (len(texts), 1))


def fitted_baselines(texts: Sequence[str], labels: Sequence[int], *, num_classes: int) -> dict[
    str, "Majority | NaiveBayes | LogisticRegression"]:
    """All of them, by name, fitted on the same rows; of very many, or long ones, without logistic regression."""
    found: dict[str, Majority | NaiveBayes | LogisticRegression] = {
        "majority": Majority(num_classes=num_classes).fit(texts, labels),
        "Naive Bayes, words": NaiveBayes(words, num_classes=num_classes).fit(texts, labels),
        "Naive Bayes, characters": NaiveBayes(character_ngrams, num_classes=num_classes).fit(texts, labels),
    }
    if (count := sum(min(len(text), LONGEST) for text in texts)) <= MOST:
        regression = LogisticRegression(character_ngrams, num_classes=num_classes)
        found["logistic regression, characters"] = regression.fit(texts, labels)
    else:
        log.info("logistic regression is no baseline here: it would take minutes on %s characters (at most %s)",
                 f"{count:,}", f"{MOST:,}")
    return found
