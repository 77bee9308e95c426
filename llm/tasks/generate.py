"""Let a model write on from a prompt."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llm.config import load
from llm.sampling import Sampling
from llm.tasks import entry

if TYPE_CHECKING:
    from llm.models.decoder import Decoder
    from llm.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Let a model write on from a prompt.

    python -m llm.tasks.generate --model logs/pretrain/RUN --prompt "Once upon a time"
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = ""
    """A run folder (its best checkpoint), a checkpoint, a Hugging Face folder, or a .gguf file."""
    prompt: str = ""
    """What the text begins with; default: the beginning of a document."""
    max_new_tokens: int = 200
    """How many tokens to write at most."""
    num_samples: int = 1
    """How many texts; one is shown as it is written."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.8))
    """How the next token is chosen."""
    stop: tuple[str, ...] = ()
    """Text that ends it."""
    seed: int = 1
    """The same seed writes the same text."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of weights and activations; auto is bf16 where the hardware multiplies it. The same text as another program is
    a matter of fp32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads; default torch's choice."""


def parse(argv: Sequence[str] | None = None) -> GenerateConfig:
    """The settings that a command line asks for."""
    return load(GenerateConfig, argv, prog="python -m llm.tasks.generate")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    if config.num_samples < 1:
        raise ValueError(f"num_samples={config.num_samples} must be at least 1")
    if config.seed < 0:
        raise ValueError(f"seed={config.seed} must be at least 0")
    opened = open_model(config.model, dtype=config.dtype, device=config.device, threads=config.threads)

    from llm.generation import generate
    from llm.writing import StopStrings, start_ids, unused_ids, write

    model, tokenizer = opened.model, opened.tokenizer
    print(opened.name, file=sys.stderr)
    prompt = start_ids(tokenizer, config.prompt)
    settings: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, "seed": config.seed, **vars(config.sampling)}
    length, context = len(prompt) + config.max_new_tokens, model.config.context_length
    if length > context:   # said here, since later it would stand in the middle of the text
        print(f"{length} tokens pass the model's context of {context}; each time the text goes on from its last "
              f"{max(context // 2, 1)}", file=sys.stderr)
    with _without_warnings("llm.generation"):
        if config.num_samples == 1:
            pieces = write(model, tokenizer, prompt, stop_strings=config.stop, **settings)
            print(config.prompt, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print()
        else:
            stop = StopStrings(tokenizer, config.stop)
            rows = generate(model, [prompt] * config.num_samples, eos_id=tokenizer.eos_id, stop=stop,
                            unused_ids=unused_ids(tokenizer, model), **settings)
            for number, row in enumerate(rows, start=1):
                text = tokenizer.decode(token for token in row if token != tokenizer.eos_id)
                print(f"--- {number}\n{config.prompt}{stop.cut(text)}")
    return 0


class Opened(NamedTuple):
    """A model that is ready to write, and what to call it."""

    model: "Decoder"
    tokenizer: "Tokenizer"
    name: str


def open_model(path: str, *, dtype: str, device: str, threads: int | None) -> Opened:
    """Load a model with its weights in the dtype that it will compute in.

    That is what makes it fast: under autocast every weight would be cast anew for every token.

    Raises:
        ValueError: if there is no model, or it has no tokenizer.
    """
    if not path:
        raise ValueError("--model is missing; name a run folder, a checkpoint, a Hugging Face folder or a .gguf file")

    from llm.checkpoint import find_checkpoint
    from llm.checkpoint import load as load_model
    from llm.runtime import DTYPES, start

    world = start(device=device, precision=dtype, threads=threads)
    folder = find_checkpoint(path)
    model, tokenizer = load_model(folder, device=world.device, dtype=DTYPES[world.precision])
    if tokenizer is None:
        raise ValueError(f"{folder} has no tokenizer.json; text cannot be turned into its ids")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return Opened(model, tokenizer, f"{folder}: {millions:,.1f}M parameters, {world.precision}, "
                                    f"context {model.config.context_length:,}")


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
