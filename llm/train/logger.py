"""Where the numbers go: a file of JSON lines, a plot, the console, and trackers that can never stop a run.

A logger has one method, `log(row)`; a row is what stands in a line of metrics.jsonl. The Trainer calls a plain list
of them. Next: `trainer.py`.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

Row = Mapping[str, Any]


class Logger(Protocol):
    """Takes the rows of a run as they come."""

    def log(self, row: Row) -> None:
        """One row: `split`, `step`, `loss` and more."""

    def close(self) -> None:
        """The run is over."""


class JsonLines:
    """One object a line. Each line is handed to the operating system at once, so that a killed run loses none."""

    def __init__(self, path: Path):
        self.file = open(path, "a", encoding="utf-8")   # noqa: SIM115 - held open for the whole run

    def log(self, row: Row) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Console:
    """Validation as a line, through `logging`; the progress bar shows the training steps."""

    def log(self, row: Row) -> None:
        if row["split"] == "train":
            return
        known = ("split", "step", "loss", "tokens", "elapsed_s", "wall_s")
        others = "".join(f" | {name} {value:.4g}" for name, value in row.items() if name not in known)
        log.info("step %d | %s loss %.4f%s | %.0f s", row["step"], row["split"], row["loss"], others, row["elapsed_s"])

    def close(self) -> None:
        pass


class Plot:
    """loss.png, drawn anew after validations, but never so often that it costs more than a hundredth of the time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.next_time = 0.0

    def log(self, row: Row) -> None:
        if row["split"] != "train" and time.perf_counter() >= self.next_time:
            started = time.perf_counter()
            plot_losses(self.folder)
            self.next_time = time.perf_counter() + 100 * (time.perf_counter() - started)

    def close(self) -> None:
        plot_losses(self.folder)


class TensorBoard:
    """Scalars for TensorBoard, in `tensorboard/` of the run (extra `track`)."""

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, row: Row) -> None:
        for name, value in row.items():
            if name not in ("split", "step"):
                self.writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases (extra `track`); WANDB_MODE=offline keeps everything in the run folder."""

    def __init__(self, folder: Path, *, settings: Mapping[str, Any]):
        import wandb

        self.run = wandb.init(project="llm", name=folder.name, dir=str(folder), config=dict(settings))

    def log(self, row: Row) -> None:
        self.run.log({f"{row['split']}/{name}": value for name, value in row.items() if name != "split"})

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


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; none if it has none yet."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def plot_losses(folder: Path) -> None:
    """Draw loss.png from metrics.jsonl: training loss, its running mean, and validation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in read_rows(folder) if row.get("loss") is not None]
    train = [row for row in rows if row["split"] == "train"]
    val = [row for row in rows if row["split"] == "val"]
    if not train:
        return
    figure, axes = plt.subplots(figsize=(8, 5), dpi=120)
    steps, losses = [row["step"] for row in train], [row["loss"] for row in train]
    axes.plot(steps, losses, color="#9ecae1", linewidth=0.8, label="training, each step")
    axes.plot(steps, _running_mean(losses, max(len(losses) // 50, 1)), color="#1f77b4", linewidth=1.6,
              label="training, running mean")
    if val:
        axes.plot([row["step"] for row in val], [row["loss"] for row in val], color="#d62728", marker="o", markersize=4,
                  linewidth=1.6, label=f"validation, best {min(row['loss'] for row in val):.4f}")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(folder / "loss.png")
    plt.close(figure)


def _running_mean(values: list[float], width: int) -> list[float]:
    """Exponential running mean over about `width` values, without the pull of its start."""
    mean, share, means = 0.0, 0.0, []
    keep = 1 - 1 / width
    for value in values:
        mean, share = keep * mean + (1 - keep) * value, keep * share + (1 - keep)
        means.append(mean / share)
    return means
