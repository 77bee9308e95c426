"""Train a small model on the stories of a small world, and let a judge read what it writes."""

import random
import sys
import textwrap
import time
import unicodedata
from collections.abc import Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm.config import load
from llm.data import tinyworld
from llm.tasks import entry
from llm.tasks.pretrain import PretrainConfig, begin, choose_model, pretrain
from llm.train.run import find_run, open_run

if TYPE_CHECKING:
    from llm.models.decoder import Decoder
    from llm.runtime import World
    from llm.tokenizers.tokenizer import Tokenizer

SEPARATOR = "<|endoftext|>"
TRAIN_CHARACTERS, VAL_CHARACTERS = 6_000_000, 100_000
TRAIN_SEED, VAL_SEED = 1, 2
NUM_STORIES = 200


class Report(NamedTuple):
    """How good the stories of a model are."""

    loss: float              # nats per token of true stories, each read from its beginning
    floor: float             # the same for the process that wrote them: no model can do better
    stories: list[str]       # what the model wrote
    grammatical: float       # shares of them
    consistent: float
    new: float


def main(argv: Sequence[str] | None = None) -> int:
    started = time.perf_counter()
    folder = Path("data/demo")
    argv = sys.argv[1:] if argv is None else argv
    is_resumed = any(word.split("=")[0] == "--resume" for word in argv)   # a run has its own settings
    preset = [] if is_resumed else ["--config", "demo"]
    argv = [*preset, "--data", str(folder / "train.txt"), "--val", str(folder / "val.txt"), *argv]
    config = load(PretrainConfig, argv, prog="python -m llm.tasks.demo", choose_model=choose_model,
                  resume_file=lambda name: find_run("demo", name) / "run.toml")
    train = write_stories(folder / "train.txt", seed=TRAIN_SEED, characters=TRAIN_CHARACTERS)
    val = write_stories(folder / "val.txt", seed=VAL_SEED, characters=VAL_CHARACTERS)
    with begin(config) as world, open_run("demo", config.run) as run:
        stop_signal = pretrain(config, run, world)
    if stop_signal:
        return 128 + stop_signal
    report = examine(run, val, set(train), config)
    picture = draw(run, report)
    show(run, report, val, picture, time.perf_counter() - started)
    print(run)
    return 0


def write_stories(path: Path, *, seed: int, characters: int) -> list[str]:
    """Write stories in English and Chinese as a text file; the same seed gives the same file.

    They are of a corner of the world, which a small model can learn in the minutes that a demo has.
    """
    stories = list(tinyworld.stories(seed, "both", characters, is_corner=True))
    random.Random(seed).shuffle(stories)   # in turn, the language of a story would be known before it begins
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"\n{SEPARATOR}\n".join(stories) + "\n", encoding="utf-8")
    return stories


def examine(run: Path, val: list[str], training_stories: set[str], config: PretrainConfig) -> Report:
    """Measure the loss against the floor, let the model write, and let the judge read."""
    from llm.checkpoint import load as load_model
    from llm.generation import generate
    from llm.runtime import start

    world = start(device=config.train.device, precision=config.train.precision, threads=config.train.threads)
    model, tokenizer = load_model(run, device=world.device)
    assert tokenizer is not None and tokenizer.eos_id is not None
    loss, floor = loss_and_floor(model, tokenizer, val, world)
    with world.autocast():
        rows = generate(model, [[tokenizer.eos_id]] * NUM_STORIES, max_new_tokens=model.config.context_length - 1,
                        temperature=0.8, seed=1, eos_id=tokenizer.eos_id)
    stories = [tokenizer.decode(token for token in row if token != tokenizer.eos_id).strip() for row in rows]
    verdicts = [tinyworld.judge(story) for story in stories]
    return Report(
        loss, floor, stories,
        grammatical=sum(verdict.is_grammatical for verdict in verdicts) / len(stories),
        consistent=sum(verdict.is_grammatical and verdict.is_consistent for verdict in verdicts) / len(stories),
        new=sum(story not in training_stories for story in stories) / len(stories),
    )


def loss_and_floor(
    model: "Decoder", tokenizer: "Tokenizer", stories: Sequence[str], world: "World"
) -> tuple[float, float]:
    """Nats per token of whole stories (those that fit the context) under the model, and under what wrote them."""
    import torch

    from llm.losses import IGNORE_INDEX

    total, num_tokens = 0.0, 0
    pairs = [(story, tokenizer.encode_document(story)) for story in stories]
    stories, documents = zip(*[pair for pair in pairs if len(pair[1]) <= model.config.context_length], strict=True)
    for start in range(0, len(documents), 25):
        batch = documents[start : start + 25]
        inputs = torch.zeros(len(batch), max(map(len, batch)), dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE_INDEX)
        for row, ids in enumerate(batch):
            targets[row, : len(ids)] = torch.from_numpy(ids)
            inputs[row, : len(ids)] = torch.from_numpy(np.roll(ids, 1))   # the end of one text begins the next
        with torch.no_grad(), world.autocast():
            total += float(model(inputs.to(world.device), targets=targets.to(world.device)).loss_sum)
        num_tokens += sum(map(len, batch))
    floor = -sum(tinyworld.log_prob(story, is_corner=True) for story in stories)
    return total / num_tokens, floor / num_tokens


def draw(run: Path, report: Report) -> Path:
    """demo.png: the loss coming down to the floor, and what the judge says."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    from llm.train.logger import read_rows

    rows = read_rows(run)
    train = [row for row in rows if row["split"] == "train" and row["loss"] is not None]
    val = [row for row in rows if row["split"] == "val"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), dpi=120, width_ratios=(3, 2))
    left.plot([row["elapsed_s"] for row in train], [row["loss"] for row in train], color="#9ecae1", linewidth=0.7,
              label="training, each step")
    left.plot([row["elapsed_s"] for row in val], [row["loss"] for row in val], color="#d62728", marker="o",
              markersize=4, label="validation")
    left.axhline(report.floor, color="black", linestyle="--", linewidth=1.2, label=f"floor {report.floor:.3f}")
    left.plot(train[-1]["elapsed_s"], report.loss, color="#d62728", marker="*", markersize=13, linestyle="none",
              label=f"whole unseen stories {report.loss:.3f}")
    left.set_yscale("log")
    left.set_yticks([tick for tick in (0.2, 0.3, 0.5, 1, 2, 3, 5, 8) if tick > report.floor / 2])
    left.yaxis.set_major_formatter(ScalarFormatter())
    left.yaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("seconds of training")
    left.set_ylabel("loss (nats per token, logarithmic)")
    left.legend(frameon=False)
    shares = {"grammatical": report.grammatical, "and consistent": report.consistent, "new": report.new}
    bars = right.barh(list(shares), [100 * share for share in shares.values()], color=["#6baed6", "#3182bd", "#9ecae1"])
    right.bar_label(bars, fmt="%.0f%%", padding=3)
    right.invert_yaxis()
    right.set_xlim(0, 112)
    right.set_title(f"{len(report.stories)} stories at temperature 0.8, read by the judge", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.tight_layout()
    path = run / "demo.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def show(run: Path, report: Report, val: list[str], picture: Path, seconds: float) -> None:
    """What there is to see, for a person at a terminal."""
    num_chinese = sum(map(_is_chinese, report.stories))
    left = 100 * (report.loss / report.floor - 1)
    print(f"\nThe loss on unseen stories is {report.loss:.3f} nats per token. No model goes below {report.floor:.3f},\n"
          f"which is what they cost the little world that wrote them; {left:.0f}% above it are left to learn.\n\n"
          f"Of {len(report.stories)} stories that it wrote, {num_chinese} of them in Chinese, the judge finds\n"
          f"  {100 * report.grammatical:.0f}% grammatical, {100 * report.consistent:.0f}% also consistent with their "
          f"own world, {100 * report.new:.0f}% not in the training text.\n")
    english_first = sorted(report.stories, key=lambda story: (_is_chinese(story), not _is_good(story)))
    written = [*english_first[:2], *[story for story in english_first if _is_chinese(story)][:1]]
    true = [*islice((story for story in val if not _is_chinese(story)), 2),
            *islice((story for story in val if _is_chinese(story)), 1)]
    for mine, other in zip(written, true, strict=False):
        print(side_by_side(mine, other, titles=("written by the model", "written by the little world")) + "\n")
    print(f"  the picture:      {picture}\n  all samples:      {run / 'samples.txt'}\n"
          f"  let it write on:  python -m llm.tasks.generate --model {run}\n  in all:           {seconds:.0f} s\n")


def side_by_side(left: str, right: str, *, titles: tuple[str, str], width: int = 56) -> str:
    """Two texts in two columns; a Chinese character is two places wide."""
    columns = [[title, "-" * width, *_wrap(text, width)] for title, text in zip(titles, (left, right), strict=True)]
    lines = []
    for one, other in zip_longest(*columns, fillvalue=""):
        lines.append(f"{one}{' ' * (width - _places(one))}   {other}")
    return "\n".join(lines)


def _wrap(text: str, width: int) -> list[str]:
    if not _is_chinese(text):
        return textwrap.wrap(text, width)
    lines, line = [], ""
    for character in text.replace("\n", ""):
        if _places(line + character) > width:
            lines.append(line)
            line = ""
        line += character
    return [*lines, line]


def _places(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def _is_good(story: str) -> bool:
    verdict = tinyworld.judge(story)
    return verdict.is_grammatical and verdict.is_consistent


if __name__ == "__main__":
    entry(main)
