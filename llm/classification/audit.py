"""What to know of the rows before believing a score: the same text on two sides, contradictions, classes, lengths."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llm.classification.tables import shares, table
from llm.data.division import skeleton
from llm.data.labelled import Labelled

log = logging.getLogger(__name__)

MIN_WORDS = 5        # shorter texts are near duplicates only with equal skeletons
OVERLAP = 0.8        # of the words of two texts


class Overlap(NamedTuple):
    """Rows of a later part whose text also stands in an earlier one."""

    earlier: str
    later: str
    exact: int            # to the letter, but for white space around
    near: int             # besides: equal but for digits, case and punctuation, or with most words in common
    contradictions: int   # of both, those with another label


def copies(rows: Labelled, others: Labelled) -> np.ndarray:
    """(rows,) for each row how its text occurs in the others: 2 exactly, 1 nearly, 0 not; negative: with other labels.

    Near is an equal `skeleton`, or 80% of all different words in common (Jaccard) where both have 5 or more.
    """
    exact: dict[str, set[str]] = defaultdict(set)
    near: dict[str, set[str]] = defaultdict(set)
    for text, label in zip(others.texts, others.labels, strict=True):
        exact[text.strip()].add(label)
        near[skeleton(text)].add(label)
    similar = _Similar(list(near))
    found = np.zeros(len(rows), dtype=np.int64)
    for number, (text, label) in enumerate(zip(rows.texts, rows.labels, strict=True)):
        if labels := exact.get(text.strip()):
            found[number] = 2 if label in labels else -2
        elif (twin := similar.find(skeleton(text))) is not None:
            found[number] = 1 if label in near[twin] else -1
    return found


class _Similar:
    """Finds a skeleton with nearly the same words, by looking only at those that share one of the rarer words."""

    def __init__(self, skeletons: Sequence[str]):
        self.words = {text: frozenset(text.split()) for text in skeletons}
        self.counts: dict[str, int] = defaultdict(int)
        for words in self.words.values():
            for word in words:
                self.counts[word] += 1
        self.homes: dict[str, list[str]] = defaultdict(list)
        for text, words in self.words.items():
            for word in self._rarest(words):
                self.homes[word].append(text)

    def find(self, text: str) -> str | None:
        if text in self.words:
            return text
        words = frozenset(text.split())
        if len(words) < MIN_WORDS:
            return None
        candidates = {other for word in words for other in self.homes.get(word, ())}
        for other in candidates:
            theirs = self.words[other]
            if len(theirs) >= MIN_WORDS and len(words & theirs) >= OVERLAP * len(words | theirs):
                return other
        return None

    def _rarest(self, words: frozenset[str]) -> list[str]:
        # sets that share 80% of their union lack at most 20% of each other's words: one word more must be shared
        ordered = sorted(words, key=lambda word: (self.counts[word], word))
        return ordered[: int((1 - OVERLAP) * len(words)) + 1]


def overlaps(parts: Mapping[str, Labelled]) -> list[Overlap]:
    """Every pair of parts, in their order."""
    names = [name for name, part in parts.items() if len(part)]
    found = []
    for place, later in enumerate(names):
        for earlier in names[:place]:
            kinds = copies(parts[later], parts[earlier])
            found.append(Overlap(earlier, later, int((abs(kinds) == 2).sum()), int((abs(kinds) == 1).sum()),
                                 int((kinds < 0).sum())))
    return found


def contradictions(rows: Labelled) -> int:
    """Texts that stand in the same part with more than one label."""
    labels: dict[str, set[str]] = defaultdict(set)
    for text, label in zip(rows.texts, rows.labels, strict=True):
        labels[text.strip()].add(label)
    return sum(len(found) > 1 for found in labels.values())


def repeated(rows: Labelled) -> int:
    """Rows whose text stands in the same part before."""
    return len(rows) - len({text.strip() for text in rows.texts})


def tell(parts: Mapping[str, Labelled], lengths: Mapping[str, Sequence[int]], num_cut: Mapping[str, int]) -> str:
    """The audit in Markdown; what should worry the reader is also logged as a warning.

    Args:
        parts: the rows.
        lengths: of each part the tokens that are read of each row.
        num_cut: of each part the rows that are longer than what is read.
    """
    about = []
    for name, rows in parts.items():
        if len(rows):
            low, middle, high = (int(value) for value in np.percentile(lengths[name], [0, 50, 100]))
            about.append([name, f"{len(rows):,}", shares(rows), str(repeated(rows)), str(contradictions(rows)),
                          f"{low} / {middle} / {high}", str(num_cut[name])])
    between = overlaps(parts)
    for overlap in between:
        if overlap.exact or overlap.near:
            log.warning("texts of %s that also stand in %s: %d, and %d more nearly do; scores on the others are told "
                        "too", overlap.later, overlap.earlier, overlap.exact, overlap.near)
    return "\n\n".join([
        table(["part", "rows", "classes", "repeated rows", "contradictory texts", "tokens read: least / median / most",
               "rows cut"], about),
        table(["earlier part", "later part", "same text", "nearly the same", "of these with another label"],
              [[overlap.earlier, overlap.later, *map(str, overlap[2:])] for overlap in between]),
    ])
