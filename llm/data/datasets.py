"""Datasets: they know their samples' lengths and turn sample ids into a batch of tensors. Only they mask targets.

What happens in which order is not theirs to say: see `plan.py`. Any map-style dataset of your own fits in `Examples`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from llm.losses import IGNORE_INDEX

WIDTH_STEP = 32   # windows of documents are padded to a multiple of it
Batch = Any   # what a dataset hands to its objective; for ours a dict of tensors


class Dataset(Protocol):
    """What the Trainer needs of a dataset."""

    sort_by_length: bool   # whether steps are made of samples of like lengths, see `plan`

    def lengths(self, seed: int, epoch: int) -> np.ndarray:
        """(samples,) int64, the length of every sample of this epoch, in tokens (1 where that means nothing)."""

    def batch(self, sample_ids: np.ndarray, *, seed: int, epoch: int) -> Batch:
        """The samples, stacked; a function of its arguments alone, so that a resumed run sees the same."""


class TokenWindows:
    """A stream of tokens, cut into windows of the training context; every next-token target occurs once an epoch.

    The cuts move by an offset drawn per epoch, so that windows differ between epochs; the short pieces this leaves at
    both ends are kept and padded.

    Args:
        tokens: (count,) ids of any integer type, in memory or memory-mapped.
        context: T, targets in a full window, >= 1.
        is_shifted: draw an offset per epoch (training); validation always cuts at multiples of the context.
        document_end: the end-of-text id; if given, each window holds one document behind the end of the one before,
            so that no text ever sees another (a document longer than the context is cut). Nothing is then shifted.
        vocab_size: V; ids beyond it are refused when they are met. None checks nothing.

    Raises:
        ValueError: if there are fewer than 2 tokens.

    Example:
        >>> windows = TokenWindows(np.arange(6), context=3, is_shifted=False)
        >>> windows.batch(np.array([0, 1]), seed=0, epoch=0)["targets"]
        tensor([[   1,    2,    3],
                [   4,    5, -100]])
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        context: int,
        is_shifted: bool = True,
        document_end: int | None = None,
        vocab_size: int | None = None,
    ):
        if len(tokens) < 2:
            raise ValueError(f"the stream has {len(tokens)} tokens; it needs 2 or more, one to read and one to predict")
        if context < 1:
            raise ValueError(f"context={context} must be at least 1")
        self.tokens = tokens
        self.context = context
        self.is_shifted = is_shifted
        self.vocab_size = vocab_size
        self.cuts = None if document_end is None else _document_cuts(tokens, context, document_end)
        self.sort_by_length = document_end is not None

    def lengths(self, seed: int, epoch: int) -> np.ndarray:
        if self.cuts is not None:
            return np.diff(self.cuts)
        first, last = self._first_cut(seed, epoch), len(self.tokens) - 1
        num_windows = 1 + max(0, -(-(last - first) // self.context))
        return np.diff(self._borders(np.arange(num_windows + 1), seed, epoch))

    def batch(self, sample_ids: np.ndarray, *, seed: int, epoch: int) -> dict[str, Tensor]:
        """`input_ids` and `targets`, (B, T) int64; T is the longest of these windows, for documents rounded up."""
        starts, ends = self._borders(sample_ids, seed, epoch), self._borders(sample_ids + 1, seed, epoch)
        width = (ends - starts).max()
        if self.cuts is not None:   # few different widths: CPU kernels build and keep a program for each
            width = min(-(-width // WIDTH_STEP) * WIDTH_STEP, self.context)
        places = starts[:, None] + np.arange(width)   # (B, T)
        is_real = places < ends[:, None]
        places = np.minimum(places, ends[:, None] - 1)
        inputs = self.tokens[places].astype(np.int64)
        targets = self.tokens[places + 1].astype(np.int64)
        for found in (min(inputs.min(), targets.min()), max(inputs.max(), targets.max())):
            if self.vocab_size is not None and not 0 <= found < self.vocab_size:
                raise ValueError(f"the data hold id {found}, but the vocabulary has only {self.vocab_size}; "
                                 "the token file belongs to another tokenizer")
        return {
            "input_ids": torch.from_numpy(np.where(is_real, inputs, 0)),
            "targets": torch.from_numpy(np.where(is_real, targets, IGNORE_INDEX)),
        }

    def _first_cut(self, seed: int, epoch: int) -> int:
        if not self.is_shifted:
            return self.context
        return int(np.random.Generator(np.random.PCG64([seed, epoch, 1])).integers(1, self.context + 1))

    def _borders(self, numbers: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Where windows of these numbers begin: 0, first cut, first cut + T, ..., count - 1."""
        if self.cuts is not None:
            return self.cuts[numbers]
        cuts = self._first_cut(seed, epoch) + (numbers - 1) * self.context
        return np.clip(cuts, 0, len(self.tokens) - 1)


def _document_cuts(tokens: np.ndarray, context: int, document_end: int) -> np.ndarray:
    """Where windows of one document begin: at each end of a document, and inside those longer than the context."""
    last = len(tokens) - 1
    ends = np.unique(np.concatenate(([0], np.flatnonzero(tokens[:-1] == document_end), [last])))
    counts = -(-np.diff(ends) // context)   # windows of each document
    numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)   # of a window in its document
    return np.append(np.repeat(ends[:-1], counts) + numbers * context, last)


class Examples:
    """Any sequence of your own samples, for your own module and objective in our Trainer.

    Args:
        samples: anything with `len` and integer indexing.
        collate: turns a list of samples into a batch; default torch's `default_collate`.

    Example:
        >>> examples = Examples([(torch.tensor(1.0), 2), (torch.tensor(3.0), 4)])
        >>> examples.batch(np.array([1, 0]), seed=0, epoch=0)
        [tensor([3., 1.]), tensor([4, 2])]
    """

    def __init__(self, samples: Sequence[Any], *, collate: Callable[[list[Any]], Batch] = default_collate):
        if not len(samples):
            raise ValueError("there are no samples")
        self.samples = samples
        self.sort_by_length = False
        self.collate = collate

    def lengths(self, seed: int, epoch: int) -> np.ndarray:
        return np.ones(len(self.samples), dtype=np.int64)

    def batch(self, sample_ids: np.ndarray, *, seed: int, epoch: int) -> Batch:
        return self.collate([self.samples[int(sample_id)] for sample_id in sample_ids])


class LabelledTexts:
    """Texts as ids, each with the number of its class; steps are made of texts of like lengths.

    Args:
        texts: the ids of each text, one at least.
        labels: (texts,) class numbers.
        has_targets: let batches also carry `targets`, the next token of each place, for a language loss.
        version: gives the ids of a text, by its number, as they are read in one epoch; default those of `texts`.

    Raises:
        ValueError: if there are no texts, one is empty, or labels are missing.

    Example:
        >>> texts = LabelledTexts([[1, 2, 3], [4]], [0, 1])
        >>> texts.batch(np.array([0, 1]), seed=0, epoch=0)["lengths"]
        tensor([3, 1])
    """

    sort_by_length = True

    def __init__(self, texts: Sequence[Sequence[int]], labels: Sequence[int], *, has_targets: bool = False,
                 version: Callable[[int, np.random.Generator], Sequence[int]] | None = None):
        if not len(texts):
            raise ValueError("there are no texts")
        if len(texts) != len(labels):
            raise ValueError(f"{len(texts)} texts and {len(labels)} labels; each text needs one")
        self.texts = [np.asarray(text, dtype=np.int64) for text in texts]
        if empty := [number for number, text in enumerate(self.texts) if not len(text)]:
            raise ValueError(f"text {empty[0]} has no token; leave it out")
        self.labels = np.asarray(labels, dtype=np.int64)
        self.has_targets = has_targets
        self.version = version
        self._made: tuple[tuple[int, int], list[np.ndarray]] | None = None   # of which (seed, epoch), and what

    def lengths(self, seed: int, epoch: int) -> np.ndarray:
        return np.array([len(text) for text in self._read(seed, epoch)])

    def batch(self, sample_ids: np.ndarray, *, seed: int, epoch: int) -> dict[str, Tensor]:
        """`input_ids` (B, T), `lengths` and `labels` (B,), all int64; T is the longest of these texts."""
        texts = self._read(seed, epoch)
        chosen = [texts[sample_id] for sample_id in sample_ids]
        lengths = np.array([len(text) for text in chosen])
        is_real = np.arange(lengths.max()) < lengths[:, None]   # (B, T)
        inputs = np.zeros(is_real.shape, dtype=np.int64)
        inputs[is_real] = np.concatenate(chosen)
        found = {"input_ids": inputs, "lengths": lengths, "labels": self.labels[sample_ids]}
        if self.has_targets:
            has_next = np.arange(lengths.max()) < lengths[:, None] - 1
            found["targets"] = np.where(has_next, np.roll(inputs, -1, axis=1), IGNORE_INDEX)
        return {name: torch.from_numpy(value) for name, value in found.items()}

    def _read(self, seed: int, epoch: int) -> list[np.ndarray]:
        """The texts as they are read in this epoch; chance comes from (seed, epoch, text number)."""
        if self.version is None:
            return self.texts
        if self._made is None or self._made[0] != (seed, epoch):
            made = [self.version(number, np.random.Generator(np.random.PCG64([seed, epoch, number])))
                    for number in range(len(self.texts))]
            self._made = (seed, epoch), [np.asarray(ids, dtype=np.int64) for ids in made]
        return self._made[1]
