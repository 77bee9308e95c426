"""Laws of the learning rate: a pure function that starts above zero, peaks at 1 and ends where it was told to."""

from itertools import pairwise
from typing import Any

import pytest

from llm.train.config import TrainConfig
from llm.train.schedule import lr_factor, warmup_steps

SCHEDULES = ("cosine", "linear", "constant", "wsd")


def factors(total: int, **settings: Any) -> list[float]:
    config = TrainConfig(**settings)
    return [lr_factor(step, total, config) for step in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 5, 19])
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1, 1.0])
def test_it_rises_to_the_peak_and_never_again(schedule: str, warmup: int, min_lr_ratio: float) -> None:
    values = factors(20, schedule=schedule, warmup=warmup, min_lr_ratio=min_lr_ratio)
    assert values[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    after = [1.0, *values[warmup:]]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(after))
    assert all(value > 0 for value in values[:-1])
    assert values[-1] == pytest.approx(1.0 if schedule == "constant" else min_lr_ratio)


def test_halfway_through_cosine_and_linear_are_in_the_middle() -> None:
    for schedule in ("cosine", "linear"):
        assert factors(20, schedule=schedule, warmup=0, min_lr_ratio=0.2)[9] == pytest.approx(0.6)


def test_wsd_stays_at_the_peak_until_its_last_part() -> None:
    values = factors(20, schedule="wsd", warmup=2, decay_fraction=0.25, min_lr_ratio=0.0)
    assert values[1:15] == [1.0] * 14
    assert values[15:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])


def test_the_default_warmup_is_a_twentieth_but_at_most_100() -> None:
    assert [warmup_steps(TrainConfig(), total) for total in (1, 19, 20, 400, 2000, 10**6)] == [0, 0, 1, 20, 100, 100]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_is_enough_for_every_schedule(schedule: str) -> None:
    assert len(factors(1, schedule=schedule)) == 1


@pytest.mark.parametrize("warmup", [10, 11])
def test_a_warmup_that_leaves_nothing_is_refused(warmup: int) -> None:
    with pytest.raises(ValueError, match=f"warmup={warmup} is not shorter than the run of 10 steps"):
        factors(10, warmup=warmup)
