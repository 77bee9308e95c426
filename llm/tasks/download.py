"""Fetch a named public data set into data/, or list them all."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.config import load
from llm.data.download import REGISTRY, DataSet, fetch
from llm.tasks import entry


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Fetch a named public data set into data/, or list them all.

    python -m llm.tasks.download --data tinyshakespeare
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    data: str = ""
    """The name of the set; default: list them."""
    folder: str = "data"
    """Where the sets lie; each has its own folder in it."""
    mirror: str | None = None
    """A folder, or the beginning of an address, with the same files; nothing else is tried then."""


def main(argv: Sequence[str] | None = None) -> int:
    config = load(DownloadConfig, argv, prog="python -m llm.tasks.download")
    if not config.data:
        print("\n\n".join(describe(name, entry) for name, entry in REGISTRY.items()))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = fetch(config.data, Path(config.folder), config.mirror)
    logging.info("%s", describe(config.data, REGISTRY[config.data]))
    print(path)
    return 0


def describe(name: str, entry: DataSet) -> str:
    """What there is to know about a set, in a few lines."""
    sizes = [file.size for file in entry.files]
    known = [size for size in sizes if size is not None]
    size = f"{sum(known) / 1e6:,.1f} MB" if len(known) == len(sizes) else "size not known beforehand"
    lines = [f"{name} ({entry.kind}, {size})", f"  {entry.summary}", f"  licence: {entry.licence}; {entry.source}"]
    if entry.kind == "text":
        lines.append(f"  python -m llm.tasks.pretrain --data {name} --tokenizer {entry.tokenizer}")
    return "\n".join(lines)


if __name__ == "__main__":
    entry(main)
