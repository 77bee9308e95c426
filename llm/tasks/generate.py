"""Let a model write on from a prompt."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from llm.config import load
from llm.tasks import entry


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Let a model write on from a prompt.

    python -m llm.tasks.generate --model logs/pretrain/RUN --prompt "Once upon a time"
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = ""
    """A run folder (its best checkpoint), a checkpoint, or a Hugging Face folder."""
    prompt: str = ""
    """What the text begins with; default: the beginning of a document."""
    max_new_tokens: int = 200
    """How many tokens to write at most."""
    num_samples: int = 1
    """How many texts; one is shown as it is written."""
    temperature: float = 0.8
    """Below 1 safer, above 1 wilder, 0 always the likeliest token."""
    top_k: int | None = None
    """Choose only among the k likeliest tokens."""
    top_p: float | None = None
    """Choose only among the likeliest tokens that together have this probability."""
    seed: int = 1
    """The same seed writes the same text."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of matrix products; the same text as another program is a matter of fp32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads; default torch's choice."""


def parse(argv: Sequence[str] | None = None) -> GenerateConfig:
    """The settings that a command line asks for."""
    return load(GenerateConfig, argv, prog="python -m llm.tasks.generate")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    if not config.model:
        raise ValueError("--model is missing; name a run folder, a checkpoint or a Hugging Face folder")
    if config.num_samples < 1:
        raise ValueError(f"num_samples={config.num_samples} must be at least 1")
    if config.seed < 0:
        raise ValueError(f"seed={config.seed} must be at least 0")

    from llm.checkpoint import find_checkpoint
    from llm.checkpoint import load as load_model
    from llm.generation import generate, generate_steps
    from llm.runtime import start
    from llm.train.samples import start_ids, unused_ids

    world = start(device=config.device, precision=config.precision, threads=config.threads)
    folder = find_checkpoint(config.model)
    model, tokenizer = load_model(folder, device=world.device)
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer.json; text cannot be turned into its ids")
    print(f"{folder}", file=sys.stderr)
    prompts = [start_ids(tokenizer, config.prompt)] * config.num_samples
    settings: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "top_k": config.top_k,
        "top_p": config.top_p, "seed": config.seed, "eos_id": tokenizer.eos_id,
        "unused_ids": unused_ids(tokenizer, model),
    }
    length, context = len(prompts[0]) + config.max_new_tokens, model.config.context_length
    if length > context:   # said here, since later it would stand in the middle of the text
        print(f"{length} tokens pass the model's context of {context}; each time the text goes on from its last "
              f"{max(context // 2, 1)}", file=sys.stderr)
    with world.autocast(), _without_warnings("llm.generation"):
        if config.num_samples == 1:
            print(config.prompt, end="", flush=True)
            ids = (token for step in generate_steps(model, prompts, **settings) for token in step.ids
                   if token is not None and token != tokenizer.eos_id)
            for piece in tokenizer.stream(ids):
                print(piece, end="", flush=True)
            print()
        else:
            for number, row in enumerate(generate(model, prompts, **settings), start=1):
                text = tokenizer.decode(token for token in row if token != tokenizer.eos_id)
                print(f"--- {number}\n{config.prompt}{text}")
    return 0


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """Keep a logger's warnings out of the text for a while."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


if __name__ == "__main__":
    entry(main)
