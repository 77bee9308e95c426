"""Train a small model on text that is always there, in two minutes, and show what it learned."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from llm.config import load
from llm.tasks import entry
from llm.tasks.pretrain import PretrainConfig, choose_model, pretrain
from llm.train.run import open_run

SEPARATOR = "<|endoftext|>"


def main(argv: Sequence[str] | None = None) -> int:
    argv = ["--config", "demo", "--data", str(write_topics(Path("data/demo/python_topics.txt"))),
            *(sys.argv[1:] if argv is None else argv)]
    config = load(PretrainConfig, argv, prog="python -m llm.tasks.demo", choose_model=choose_model)
    with open_run("demo", config.run) as folder:
        stop_signal = pretrain(config, folder)
    if stop_signal:
        return 128 + stop_signal
    show(folder)
    print(folder)
    return 0


def write_topics(path: Path) -> Path:
    """Write the help texts of the running Python, about 700,000 characters of English and code, as a text file."""
    spec = importlib.util.find_spec("pydoc_data.topics")
    if spec is None:
        raise ValueError("this Python comes without its help texts (pydoc_data); give another text: "
                         "python -m llm.tasks.pretrain --config demo --data my.txt")
    from pydoc_data.topics import topics

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"\n{SEPARATOR}\n".join(topics[name].strip() for name in sorted(topics)) + "\n", encoding="utf-8")
    return path


def show(folder: Path) -> None:
    """What there is to see: the loss at the beginning and at the end, the last sample, and where the rest is."""
    from llm.train.logger import read_rows

    rows = read_rows(folder)
    train = [row["loss"] for row in rows if row["split"] == "train" and row["loss"] is not None]
    val = [row for row in rows if row["split"] == "val"]
    sample = (folder / "samples.txt").read_text(encoding="utf-8").rsplit("=== ", 1)[-1].partition("\n")[2].strip()
    print("\nIt began by guessing among all characters alike, "
          f"{train[0]:.2f} nats each; now a character of unseen text costs it {val[-1]['loss']:.2f} nats "
          f"({val[-1]['bits_per_byte']:.2f} bits per byte).\nWhat it writes now:\n")
    print("\n".join("    " + line for line in sample.splitlines()))
    print(f"\n  the loss curve:   {folder / 'loss.png'}\n  how it learned:   {folder / 'samples.txt'}\n"
          f"  let it write on:  python -m llm.tasks.generate --model {folder} --prompt \"The \"\n")


if __name__ == "__main__":
    entry(main)
