"""Where the numbers go: a file of JSON lines, a plot, the console, and trackers that can never stop a run.

A logger has one method, `log(row)`; a row is what stands in a line of metrics.jsonl. The Trainer calls a plain list
of them. Next: `trainer.py`.
"""

import json
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

Row = Mapping[str, Any]
FIRST_PLOT_S = 3   # after so many seconds there is something to look at
GROWING = ("metrics.jsonl", "samples.txt")   # files of a run that only grow; a resumed run cuts them back


class Logger(Protocol):
    """Takes the rows of a run as they come."""

    def log(self, row: Row) -> None:
        """One row: `split`, `step`, `loss` and more."""

    def close(self) -> None:
        """The run is over."""


class JsonLines:
    """One object a line. Each line is handed to the operating system at once, so that a killed run loses none.

    JSON has no word for NaN and infinity; they are written as null.
    """

    def __init__(self, path: Path):
        self.path = path
        self.file = open(path, "a", encoding="utf-8")   # noqa: SIM115 - held open for the whole run

    def log(self, row: Row) -> None:
        with naming(self.path):
            self.file.write(json.dumps(_with_none(row), allow_nan=False) + "\n")
            self.file.flush()

    def close(self) -> None:
        with suppress(OSError):   # every line has been flushed, or its error raised
            self.file.close()


class Console:
    """Validation as a line, through `logging`; the progress bar shows the training steps."""

    def log(self, row: Row) -> None:
        if row["split"] == "train":
            return
        known = ("split", "step", "loss", "tokens", "elapsed_s", "wall_s")
        others = "".join(f" | {name} {value:.4g}" for name, value in row.items()
                         if name not in known and "." not in name)   # name.3 is of one layer
        log.info("step %d | %s loss %.4f%s | %.0f s", row["step"], row["split"], row["loss"], others, row["elapsed_s"])

    def close(self) -> None:
        pass


class Plot:
    """loss.png, drawn anew after validations, but never so often that it costs more than a hundredth of the time.

    A run of a few seconds is drawn once, at its end.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.next_time = time.perf_counter() + FIRST_PLOT_S
        self.is_up_to_date = False

    def log(self, row: Row) -> None:
        self.is_up_to_date = False
        if row["split"] != "train" and time.perf_counter() >= self.next_time:
            started = time.perf_counter()
            plot_losses(self.folder)
            self.is_up_to_date = True
            self.next_time = time.perf_counter() + 100 * (time.perf_counter() - started)

    def close(self) -> None:
        if not self.is_up_to_date:
            plot_losses(self.folder)


class TensorBoard:
    """Scalars for TensorBoard, in `tensorboard/` of the run (extra `track`)."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Row) -> None:
        for name, value in _with_none(row).items():
            if name not in ("split", "step") and value is not None:
                self.writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases (extra `track`); WANDB_MODE=offline keeps everything in the run folder."""

    def __init__(self, folder: Path, *, settings: Mapping[str, Any]):
        import wandb

        self.run = wandb.init(project="llm", name=folder.name, dir=str(folder), config=dict(settings))

    def log(self, row: Row) -> None:
        known = {f"{row['split']}/{name}": value for name, value in _with_none(row).items()
                 if name not in ("split", "step") and value is not None}
        self.run.log(known, step=row["step"])   # one axis for all charts; a validation joins its training step

    def close(self) -> None:
        self.run.finish()


class Guarded:
    """A tracker that is given up with a warning when it fails: an account or a network never stops a run."""

    def __init__(self, make: Callable[..., Logger], *arguments: Any, **settings: Any):
        self.name = make.__name__
        self.logger: Logger | None = None
        self.logger = self._try(partial(make, *arguments, **settings))

    def log(self, row: Row) -> None:
        if self.logger is not None:
            self._try(partial(self.logger.log, row))

    def close(self) -> None:
        if self.logger is not None:
            self._try(self.logger.close)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:   # whatever a tracker throws, the run goes on
            log.warning("%s is switched off: %s: %s", self.name, type(error).__name__, error)
            self.logger = None
            return None


def trackers(folder: Path, settings: Any, *, tensorboard: bool, wandb: bool) -> list[Logger]:
    """The trackers that were asked for, guarded.

    Args:
        folder: the run folder.
        settings: the dataclass of all settings, shown by W&B.
        tensorboard, wandb: which.
    """
    chosen: list[Logger] = []
    if tensorboard:
        chosen.append(Guarded(TensorBoard, folder))
    if wandb:
        chosen.append(Guarded(WandB, folder, settings=asdict(settings)))
    return chosen


def lengths_on_disk(folder: Path) -> dict[str, int]:
    """The lengths of a run's growing files, after forcing them to the disk; 0 where there is none yet."""
    lengths = dict.fromkeys(GROWING, 0)
    for path in (folder / name for name in GROWING if (folder / name).is_file()):
        with open(path, "ab") as file:
            os.fsync(file.fileno())
            lengths[path.name] = file.tell()
    return lengths


def cut_back(folder: Path, lengths: Mapping[str, int]) -> None:
    """Take a run's growing files back to what they were; to nothing, where no length is given.

    Raises:
        ValueError: if the lengths are none.
    """
    if not isinstance(lengths, Mapping) or not all(isinstance(one, int) and one >= 0 for one in lengths.values()):
        raise ValueError(f"the saved lengths={lengths!r} are no lengths of files, so the checkpoint is damaged; delete "
                         "its folder to go on with the one before")
    for path in (folder / name for name in GROWING if (folder / name).is_file()):
        length = lengths.get(path.name, 0)
        if (now := path.stat().st_size) < length:
            log.warning("%s has lost its end: %d bytes of %d are left", path, now, length)
        os.truncate(path, min(now, length))   # beyond its end it would be filled with zeros


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system that say which file they are about; a write that fails does not say it by itself."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none if it has none yet."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def plot_losses(folder: Path) -> None:
    """Draw loss.png from metrics.jsonl: training loss and its running median, validation with its best, learning rate.

    A few spikes are cut off at the top rather than allowed to press the rest of the curve flat.
    """
    # without pyplot, whose settings belong to whoever draws in a notebook
    from matplotlib.figure import Figure

    rows = [row for row in read_rows(folder) if row.get("loss") is not None]
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    if not train:
        return
    figure = Figure(figsize=(9, 6), dpi=120)
    axes, below = figure.subplots(2, sharex=True, height_ratios=(5, 1))
    figure.subplots_adjust(left=0.09, right=0.98, top=0.94, bottom=0.09, hspace=0.12)   # automatic: twice the time
    steps, losses = [row["step"] for row in train], [row["loss"] for row in train]
    places, medians = _running_median(losses)
    marker = "o" if len(train) == 1 else None   # a line through one point shows nothing
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.7, marker=marker, label="training, each step")
    axes.plot([steps[place] for place in places], medians, color="#1f77b4", linewidth=1.8,
              label="training, running median")
    shown = list(losses)
    if val:
        best = min(val, key=lambda row: row["loss"])
        shown += [row["loss"] for row in val]
        axes.plot([row["step"] for row in val], [row["loss"] for row in val], color="#d62728", marker="o", markersize=3,
                  linewidth=1.4, label=f"validation {val[-1]['loss']:.4f}")
        axes.plot(best["step"], best["loss"], color="#d62728", marker="*", markersize=13, markeredgecolor="white",
                  linestyle="none", label=f"best {best['loss']:.4f} at step {best['step']:,}")
    axes.set_ylim(_loss_limits(shown))
    axes.set_ylabel("loss (nats per token)")
    name = folder.resolve().name
    axes.set_title(name if name.isascii() else "")   # the default font knows no Chinese
    axes.legend(loc="upper right", framealpha=0.9)
    below.plot(steps, [row["lr"] for row in train], color="#555555", linewidth=1.2, marker=marker)
    below.set_ylim(bottom=0)
    below.ticklabel_format(axis="y", scilimits=(-2, 2))
    below.set_ylabel("learning rate")
    below.set_xlabel("optimizer step")
    for part in (axes, below):
        part.grid(alpha=0.25)
        part.spines[["top", "right"]].set_visible(False)
    unfinished = folder / ".unfinished-loss.png"   # whoever looks at the plot never sees half of it
    figure.savefig(unfinished, format="png", pil_kwargs={"compress_level": 1})   # a third of the time, twice the size
    os.replace(unfinished, folder / "loss.png")


def _loss_limits(losses: list[float]) -> tuple[float, float]:
    """Bottom and top of the plot; the top leaves out spikes more than twice as high as what is usual."""
    ordered = sorted(losses)
    low, high = ordered[0], ordered[-1]
    usual = ordered[int(0.98 * (len(ordered) - 1))]   # only one loss in fifty is higher
    enough = 2 * (usual - low)
    if 0 < 2 * enough < high - low:
        high = low + enough
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def _running_median(values: list[float]) -> tuple[list[int], list[float]]:
    """At up to 400 places the median of a twentieth of the values around; it neither lags behind nor sees spikes."""
    last = len(values) - 1
    places = sorted({round(number * last / 399) for number in range(400)})
    medians = []
    for place in places:
        reach = min(len(values) // 40, place)   # the same on both sides of a steep beginning
        medians.append(statistics.median(values[place - reach : place + reach + 1]))
    return places, medians


def _with_none(row: Row) -> dict[str, Any]:
    """The row with None for numbers that are not finite."""
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()}
