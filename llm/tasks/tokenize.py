"""Turn text of any size into token files, with a tokenizer of its own or another's."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.config import load
from llm.tasks import entry

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Turn text of any size into token files, with a tokenizer of its own or another's.

    python -m llm.tasks.tokenize --data books/ --tokenizer bpe:16384 --out data/books
    python -m llm.tasks.pretrain --data data/books
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    data: str = ""
    """A .txt, .jsonl or .parquet file, or a folder of them."""
    out: str = ""
    """Folder for train.bin, val.bin and tokenizer.json; an interrupted run is gone on with."""
    tokenizer: str = "bpe:16384"
    """bpe:SIZE (learned from all of the text), byte, gpt2, cl100k_base, o200k_base, or a folder or tokenizer.json."""
    pattern: str = "gpt2"
    """Pre-tokenizing pattern of a learned tokenizer: gpt2, cl100k, o200k, qwen2, digits."""
    val_fraction: float = 0.1
    """Share held out: the end of one document, or whole documents of many."""
    document_separator: str = "<|endoftext|>"
    """A line of a .txt file that equals it ends a document."""
    text_key: str = "text"
    """Column of .jsonl and .parquet rows that holds the text."""
    workers: int = os.cpu_count() or 1
    """Processes."""
    show: str | None = None
    """Print how the tokenizer cuts this text, token by token; without --out nothing else is done."""


def parse(argv: Sequence[str] | None = None) -> TokenizeConfig:
    """The settings that a command line asks for."""
    return load(TokenizeConfig, argv, prog="python -m llm.tasks.tokenize")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    if not config.out and config.show is None:
        raise ValueError("--out is missing; name a folder for train.bin, val.bin and tokenizer.json")
    if not 0 < config.val_fraction < 1:
        raise ValueError(f"val_fraction={config.val_fraction} must lie between 0 and 1; 0.1 is usual")

    from llm.data.corpus import existing_path, make_tokenizer
    from llm.data.prepare import TextSource, prepare

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    source = TextSource(existing_path(config.data, "--data"), config.document_separator, config.text_key)
    started = time.perf_counter()
    tokenizer = make_tokenizer(config.tokenizer, source.texts, pattern=config.pattern, workers=config.workers)
    fitted = time.perf_counter()
    log.info("tokenizer %s: %d ids, %.1f s", config.tokenizer, tokenizer.vocab_size, fitted - started)
    if config.show is not None:
        tokenizer.show(config.show)
    if not config.out:
        return 0
    folder = Path(config.out)
    done = prepare(source, folder, tokenizer, val_fraction=config.val_fraction, workers=config.workers,
                   is_bar_wanted=sys.stderr.isatty())
    seconds = time.perf_counter() - fitted
    count = sum(done.num_tokens.values())
    log.info("documents: %d; %.1f MB to %s tokens for training and %s for validation, %.2f bytes per token, %.1f MB/s",
             done.num_documents, done.num_bytes / 1e6, f"{done.num_tokens['train']:,}", f"{done.num_tokens['val']:,}",
             done.num_bytes / count, done.num_bytes / 1e6 / seconds)
    print(folder)
    return 0


if __name__ == "__main__":
    entry(main)
