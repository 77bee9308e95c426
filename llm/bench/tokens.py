"""`bench data`: how fast text becomes tokens and tokens become batches, beside the training that they must feed."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm.bench.config import DataBenchConfig
from llm.bench.measure import Watch, take_turns, watch_of
from llm.bench.steps import Job, build_step
from llm.bench.table import format_table
from llm.bench.training import with_sizes
from llm.data import tinyworld
from llm.data.corpus import existing_path, make_tokenizer
from llm.data.datasets import TokenWindows
from llm.data.prepare import TextSource, prepare
from llm.data.tokenfile import open_token_file
from llm.runtime import start
from llm.tokenizers.tokenizer import Tokenizer

TURNS = 3           # of tokenizing all of the text
SEPARATOR = "<|endoftext|>"

Row = dict[str, Any]


def bench_data(config: DataBenchConfig) -> list[Row]:
    """Measure tokenizing, reading and training.

    Returns:
        A row for each activity, in unrounded numbers.

    Raises:
        ValueError: if the text cannot be read.
    """
    with tempfile.TemporaryDirectory() as name:
        source = TextSource(text_of(config, Path(name)), SEPARATOR)
        tokenizer = make_tokenizer(config.tokenizer, source.texts, workers=config.workers)
        rows = tokenizing(source, tokenizer, config, Path(name))
        rows += reading(Path(name) / "0" / "train.bin", config)
        rows.append(training(tokenizer, config))
    for row in rows:
        row["times_training"] = row["tokens_per_s"] / rows[-1]["tokens_per_s"]
    return rows


def text_of(config: DataBenchConfig, folder: Path) -> Path:
    """The text asked for, or one of stories made on the spot."""
    if config.data is not None:
        return existing_path(config.data, "--data")
    path = folder / "stories.txt"
    stories = tinyworld.stories(seed=1, language="en", characters=int(config.megabytes * 1e6))
    path.write_text(f"\n{SEPARATOR}\n".join(stories), encoding="utf-8")
    return path


def tokenizing(source: TextSource, tokenizer: Tokenizer, config: DataBenchConfig, folder: Path) -> list[Row]:
    """Encoding alone, in one process; and all of `llm.tasks.tokenize`, in one and in several."""
    texts = list(source.texts())
    programs: dict[str, Callable[[], object]] = {
        "encode in memory": lambda: [tokenizer.encode_document(text) for text in texts]}
    made: list[Path] = []

    def into_files(workers: int) -> None:
        made.append(folder / str(len(made)))   # a finished folder is not made again
        prepare(source, made[-1], tokenizer, workers=workers)

    for workers in sorted({1, config.workers}):
        programs[f"text to token files, {workers} process{'es' if workers > 1 else ''}"] = (
            lambda workers=workers: into_files(workers))   # type: ignore[misc]
    times = take_turns(programs, turns=TURNS, warmup=0, watch=Watch(torch.device("cpu")))
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = sum(len(open_token_file(made[0] / f"{part}.bin").tokens) for part in ("train", "val"))
    return [{"what": name, "megabytes_per_s": num_bytes / 1e6 / timing.median,
             "tokens_per_s": num_tokens / timing.median, "seconds": timing.seconds} for name, timing in times.items()]


def reading(path: Path, config: DataBenchConfig) -> list[Row]:
    """Batches of training windows from a memory-mapped token file, neighbours or from anywhere.

    The file was just written, so it is in the system's cache, as a training set smaller than memory soon is.
    """
    tokens = open_token_file(path).tokens
    windows = TokenWindows(tokens, context=config.context)
    num_windows = len(windows.lengths(0, 0))
    rng = np.random.default_rng(0)
    in_order = count()

    def batch(sample_ids: np.ndarray) -> None:
        windows.batch(sample_ids, seed=0, epoch=0)

    programs: dict[str, Callable[[], object]] = {
        "windows in order": lambda: batch(np.array([next(in_order) % num_windows for _ in range(config.batch_size)])),
        "windows from anywhere": lambda: batch(rng.integers(num_windows, size=config.batch_size)),
    }

    times = take_turns(programs, turns=10 * config.steps, warmup=3, watch=Watch(torch.device("cpu")))
    size = config.batch_size * config.context
    return [{"what": name, "megabytes_per_s": size * tokens.itemsize / 1e6 / timing.median,
             "tokens_per_s": size / timing.median, "seconds": timing.seconds} for name, timing in times.items()]


def training(tokenizer: Tokenizer, config: DataBenchConfig) -> Row:
    """The steps that the windows are for."""
    world = start(device=config.machine.device, threads=config.machine.threads)
    job = Job(program="ours", architecture=with_sizes(config.architecture, tokenizer.vocab_size, config.context),
              batch_size=config.batch_size, context=config.context, precision=world.precision,
              device=str(world.device), threads=config.machine.threads)
    timing = take_turns({"step": build_step(job)}, turns=config.steps, warmup=3,
                        watch=watch_of(config.machine))["step"]
    return {"what": f"training {config.model} in {world.precision}", "megabytes_per_s": None,
            "tokens_per_s": config.batch_size * config.context / timing.median, "seconds": timing.seconds}


def show_data(rows: list[Row]) -> str:
    """The rows as a table."""
    return format_table([{
        "what": row["what"],
        **({"MB/s": f"{row['megabytes_per_s']:,.1f}"} if row["megabytes_per_s"] is not None else {}),
        "tokens/s": f"{row['tokens_per_s']:,.0f}", "times training": f"{row['times_training']:,.1f}",
    } for row in rows])
