"""`bench generate`: how fast a model writes, beside the speed of memory and beside transformers.

Reading the prompt (prefill) and writing each further token (decode) are told apart in the same way for both programs:
one token is written, then N; the difference is N - 1 steps of decoding. Every such step reads all weights once, so
memory sets its limit: the rate at which a matrix-vector product streams weights, over the size of the model's.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from llm.bench.config import GenerateBenchConfig
from llm.bench.measure import (
    Ratio,
    Timing,
    Watch,
    speedup,
    stream,
    take_turns,
    watch_of,
    worlds,
)
from llm.bench.steps import SEED, Program, peer_model, smallest, transformers
from llm.bench.table import format_table
from llm.bench.training import peak_of, with_sizes
from llm.generation import generate
from llm.models.build import build_model, empty_model
from llm.models.config import ModelConfig
from llm.models.profile import active_size, format_bytes
from llm.runtime import DTYPES, Precision, World, peak_memory, start

log = logging.getLogger(__name__)

Row = dict[str, Any]
Writer = Callable[[int], list[list[int]]]   # a number of tokens to the rows written


@dataclass(frozen=True, kw_only=True)
class WritingJob:
    """A program, a model and prompts: plain values, which can be sent to another process."""

    program: Program
    architecture: ModelConfig
    batch_size: int
    prompt_tokens: int
    precision: Precision
    device: str
    threads: int | None = None

    @property
    def world(self) -> World:
        """Where the job runs."""
        return start(device=self.device, precision=self.precision, threads=self.threads)


def bench_generation(config: GenerateBenchConfig) -> list[Row]:
    """Measure every precision and batch size asked for.

    Returns:
        A row for each program of each combination, in unrounded numbers.

    Raises:
        ValueError: if nothing that was asked for can be measured here, or transformers is wanted and missing.
    """
    if config.against:
        transformers()   # complains before anything is measured
    architecture = with_sizes(config.architecture, config.vocab_size, config.prompt_tokens + config.new_tokens)
    watch = watch_of(config.machine)
    rows: list[Row] = []
    for world in worlds(config.precision, config.machine):
        for batch_size in config.batch_size:
            ours = WritingJob(program="ours", architecture=architecture, batch_size=batch_size,
                              prompt_tokens=config.prompt_tokens, precision=world.precision, device=str(world.device),
                              threads=config.machine.threads)
            jobs = [ours, replace(ours, program="transformers")] if config.against else [ours]
            rows += measure_writing(jobs, config, watch)
            log.info("%s, %d at once", world.precision, batch_size)
    return rows


def measure_writing(jobs: list[WritingJob], config: GenerateBenchConfig, watch: Watch) -> list[Row]:
    """The rows of jobs that take turns.

    Args:
        jobs: the same for one program or two.
        config: how much is written, and how often.
        watch: tells the time.
    """
    writers = {job.program: build_writer(job) for job in jobs}
    texts = {program: writer(config.new_tokens) for program, writer in writers.items()}
    programs: dict[str, Callable[[], object]] = {}
    for program, writer in writers.items():
        programs[f"{program}, one"] = lambda writer=writer: writer(1)   # type: ignore[misc]
        programs[f"{program}, all"] = lambda writer=writer: writer(config.new_tokens)   # type: ignore[misc]
    programs["memory"], num_bytes = stream(watch.device, jobs[0].precision)
    times = take_turns(programs, turns=config.rounds, warmup=1, watch=watch)
    del programs, writers
    steps_per_s = num_bytes / times["memory"].median / weight_bytes(jobs[0].architecture, jobs[0].precision)
    prefill = {job.program: times[f"{job.program}, one"] for job in jobs}
    decode = {job.program: per_step(times[f"{job.program}, all"], prefill[job.program], config.new_tokens)
              for job in jobs}
    rows = []
    for job in jobs:
        row: Row = {
            "program": job.program, "precision": job.precision, "batch_size": job.batch_size,
            "prefill_tokens_per_s": job.batch_size * job.prompt_tokens / prefill[job.program].median,
            "decode_tokens_per_s": job.batch_size / decode[job.program].median,
            "limit_tokens_per_s": job.batch_size * steps_per_s,
            "prefill_s": prefill[job.program].seconds, "decode_step_s": decode[job.program].seconds,
        }
        if config.memory == "peak":
            row["peak_bytes"] = peak_of(writing_memory, job, config.new_tokens)
        rows.append(row)
    if len(jobs) == 2:
        pairs = zip(texts["ours"], texts["transformers"], strict=True)
        rows[0] |= {
            "prefill_times_as_fast": speedup(prefill["ours"], prefill["transformers"])._asdict(),
            "decode_times_as_fast": speedup(decode["ours"], decode["transformers"])._asdict(),
            "equal_rows": sum(ours == theirs for ours, theirs in pairs),
        }
    return rows


def per_step(whole: Timing, first: Timing, new_tokens: int) -> Timing:
    """The time of one step of decoding: what N tokens take longer than one, of each turn, over N - 1.

    Example:
        >>> per_step(Timing((5.0, 9.0)), Timing((1.0, 1.0)), 5).seconds
        (1.0, 2.0)
    """
    pairs = zip(whole.seconds, first.seconds, strict=True)
    # on a busy machine one token may by chance take longer than many; a time of 0 would be no time
    return Timing(tuple(max(all_s - one_s, 1e-9) / (new_tokens - 1) for all_s, one_s in pairs))


def weight_bytes(architecture: ModelConfig, precision: Precision) -> int:
    """What every token reads: all weights but the embeddings, of which it looks up one row, unless they are the head;
    of experts those that it is sent to.

    Example:
        >>> from llm.models.config import GPTConfig
        >>> gpt2 = GPTConfig(vocab_size=50257, context_length=1024, num_layers=12, num_heads=12, dim=768)
        >>> weight_bytes(gpt2, "fp32") / 1e6
        494.613504
    """
    looked_up = {"embed_positions.weight"} | (set() if architecture.tie_embeddings else {"embed.weight"})
    read = sum(active_size(architecture, parameter) for name, parameter in empty_model(architecture).named_parameters()
               if name not in looked_up)
    return read * DTYPES[precision].itemsize


def build_writer(job: WritingJob) -> Writer:
    """What writes so many tokens behind each prompt, greedily and to the end.

    Both hold their weights in the precision, as `llm.tasks.generate` does: under autocast they would be cast anew for
    every token.
    """
    world, dtype = job.world, DTYPES[job.precision]
    model = build_model(job.architecture, generator=torch.Generator().manual_seed(SEED)).to(world.device, dtype).eval()
    shape = (job.batch_size, job.prompt_tokens)
    ids = torch.randint(job.architecture.vocab_size, shape, generator=torch.Generator().manual_seed(SEED))
    if job.program == "ours":
        prompts = ids.tolist()

        def write(new_tokens: int) -> list[list[int]]:
            return generate(model, prompts, max_new_tokens=new_tokens, temperature=0)

        return write
    theirs: Any = peer_model(model).to(world.device, dtype).eval()
    ids = ids.to(world.device)

    def write_theirs(new_tokens: int) -> list[list[int]]:
        written = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                                  do_sample=False, use_cache=True, pad_token_id=0)
        return written[:, job.prompt_tokens :].tolist()

    return write_theirs


def writing_memory(job: WritingJob, new_tokens: int) -> int:
    """By how many bytes writing raises the peak of this process, which should be a fresh one; weights are counted."""
    tiny = replace(job, architecture=replace(smallest(job.architecture), context_length=4), prompt_tokens=2,
                   batch_size=1)
    build_writer(tiny)(2)   # what a tiny model needs, such as imported modules, is not counted
    before = peak_memory(job.world.device)
    build_writer(job)(new_tokens)
    return peak_memory(job.world.device) - before


def show_generation(rows: list[Row]) -> str:
    """The rows as a table; spreads are the middle half."""
    shown = []
    for row in rows:
        cells = {
            "program": row["program"], "precision": row["precision"], "at once": str(row["batch_size"]),
            "prefill tokens/s": f"{row['prefill_tokens_per_s']:,.0f}",
            "decode tokens/s": f"{row['decode_tokens_per_s']:,.0f}",
            "memory's limit": f"{row['limit_tokens_per_s']:,.0f}",
        }
        if row.get("peak_bytes") is not None:
            cells["peak memory"] = format_bytes(row["peak_bytes"])
        for name in ("prefill", "decode"):
            if f"{name}_times_as_fast" in row:
                ratio = Ratio(**{"median": 0.0, **row[f"{name}_times_as_fast"]})
                cells[f"{name} times as fast"] = f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"
        if "equal_rows" in row:
            cells["same text"] = f"{row['equal_rows']} of {row['batch_size']}"
        shown.append(cells)
    return format_table(shown)
