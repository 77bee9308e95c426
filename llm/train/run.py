"""The folder of a run: where it is, what was asked for, on which machine, and what the console showed.

    logs/pretrain/2026-01-31_12-00-00_first/
        run.toml  environment.json  train.log  metrics.jsonl  loss.png  samples.txt  checkpoints/

Torch-free up to `open_run`'s body, so that commands can look a run up before torch is imported.
"""

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llm.config import write_toml

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run is kept and who is told of it."""

    name: str | None = None
    """A word for the folder's name."""
    out: str | None = None
    """The run folder itself; default: logs/TASK/TIME_NAME."""
    resume: str | None = None
    """Go on with this run folder, or with the latest one: its own settings, its own data order."""
    tensorboard: bool = False
    """Also write TensorBoard files (extra `track`)."""
    wandb: bool = False
    """Also report to Weights & Biases (extra `track`)."""


def find_run(task: str, name: str) -> Path:
    """The folder that `--resume` names; "latest" is the newest below logs/TASK.

    Raises:
        ValueError: if there is no such run.
    """
    if name == "latest":
        runs = sorted(path.parent for path in Path("logs", task).glob("*/run.toml"))
        if not runs:
            raise ValueError(f"--resume latest: there is no run below {Path('logs', task)}")
        return runs[-1]   # the names begin with the time
    if not Path(name, "run.toml").is_file():
        raise ValueError(f"--resume {name}: that is no run folder, it has no run.toml")
    return Path(name)


@contextmanager
def open_run(task: str, config: RunConfig, settings: Any) -> Iterator[Path]:
    """Make the run folder, or go back to it; meanwhile everything logged goes to the console and to train.log.

    Args:
        task: the command's name.
        config: where and under which name.
        settings: the dataclass of all settings, with `config` as its field `run`; kept as run.toml.

    Yields:
        The folder.

    Raises:
        ValueError: if the folder holds another run.
    """
    if config.resume is not None:
        folder = find_run(task, config.resume)
    else:
        name = time.strftime("%Y-%m-%d_%H-%M-%S") + (f"_{config.name}" if config.name else "")
        folder = Path(config.out) if config.out else Path("logs", task, name)
        if (folder / "run.toml").exists():
            raise ValueError(f"{folder} holds a run already; go on with --resume {folder}, or choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
    # where the run stands is not a setting: run.toml must serve as the --config of another run
    kept = replace(settings, run=replace(config, out=None, resume=None))
    (folder / "run.toml").write_text(write_toml(kept), encoding="utf-8")
    with _logging_to(folder / "train.log"):
        try:
            yield folder
        except Exception:
            logging.getLogger("llm.traceback").exception("the run failed")   # in train.log only: see _ConsoleHandler
            raise


def record_environment(folder: Path, *, hashes: Mapping[str, str | None]) -> None:
    """Write environment.json, or hold a resumed run against it.

    Args:
        folder: the run folder.
        hashes: sha256 of what the run stands on, such as data and tokenizer.

    Raises:
        ValueError: if the run was begun with other data or another tokenizer.
    """
    path = folder / "environment.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["hashes"]
        changed = [name for name in hashes if before.get(name) != hashes[name]]
        if changed:
            raise ValueError(f"{' and '.join(changed)} are not those that {folder} was begun with; restore them, or "
                             "start a new run from its weights with --model")
        return
    packages = ("torch", "numpy", "tiktoken", "safetensors")
    table = {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "git_commit": _git_commit(),
        "hashes": dict(hashes),
    }
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


class _ConsoleHandler(logging.Handler):
    """Lines on stderr that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "llm.traceback":
            tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    logger = logging.getLogger("llm")
    level = logger.level
    console, file = _ConsoleHandler(), logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.setLevel(logging.INFO)
    for handler in (console, file):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (console, file):
            logger.removeHandler(handler)
        file.close()
        logger.setLevel(level)


def _git_commit() -> str | None:
    """The commit of the library's own checkout, None where there is none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
