"""`bench train`: the speed and the memory of whole training steps, beside the machine's limit and transformers."""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from llm.bench.config import TrainBenchConfig
from llm.bench.measure import (
    Timing,
    Watch,
    in_fresh_process,
    matmul_rate_apart,
    speedup,
    take_turns,
    watch_of,
    worlds,
)
from llm.bench.steps import Job, build_step, head_memory, step_memory, transformers
from llm.bench.table import format_table
from llm.bench.trace import Breakdown, profile_step
from llm.models.config import ModelConfig
from llm.models.profile import flops_per_token, format_bytes

log = logging.getLogger(__name__)

WARMUP = 3            # steps in which kernels are chosen and code is compiled
PROFILED_STEPS = 5
DEFAULT_VOCABULARY = 4096

Row = dict[str, Any]


def bench_training(config: TrainBenchConfig, folder: Path) -> list[Row]:
    """Measure every combination asked for; traces go to the folder.

    Returns:
        A row for each program of each combination, in unrounded numbers; what was not measured is None.

    Raises:
        ValueError: if nothing that was asked for can be measured here, or transformers is wanted and missing.
    """
    if config.against:
        transformers()   # complains before anything is measured
    watch = watch_of(config.machine)
    rows: list[Row] = []
    for jobs in combinations(config):
        rows += measure_together(jobs, config, watch, folder)
    return rows


def combinations(config: TrainBenchConfig) -> list[list[Job]]:
    """The jobs that are to take turns with each other, for each combination of settings."""
    architecture = with_sizes(config.architecture, config.vocab_size, config.context)
    found = []
    for world, is_compiled, is_checkpointed in product(worlds(config.precision, config.machine), config.compile,
                                                       config.activation_checkpointing):
        ours = Job(program="ours", architecture=architecture, batch_size=config.batch_size, context=config.context,
                   precision=world.precision, device=str(world.device), threads=config.machine.threads,
                   is_compiled=is_compiled == "true", is_checkpointed=is_checkpointed == "true")
        theirs = replace(ours, program="transformers")
        if config.defaults:
            theirs = replace(theirs, precision="fp32", is_untouched=True)
        found.append([ours, theirs] if config.against else [ours])
    return found


def with_sizes(architecture: ModelConfig, vocab_size: int | None, context: int) -> ModelConfig:
    """The architecture with a vocabulary, and room for the context."""
    return replace(architecture, vocab_size=vocab_size or architecture.vocab_size or DEFAULT_VOCABULARY,
                   context_length=max(context, architecture.context_length))


def measure_together(jobs: list[Job], config: TrainBenchConfig, watch: Watch, folder: Path) -> list[Row]:
    """The rows of jobs that take turns: one for each."""
    rows: list[Row] = [{"program": job.program, "precision": job.precision, "compile": job.is_compiled,
                        "activation_checkpointing": job.is_checkpointed} for job in jobs]
    log.info("measuring %s", " and ".join(map(describe, rows)))
    if config.steps or config.profile:
        torch.compiler.reset()   # what was compiled for other settings would count against the limit of variants
        steps = [build_step(job) for job in jobs]
        for row, step in zip(rows, steps, strict=True):
            row["loss"] = step()
        if not config.defaults:
            _check_same_work([row["loss"] for row in rows])
        if config.steps:
            measure_speed(jobs, steps, rows, watch, turns=config.steps)
        if config.profile:
            for job, step, row in zip(jobs, steps, rows, strict=True):
                breakdown = profile_step(step, steps=PROFILED_STEPS, watch=watch,
                                         vocab_size=job.architecture.vocab_size)
                name = "-".join(describe(row).replace(",", "").split())
                breakdown.profiler.export_chrome_trace(str(folder / f"trace-{name}.json"))
                (folder / f"profile-{name}.txt").write_text(show_breakdown(describe(row), breakdown), encoding="utf-8")
                row["profile_s"] = breakdown.groups
        del steps, step
        gc.collect()
    if config.memory != "none":
        for job, row in zip(jobs, rows, strict=True):
            row |= memory_of(job, with_head=config.memory == "head")
    return rows


def measure_speed(jobs: list[Job], steps: list[Callable[[], float]], rows: list[Row], watch: Watch, *,
                  turns: int) -> None:
    """Time the steps of all jobs in turns, and put into the rows what that says."""
    precisions = {job.precision for job in jobs}
    before = {precision: matmul_rate_apart(watch, precision) for precision in precisions}
    timings = list(take_turns(dict(zip(map(describe, rows), steps, strict=True)), turns=turns, warmup=WARMUP,
                              watch=watch).values())
    rates = {precision: max(rate, matmul_rate_apart(watch, precision)) for precision, rate in before.items()}
    for job, row, timing in zip(jobs, rows, timings, strict=True):
        row |= speed_of(job, timing, rates[job.precision])
    if len(jobs) == 2:
        rows[0]["times_as_fast"] = speedup(*timings)._asdict()


def speed_of(job: Job, timing: Timing, matmul_flops_per_s: float) -> Row:
    """What a row says about time."""
    tokens = job.batch_size * job.context
    flops = tokens * flops_per_token(job.architecture, job.context) / timing.median
    low, high = timing.middle_half
    return {"tokens_per_s": tokens / timing.median, "flops_per_s": flops, "matmul_flops_per_s": matmul_flops_per_s,
            "share_of_matmul": flops / matmul_flops_per_s, "step_s": timing.median, "step_low_s": low,
            "step_high_s": high, "steps_s": timing.seconds}


def memory_of(job: Job, *, with_head: bool) -> Row:
    """What a row says about memory, found in fresh processes."""
    if job.is_compiled and not job.device.startswith("cuda"):
        return {"peak_bytes": None}   # resident memory would be that of the compiler
    row: Row = {"peak_bytes": peak_of(step_memory, job)}
    if with_head:
        row["headless_peak_bytes"] = peak_of(step_memory, replace(job, has_head=False))
        if job.program == "ours":
            row["head_bytes"] = peak_of(head_memory, job)
    return row


def peak_of(function: Callable[..., int], *arguments: object) -> int | None:
    """What the function finds in a fresh process; None, with a warning, if it fails, so that the times are kept."""
    try:
        return in_fresh_process(function, *arguments)
    except RuntimeError as error:
        log.warning("its memory was not measured: %s", error)
        return None


def describe(row: Row) -> str:
    """A row's settings in a few words.

    Example:
        >>> describe({"program": "ours", "precision": "bf16", "compile": True, "activation_checkpointing": False})
        'ours, bf16, compile'
    """
    extras = [name for name in ("compile", "activation_checkpointing") if row[name]]
    return ", ".join([row["program"], row["precision"], *extras])


def show_training(rows: list[Row]) -> str:
    """The rows as a table; spreads are the middle half."""
    shown = []
    for row in rows:
        cells = {"program": row["program"], "precision": row["precision"]}
        for name, head in (("compile", "compiled"), ("activation_checkpointing", "checkpointed")):
            if any(other[name] for other in rows):
                cells[head] = "yes" if row[name] else "no"
        if "step_s" in row:
            cells |= {
                "tokens/s": f"{row['tokens_per_s']:,.0f}", "GFLOP/s": f"{row['flops_per_s'] / 1e9:,.0f}",
                "of matmul": f"{row['share_of_matmul']:.0%}", "ms/step": f"{1e3 * row['step_s']:,.1f}",
                "(half of them)": f"{1e3 * row['step_low_s']:,.1f}-{1e3 * row['step_high_s']:,.1f}",
            }
        if row.get("peak_bytes") is not None:
            cells["peak memory"] = format_bytes(row["peak_bytes"])
        if row.get("headless_peak_bytes") is not None:
            cells["without head"] = format_bytes(row["headless_peak_bytes"])
            if row["peak_bytes"] is not None:
                cells["difference"] = format_bytes(max(0, row["peak_bytes"] - row["headless_peak_bytes"]))
        if row.get("head_bytes") is not None:
            cells["head alone"] = format_bytes(row["head_bytes"])
        if ratio := row.get("times_as_fast"):
            cells["times as fast"] = f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        shown.append(cells)
    profiled = {describe(row): row["profile_s"] for row in rows if "profile_s" in row}
    if not profiled:
        return format_table(shown)
    groups = dict.fromkeys(name for profile in profiled.values() for name in profile)
    shares = [{"where the time goes": group,
               **{name: f"{profile.get(group, 0.0) / sum(profile.values()):.0%}" for name, profile in profiled.items()}}
              for group in groups]
    return f"{format_table(shown)}\n\n{format_table(shares)}"


def show_breakdown(title: str, breakdown: Breakdown, *, longest: int = 25) -> str:
    """The groups and the longest operators of a profile."""
    whole = sum(breakdown.groups.values())

    def share(name: str, seconds: float) -> dict[str, str]:
        return {"": name, "ms/step": f"{1e3 * seconds:,.2f}", "share": f"{seconds / whole:.1%}"}

    groups = [share(name, seconds) for name, seconds in breakdown.groups.items()]
    operators = [{**share(name, seconds), "calls/step": f"{calls:,.0f}"}
                 for name, calls, seconds in breakdown.operators[:longest]]
    return (f"{title}: {1e3 * breakdown.step_s:,.1f} ms/step, {1e3 * breakdown.profiled_s:,.1f} under the profiler\n\n"
            f"{format_table(groups)}\n\n{format_table(operators)}\n")


def _check_same_work(losses: list[float]) -> None:
    """Two programs whose first losses differ do not compute the same, so their times say nothing."""
    if max(losses) - min(losses) > 0.01 * min(losses):
        raise RuntimeError(f"the two programs do not compute the same loss: {losses}; please report this")
