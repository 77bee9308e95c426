"""Laws of the plan: an epoch takes each sample once, in an order that (seed, epoch) alone decides."""

import itertools

import numpy as np
import pytest

from llm.data.plan import plan


def steps(count: int = 23, *, batch_size: int = 5, seed: int = 1, epoch: int = 0) -> list[list[int]]:
    return [step.tolist() for step in plan(np.ones(count), batch_size=batch_size, seed=seed, epoch=epoch)]


def order(planned: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(planned))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 22, 23, 24])
def test_every_sample_comes_once_and_only_the_last_step_is_short(batch_size: int) -> None:
    planned = steps(batch_size=batch_size)
    assert sorted(order(planned)) == list(range(23))
    assert all(len(step) == batch_size for step in planned[:-1])
    assert len(planned[-1]) == (23 % batch_size or batch_size)


def test_the_order_is_new_for_each_epoch_and_seed_and_the_same_for_the_same() -> None:
    orders = {tuple(order(steps(seed=seed, epoch=epoch))) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert steps(seed=3, epoch=2) == steps(seed=3, epoch=2)


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    assert order(steps(batch_size=4)) == order(steps(batch_size=7))


def test_the_order_is_the_documented_one() -> None:
    """A saved run is resumed by computing the plan again, so it may not change between versions."""
    expected = np.random.Generator(np.random.PCG64([7, 3])).permutation(23).tolist()
    assert order(steps(seed=7, epoch=3)) == expected


def test_sorted_by_length_every_sample_still_comes_once_and_little_of_a_step_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1003)
    planned = plan(lengths, batch_size=10, seed=1, epoch=0, sort_by_length=True)
    assert sorted(np.concatenate(planned).tolist()) == list(range(1003))
    assert sorted(map(len, planned)) == [3] + [10] * 100
    padded = sum(len(step) * lengths[step].max() for step in planned)
    assert padded < 1.15 * lengths.sum()
    assert sum(len(step) * lengths[step].max() for step in plan(lengths, batch_size=10, seed=1, epoch=0)) > (
        1.6 * lengths.sum())


def test_sorted_by_length_short_and_long_steps_come_in_a_random_order() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    means = [lengths[step].mean() for step in plan(lengths, batch_size=10, seed=1, epoch=0, sort_by_length=True)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3
    again, other = (plan(lengths, batch_size=10, seed=1, epoch=epoch, sort_by_length=True) for epoch in (0, 1))
    assert np.concatenate(again).tolist() != np.concatenate(other).tolist()
