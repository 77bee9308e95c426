"""What a classifier learns from besides labels: the mean belief of several that have learned the labels before.

Each of a few small classifiers from the same thousand rows errs where the others do not, and logistic regression, which
knows short stretches of characters and not where they stand, errs elsewhere again. Their mean errs less than any of
them, and one model can learn it. About the rows, which all know by heart, they say little more than the labels do; so
it also learns what they think of texts that have no label, spliced from those that have one.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llm.models.classifier import Classifier
from llm.tokenizers.ends import ends
from llm.tokenizers.tokenizer import Tokenizer


class Believer(Protocol):
    """Who has a belief about texts, such as `LogisticRegression`."""

    def probabilities(self, texts: Sequence[str]) -> np.ndarray: ...


class Teachers:
    """The mean belief of classifiers and of others about a batch of texts, each having one vote.

    Args:
        classifiers: in evaluation mode, with the tokenizer's ids.
        others: who reads the texts themselves.
        tokenizer: what the texts were cut with.

    Paper: Hinton et al. 2015, arXiv:1503.02531, section 2, at temperature 1.

    Example:
        >>> from llm.classification.baselines import LogisticRegression, words
        >>> tokenizer = Tokenizer.byte_level()
        >>> regression = LogisticRegression(words, num_classes=2).fit(["see you", "win cash"], [0, 1])
        >>> batch = {"input_ids": torch.tensor([tokenizer.encode("cash")]), "lengths": torch.tensor([4])}
        >>> Teachers([], [regression], tokenizer)(batch).argmax().item()
        1
    """

    def __init__(self, classifiers: Sequence[Classifier], others: Sequence[Believer], tokenizer: Tokenizer):
        self.classifiers = classifiers
        self.others = others
        self.tokenizer = tokenizer
        self.ends = ends(tokenizer)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, classes) float32, from the batch's `input_ids` and `lengths`."""
        input_ids, lengths = batch["input_ids"], batch["lengths"]
        told = [model(input_ids, lengths).scores.float().softmax(-1) for model in self.classifiers]
        if self.others:
            rows = [ids[:length] for ids, length in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
            texts = [self.tokenizer.decode(row[len(self.ends.before) : len(row) - len(self.ends.behind)])
                     for row in rows]
            told += [torch.from_numpy(other.probabilities(texts)).to(input_ids.device, torch.float32)
                     for other in self.others]
        return torch.stack(told).mean(0)


class Splices:
    """Each text, and as many again that are the beginning of one and the end of another, cut anywhere.

    Args:
        version: gives the ids of a text, by its number, as chance wants them.
        count: how many texts there are; the numbers from there on are those of splices.
        tokenizer: whose tokens around a text stay around a splice.
        context: tokens of a splice that are read at most, with those around it.

    Example:
        >>> spliced = Splices(lambda number, rng: [[1, 2], [7, 8, 9]][number], 2, Tokenizer.byte_level(), context=4)
        >>> [spliced(number, np.random.default_rng(10)) for number in range(4)]
        [[1, 2], [7, 8, 9], [1, 2, 8, 9], [7, 8, 9, 8]]
    """

    def __init__(self, version: Callable[[int, np.random.Generator], Sequence[int]], count: int, tokenizer: Tokenizer,
                 *, context: int):
        self.version = version
        self.count = count
        self.ends = ends(tokenizer)
        self.room = context - len(self.ends.around([]))

    def __call__(self, number: int, rng: np.random.Generator) -> list[int]:
        """The ids of a text, or of a splice that begins, if at all, as text `number - count` does; one id at least."""
        if number < self.count:
            return list(self.version(number, rng))
        first, second = self._bare(number - self.count, rng), self._bare(int(rng.integers(self.count)), rng)
        begin, end = first[: rng.integers(len(first) + 1)], second[rng.integers(len(second) + 1) :]
        return self.ends.around((begin + end)[: self.room] or first)

    def _bare(self, number: int, rng: np.random.Generator) -> list[int]:
        """The ids of a text without those around it."""
        ids = list(self.version(number, rng))
        return ids[len(self.ends.before) : len(ids) - len(self.ends.behind)]
