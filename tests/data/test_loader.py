"""Laws of the loader: processes and micro-batches share out the steps of the plan, and change nothing in them."""

import itertools

import numpy as np
import pytest

from llm.data.datasets import Examples, TokenWindows
from llm.data.loader import Loader
from llm.losses import IGNORE_INDEX

COUNT, BATCH = 27, 8   # the last step has 3 samples


def loader(*, rank: int = 0, world_size: int = 1, accumulate: int = 1) -> Loader:
    examples = Examples(range(COUNT), collate=list)
    return Loader(examples, batch_size=BATCH, accumulate=accumulate, seed=1, rank=rank, world_size=world_size)


def shared_out(place: int, *, world_size: int, accumulate: int) -> list[list[list[int]]]:
    """The samples of each process's micro-batches; an empty one has none."""
    ranks = [loader(rank=rank, world_size=world_size, accumulate=accumulate) for rank in range(world_size)]
    return [[[] if micro.is_empty else micro.batch for micro in one.step(0, place)] for one in ranks]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 4, 8])
def test_processes_and_micro_batches_take_the_same_steps_once_and_disjointly(world_size: int, accumulate: int) -> None:
    for place in range(loader().num_steps(0)):
        [[whole]] = shared_out(place, world_size=1, accumulate=1)
        ranks = shared_out(place, world_size=world_size, accumulate=accumulate)
        assert list(itertools.chain.from_iterable(itertools.chain.from_iterable(ranks))) == whole


@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_every_process_runs_equally_many_micro_batches(world_size: int, accumulate: int) -> None:
    for place in range(loader().num_steps(0)):
        ranks = shared_out(place, world_size=world_size, accumulate=accumulate)
        assert len({len(rank) for rank in ranks}) == 1
        assert 1 <= len(ranks[0]) <= accumulate


@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_a_single_process_never_runs_an_empty_micro_batch(accumulate: int) -> None:
    for place in range(loader().num_steps(0)):
        [micro_batches] = shared_out(place, world_size=1, accumulate=accumulate)
        sizes = [len(batch) for batch in micro_batches]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_an_empty_micro_batch_still_holds_a_sample_to_run_on() -> None:
    last = [loader(rank=rank, world_size=5).step(0, 3) for rank in range(5)]   # 3 samples for 5 processes
    assert [micro.is_empty for [micro] in last] == [False, False, False, True, True]
    assert all(len(micro.batch) == 1 for [micro] in last)


def test_the_short_last_step_is_kept() -> None:
    whole = loader()
    assert whole.num_steps(0) == 4
    assert [len(whole.step(0, place)[0].batch) for place in range(4)] == [8, 8, 8, 3]


def test_steps_may_be_asked_for_in_any_order() -> None:
    """What a resumed run sees does not depend on what was read before."""
    used, fresh = loader(), loader()
    for epoch, place in [(1, 3), (0, 2), (2, 0), (0, 0)]:
        used.step(epoch, place)
    assert used.step(1, 2) == fresh.step(1, 2)


def test_the_tokens_of_a_step_are_its_targets() -> None:
    whole = Loader(TokenWindows(np.arange(100), context=7), batch_size=4, seed=1)
    for epoch in range(3):
        counted = [whole.num_tokens(epoch, place) for place in range(whole.num_steps(epoch))]
        targets = [micro.batch["targets"] for place in range(len(counted)) for micro in whole.step(epoch, place)]
        assert counted == [int((part != IGNORE_INDEX).sum()) for part in targets]
        assert sum(counted) == 99
