"""Save a model in another format: a GGUF file for llama.cpp, or a Hugging Face folder in another dtype."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llm.config import load
from llm.tasks import entry

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Save a model in another format: a GGUF file for llama.cpp, or a Hugging Face folder in another dtype.

    python -m llm.tasks.export --model FOLDER --format gguf --type q8_0 --out model.gguf
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = ""
    """A run folder (its best checkpoint), a checkpoint, a Hugging Face folder, or a .gguf file."""
    format: Literal["gguf", "hf"] = "gguf"
    """gguf: one file with model and tokenizer; hf: a folder for transformers."""
    type: Literal["f32", "f16", "bf16", "q8_0"] = "f16"
    """Of the weights; q8_0 (8 bits and a scale for each 32) is for gguf alone."""
    out: str = ""
    """The file or folder to write."""


def parse(argv: Sequence[str] | None = None) -> ExportConfig:
    """The settings that a command line asks for."""
    return load(ExportConfig, argv, prog="python -m llm.tasks.export")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    for name in ("model", "out"):
        if not getattr(config, name):
            raise ValueError(f"--{name} is missing; name the {'model' if name == 'model' else 'file or folder'}")
    out = Path(config.out)
    if config.format == "hf" and config.type not in DTYPES:
        raise ValueError(f"--type {config.type} is for --format gguf; choose from {', '.join(DTYPES)}")
    if config.format == "gguf" and out.suffix != ".gguf":
        raise ValueError(f"--out {out}: the name of such a file ends in .gguf, by which it is known")
    if out.exists():
        raise ValueError(f"--out {out} exists; choose another name, or delete it")
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    from llm.checkpoint import load as load_model
    from llm.checkpoint import save
    from llm.interop import gguf

    model, tokenizer = load_model(config.model)
    if config.format == "gguf":
        gguf.save(model, out, kind=config.type, tokenizer=tokenizer)
    else:
        save(model, out, tokenizer=tokenizer, dtype=DTYPES[config.type])
    print(out)
    return 0


if __name__ == "__main__":
    entry(main)
