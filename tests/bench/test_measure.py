"""Laws of measuring: turns are fair, the arithmetic of times is right, a fresh process is fresh."""

import os
import sys
import time

import numpy as np
import pytest
import torch

from llm.bench import measure
from llm.bench.config import MachineConfig
from llm.bench.measure import (
    Ratio,
    Timing,
    Watch,
    in_fresh_process,
    matmul_rate,
    matmul_rate_apart,
    speedup,
    stream,
    take_turns,
    watch_of,
)
from llm.bench.table import format_table
from llm.runtime import World, peak_memory

CPU = torch.device("cpu")
WATCH = Watch(CPU)


def test_programs_take_turns_and_the_first_turns_do_not_count() -> None:
    calls: list[str] = []
    programs = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = take_turns(programs, turns=3, warmup=2, watch=WATCH)
    assert calls == ["a", "b"] * 5
    assert [len(timing.seconds) for timing in times.values()] == [3, 3]


def test_a_time_is_that_of_its_own_program(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def takes(seconds: float) -> None:
        clock[0] += seconds

    times = take_turns({"a": lambda: takes(2.0), "b": lambda: takes(3.0)}, turns=2, warmup=1, watch=WATCH)
    assert times == {"a": Timing((2.0, 2.0)), "b": Timing((3.0, 3.0))}


def test_processor_seconds_do_not_count_sleep() -> None:
    times = [take_turns({"a": lambda: time.sleep(0.05)}, turns=1, warmup=0, watch=Watch(CPU, clock))["a"].median
             for clock in ("wall", "cpu")]   # type: ignore[arg-type]
    assert times[0] >= 0.05 > 0.04 > times[1]


def test_processor_seconds_are_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch_of(MachineConfig(device="cpu", clock="cpu")) == Watch(CPU, "cpu")
    monkeypatch.setattr(measure, "start", lambda **_: World(torch.device("cuda"), "fp32"))
    with pytest.raises(ValueError, match="clock=cpu counts processor seconds"):
        watch_of(MachineConfig(clock="cpu"))


def test_a_busy_moment_moves_neither_median_nor_middle_half() -> None:
    calm, disturbed = Timing((1.0, 1.1, 1.2, 1.3, 1.4)), Timing((1.0, 1.1, 1.2, 1.3, 99.0))
    assert calm.median == disturbed.median == 1.2
    assert calm.middle_half == disturbed.middle_half == (1.1, 1.3)


def test_the_ratio_is_of_the_medians_and_its_spread_of_the_pairs() -> None:
    ours, theirs = Timing((1.0, 2.0, 4.0)), Timing((3.0, 4.0, 20.0))   # pairs: 3, 2, 5
    assert speedup(ours, theirs) == Ratio(2.0, 2.5, 4.0)
    assert speedup(ours, ours) == Ratio(1.0, 1.0, 1.0)
    assert speedup(theirs, ours).median == 1 / speedup(ours, theirs).median


def test_times_of_different_length_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="zip"):
        speedup(Timing((1.0,)), Timing((1.0, 2.0)))


def test_rates_count_the_work_and_divide_by_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MATRIX_SIZE", 16)
    monkeypatch.setattr(measure, "STREAM_BYTES", 2**16)
    monkeypatch.setattr(measure, "take_turns", lambda programs, **_: {
        name: Timing((program() is None or 0.5,)) for name, program in programs.items()})   # runs it: half a second
    assert matmul_rate(WATCH, "fp32") == 2 * 16**3 / 0.5
    read_bytes = []
    monkeypatch.setattr(measure, "few_token_linear", lambda x, weight: read_bytes.append(weight.nbytes))
    read, num_bytes = stream(CPU, "fp32", products=3)
    read()
    assert num_bytes == sum(read_bytes) == 3 * 2**16


@pytest.mark.parametrize(("precision", "has_bf16", "expected"), [
    ("fp32", False, False), ("fp16", True, True), ("bf16", False, True), ("bf16", True, False)])
def test_what_a_cpu_only_emulates_is_refused(
    precision: str, has_bf16: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "has_fast_bf16", lambda device_type: has_bf16)
    assert measure.is_emulated(CPU, precision) == expected   # type: ignore[arg-type]
    if expected:
        for rate, place in ((matmul_rate, WATCH), (stream, CPU)):
            with pytest.raises(ValueError, match=f"{precision} matrix products are only emulated"):
                rate(place, precision)   # type: ignore[operator]


@pytest.mark.slow   # a process that imports torch
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of a process is told in another way")
def test_a_fresh_process_begins_without_the_peak_of_its_parent() -> None:
    large = np.ones(40_000_000)   # 320 MB
    assert peak_memory(CPU) > large.nbytes
    assert in_fresh_process(peak_memory_of, "cpu") < peak_memory(CPU) - large.nbytes / 2


@pytest.mark.slow   # two processes that import torch
def test_the_rate_apart_is_taken_elsewhere_and_refuses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "take_turns", None)   # here nothing could be timed
    assert matmul_rate_apart(WATCH, "fp32") > 0
    with pytest.raises(ValueError, match="fp16 matrix products are only emulated"):
        matmul_rate_apart(WATCH, "fp16")


@pytest.mark.slow   # a process that imports torch
def test_a_process_that_is_killed_ends_in_one_clear_error() -> None:
    with pytest.raises(RuntimeError, match="the process was killed, most likely because memory ran out"):
        in_fresh_process(os._exit, 1)
    with pytest.raises(ZeroDivisionError):
        in_fresh_process(divmod, 1, 0)


def peak_memory_of(device: str) -> int:
    return peak_memory(torch.device(device))


def test_a_column_is_as_wide_as_its_widest_cell() -> None:
    lines = format_table([{"a": "long name", "b": "1"}, {"b": "1,000", "c": "x"}]).splitlines()
    assert lines == ["a              b  c", "long name      1  -", "-          1,000  x"]
