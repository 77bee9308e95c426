"""What a fair time is: taken in turns, told as a median with its spread, held against the limits of the machine.

Two programs timed one after the other tell more about what else the machine did meanwhile than about themselves.
So they take turns, A B A B, in one process; each pair of neighbours gives a ratio, and the spread of these ratios
says how far to trust that of the medians. Read next: `steps.py`.
"""

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import accumulate
from multiprocessing import get_context
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from llm.bench.config import Clock, MachineConfig
from llm.nn.product import few_token_linear
from llm.runtime import DTYPES, Precision, World, has_fast_bf16, start

log = logging.getLogger(__name__)

Value = TypeVar("Value")

MATRIX_SIZE = 2048              # large enough that the product, not the call, is timed
STREAM_BYTES = 256 * 2**20      # larger than the caches that weights would have to themselves


class Watch(NamedTuple):
    """Reads the time of a device."""

    device: torch.device
    clock: Clock = "wall"

    def now(self) -> float:
        """Seconds, as soon as the device has done all that it was asked to do."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() if self.clock == "wall" else time.process_time()


class Timing(NamedTuple):
    """Seconds of the same thing, time and again."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one: a machine that was busy for a while does not move it."""
        return float(np.median(self.seconds))

    @property
    def middle_half(self) -> tuple[float, float]:
        """The quartiles, between which half of the times lie."""
        return _quartiles(self.seconds)


class Ratio(NamedTuple):
    """How many times as fast the first is as the second."""

    median: float        # of the two medians
    low: float           # quartiles of the ratios of neighbouring turns
    high: float


def watch_of(machine: MachineConfig) -> Watch:
    """Set the machine up as asked for, and the watch that goes with it.

    Raises:
        ValueError: for a device that is not there, or processor seconds of a device that is no processor.
    """
    device = start(device=machine.device, threads=machine.threads).device
    if machine.clock == "cpu" and device.type != "cpu":
        raise ValueError(f"clock=cpu counts processor seconds, which say nothing about work on {device}; leave it out")
    return Watch(device, machine.clock)


def take_turns(
    programs: Mapping[str, Callable[[], object]], *, turns: int, warmup: int, watch: Watch
) -> dict[str, Timing]:
    """Time each program once a turn, in order.

    Args:
        programs: name to what is timed.
        turns: how often each is timed, >= 1.
        warmup: untimed turns before, in which kernels are chosen and memory is found.
        watch: tells the time.

    Example:
        >>> watch = Watch(torch.device("cpu"))
        >>> times = take_turns({"a": lambda: None, "b": lambda: None}, turns=3, warmup=1, watch=watch)
        >>> [(name, len(timing.seconds)) for name, timing in times.items()]
        [('a', 3), ('b', 3)]
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(warmup + turns):
        for name, program in programs.items():
            started = watch.now()
            program()
            elapsed_s = watch.now() - started
            if turn >= warmup:
                seconds[name].append(elapsed_s)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def speedup(ours: Timing, theirs: Timing) -> Ratio:
    """How many times as fast as theirs ours is: above 1 is faster.

    Args:
        ours, theirs: of the same `take_turns`, so that equal places are neighbours.

    Example:
        >>> speedup(Timing((1.0, 1.0, 2.0)), Timing((2.0, 3.0, 4.0)))
        Ratio(median=3.0, low=2.0, high=2.5)
    """
    pairs = [their / our for our, their in zip(ours.seconds, theirs.seconds, strict=True)]
    return Ratio(theirs.median / ours.median, *_quartiles(pairs))


def matmul_rate(watch: Watch, precision: Precision, *, products: int = 5) -> float:
    """FLOP/s of square matrix products, the most that a training step can hope for; median of a few.

    Raises:
        ValueError: for a precision that is only emulated, which could take minutes.
    """
    refuse_emulated(watch.device, precision)
    left, right = (_noise(MATRIX_SIZE, MATRIX_SIZE, watch.device, precision) for _ in range(2))
    timing = take_turns({"product": lambda: left @ right}, turns=products, warmup=1, watch=watch)["product"]
    return 2 * MATRIX_SIZE**3 / timing.median


def matmul_rate_apart(watch: Watch, precision: Precision) -> float:
    """`matmul_rate` of a process of its own, which leaves no trace in the one where programs are timed.

    Freeing large matrices raises the size up to which glibc keeps freed memory for later, and a program that pays for
    fresh pages in every step pays no more: for transformers' GPT-2 of 0.8M parameters that was 2,300 to 3,300 page
    faults a step, a tenth of its time.
    """
    return in_fresh_process(_matmul_rate_with, torch.get_num_threads(), watch, precision)


def _matmul_rate_with(threads: int, watch: Watch, precision: Precision) -> float:
    torch.set_num_threads(threads)
    return matmul_rate(watch, precision)


def stream(device: torch.device, precision: Precision, *, products: int = 2) -> tuple[Callable[[], object], int]:
    """What reads weights as writing token by token does, in matrix-vector products, and how many bytes it reads.

    The most that writing can hope for; to be timed in turns with it, since neighbours share the memory's speed.

    Raises:
        ValueError: for a precision that is only emulated.
    """
    refuse_emulated(device, precision)
    width = 1024
    matrix = _noise(STREAM_BYTES // DTYPES[precision].itemsize // width, width, device, precision)
    vector = _noise(1, width, device, precision)[None]

    def read() -> None:
        for _ in range(products):
            few_token_linear(vector, matrix)   # the fastest we know

    return read, products * matrix.numel() * matrix.element_size()


def refuse_emulated(device: torch.device, precision: Precision) -> None:
    """ValueError for a precision whose matrix products the device only emulates."""
    if is_emulated(device, precision):
        raise ValueError(f"{precision} matrix products are only emulated on this {device.type}, up to hundreds of "
                         "times slower than fp32; measure --precision fp32")


def is_emulated(device: torch.device, precision: Precision) -> bool:
    """Whether the device has no matrix products of this precision: fp16 on every CPU, bf16 on those without it."""
    if precision == "fp16":
        return device.type == "cpu"
    return precision == "bf16" and device.type != "mps" and not has_fast_bf16(device.type)


def worlds(precisions: Sequence[Precision | Literal["auto"]], machine: MachineConfig) -> list[World]:
    """Where to compute in each precision that was asked for; one that is only emulated is left out, with a warning.

    Raises:
        ValueError: if none is left.
    """
    found = [start(device=machine.device, precision=precision, threads=machine.threads) for precision in precisions]
    for world in found:
        if is_emulated(world.device, world.precision):
            log.warning("%s is left out: its matrix products are only emulated here, up to hundreds of times slower "
                        "than fp32", world.precision)
    measured = [world for world in found if not is_emulated(world.device, world.precision)]
    if not measured:
        raise ValueError("there is nothing left to measure; add --precision fp32")
    return measured


def in_fresh_process(function: Callable[..., Value], *arguments: object) -> Value:
    """Call a function in a process of its own, where nothing was allocated before.

    Args:
        function: importable by name, as are its arguments and result by pickling.
        arguments: its arguments.

    Raises:
        RuntimeError: if the process is killed, as it is when memory runs out; besides whatever the function raises.

    Example:
        >>> in_fresh_process(abs, -3)
        3
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise RuntimeError("the process was killed, most likely because memory ran out") from error


def peak_allocation(function: Callable[[], object], device: torch.device) -> int:
    """By how many bytes the tensors that exist grow at most while a function runs, as torch's allocator counts them.

    Unlike the resident memory of a process it does not depend on what was freed before and is used again.

    Example:
        >>> peak_allocation(lambda: torch.zeros(1000).add(1), torch.device("cpu")) // 8000   # both exist for a moment
        1
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        function()
    results: Any = profiler.profiler   # each allocation in its order stands only in what torch makes its tables from
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())), initial=0))


def describe_machine(watch: Watch) -> dict[str, Any]:
    """What the times belong to: the processor or card, how many threads compute, and the clock."""
    name = (torch.cuda.get_device_name(watch.device) if watch.device.type == "cuda" else
            torch.cpu.get_capabilities().get("cpu_name") or platform.processor())
    return {"device": str(watch.device), "name": name, "threads": torch.get_num_threads(), "clock": watch.clock}


def _noise(rows: int, columns: int, device: torch.device, precision: Precision) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator).to(device, DTYPES[precision])


def _quartiles(values: "list[float] | tuple[float, ...]") -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)
