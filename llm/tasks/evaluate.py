"""The perplexity of a text under a model, and what it costs in nats per token and bits per byte."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llm.config import load
from llm.tasks import entry

if TYPE_CHECKING:
    import numpy as np

    from llm.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The perplexity of a text under a model, and what it costs in nats per token and bits per byte.

    python -m llm.tasks.evaluate --model FOLDER --data my.txt

    The text is cut into windows, one after the other; every token but the first is predicted once.
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = ""
    """A run folder (its best checkpoint), a checkpoint, a Hugging Face folder, or a .gguf file."""
    data: str = ""
    """Text file (.txt), rows with a text (.jsonl, .parquet), folder of them, token file (.bin), or a named data set."""
    document_separator: str = "<|endoftext|>"
    """A line of a .txt file that equals it ends a document."""
    context: int | None = None
    """Tokens in a window; default: the model's context length."""
    batch_size: int = 1
    """Windows at a time; only speed and memory depend on it."""
    limit_tokens: int | None = None
    """Stop after the windows that hold so many tokens."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of matrix products; the same number as another program's is a matter of fp32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads; default torch's choice."""

    def __post_init__(self) -> None:
        for name in ("context", "batch_size", "limit_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


def parse(argv: Sequence[str] | None = None) -> EvaluateConfig:
    """The settings that a command line asks for."""
    return load(EvaluateConfig, argv, prog="python -m llm.tasks.evaluate")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    if not config.model:
        raise ValueError("--model is missing; name a run folder, a checkpoint, a Hugging Face folder or a .gguf file")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from llm.checkpoint import load as load_model
    from llm.data.datasets import TokenWindows
    from llm.evaluate import evaluate
    from llm.objectives.language import NextToken
    from llm.runtime import start

    world = start(device=config.device, precision=config.precision, threads=config.threads)
    model, tokenizer = load_model(config.model, device=world.device)
    tokens = read_tokens(config, tokenizer)
    context = config.context or model.config.context_length
    if context > model.config.context_length:
        raise ValueError(f"--context {context} exceeds the model's context_length={model.config.context_length}")
    windows = TokenWindows(tokens, context=context, is_shifted=False, vocab_size=model.config.vocab_size)
    found = evaluate(model, NextToken(tokenizer.byte_counts if tokenizer else None), windows, world=world,
                     batch_size=config.batch_size, max_tokens=config.limit_tokens)
    print(f"perplexity      {math.exp(found['loss']):.4f}")
    print(f"nats per token  {found['loss']:.6f}")
    if "bits_per_byte" in found:
        print(f"bits per byte   {found['bits_per_byte']:.6f}")
    return 0


def read_tokens(config: EvaluateConfig, tokenizer: "Tokenizer | None") -> "np.ndarray":
    """The ids of the text: documents one after the other, each but the last with the end-of-text id behind it."""
    import numpy as np

    from llm.data.corpus import existing_path
    from llm.data.records import read_documents
    from llm.data.tokenfile import open_token_file

    path = existing_path(config.data, "--data")
    if path.suffix == ".bin":
        file = open_token_file(path)
        if tokenizer is not None and file.fingerprint not in (None, tokenizer.fingerprint):
            raise ValueError(f"--data {path} was written with another tokenizer than that of --model {config.model}; "
                             "give the text instead")
        return file.tokens
    if tokenizer is None:
        raise ValueError(f"--model {config.model} has no tokenizer; give a token file (.bin)")
    *documents, last = read_documents(Path(path), separator=config.document_separator)
    return np.concatenate([*map(tokenizer.encode_document, documents), np.array(tokenizer.encode(last), np.int64)])


if __name__ == "__main__":
    entry(main)
