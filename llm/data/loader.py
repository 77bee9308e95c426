"""Cuts one optimizer step of the plan into micro-batches for this process."""

from typing import NamedTuple

import numpy as np

from llm.data.datasets import Batch, Dataset
from llm.data.plan import plan


class MicroBatch(NamedTuple):
    """One forward and backward. An empty one repeats a sample and weighs nothing: it keeps processes in step."""

    batch: Batch
    is_empty: bool


class Loader:
    """The micro-batches of any optimizer step, addressed by epoch and place.

    Args:
        dataset: where samples come from.
        batch_size: samples in an optimizer step over all processes.
        accumulate: micro-batches that each process cuts its share into.
        seed: of the run.
        rank, world_size: which process this is, and of how many.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, accumulate: int = 1, seed: int, rank: int = 0,
                 world_size: int = 1):
        self.dataset = dataset
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._planned: tuple[int, list[np.ndarray]] = (-1, [])     # of the epoch at hand
        self._measured: tuple[int, np.ndarray] = (-1, np.empty(0))

    def num_samples(self, epoch: int) -> int:
        """Samples in an epoch."""
        return len(self._lengths(epoch))

    def num_steps(self, epoch: int) -> int:
        """Optimizer steps in an epoch."""
        return -(-self.num_samples(epoch) // self.batch_size)

    def num_tokens(self, epoch: int, place: int) -> int:
        """Tokens of one step over all processes, by the dataset's lengths."""
        return int(self._lengths(epoch)[self._plan(epoch)[place]].sum())

    def step(self, epoch: int, place: int) -> list[MicroBatch]:
        """This process's micro-batches of one step; every process gets equally many."""
        sample_ids = self._plan(epoch)[place]
        count = min(self.accumulate, -(-len(sample_ids) // self.world_size))
        parts = np.array_split(sample_ids, count * self.world_size)[self.rank * count : (self.rank + 1) * count]
        chosen = [(part if len(part) else sample_ids[:1]) for part in parts]
        batches = [self.dataset.batch(ids, seed=self.seed, epoch=epoch) for ids in chosen]
        return [MicroBatch(batch, is_empty=not len(part)) for batch, part in zip(batches, parts, strict=True)]

    def _lengths(self, epoch: int) -> np.ndarray:
        if self._measured[0] != epoch:
            self._measured = (epoch, self.dataset.lengths(self.seed, epoch))
        return self._measured[1]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        if self._planned[0] != epoch:
            steps = plan(self._lengths(epoch), batch_size=self.batch_size, seed=self.seed, epoch=epoch,
                         sort_by_length=self.dataset.sort_by_length)
            self._planned = (epoch, steps)
        return self._planned[1]
