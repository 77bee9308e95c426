"""What a classifier must beat: the most frequent class, and Naive Bayes on words and on character n-grams.

They are fitted on the same training rows in a blink, and on short texts they are strong. Numpy only.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

ALPHA = 0.5   # added to every count; chosen by nobody, so that no data set is favoured


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
            counts[label].update(self.features(text))
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
            counts = Counter(feature for feature in self.features(text) if feature in self.columns)
            known = [self.columns[feature] for feature in counts]
            scores.append(self.prior + self.weights[:, known] @ np.fromiter(counts.values(), np.float64))
        table = np.array(scores) - np.max(scores, axis=1, keepdims=True)
        return np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)


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
    str, "Majority | NaiveBayes"]:
    """All of them, by name, fitted on the same rows."""
    return {
        "majority": Majority(num_classes=num_classes).fit(texts, labels),
        "Naive Bayes, words": NaiveBayes(words, num_classes=num_classes).fit(texts, labels),
        "Naive Bayes, characters": NaiveBayes(character_ngrams, num_classes=num_classes).fit(texts, labels),
    }
