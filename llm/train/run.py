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
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from llm.config import write_toml
from llm.train.logger import naming

if TYPE_CHECKING:
    from llm.runtime import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Where a run is kept."""

    name: str | None = None
    """A word for the folder's name."""
    out: str | None = None
    """The run folder itself; default: logs/TASK/TIME_NAME."""

    def __post_init__(self) -> None:
        if self.name and set(self.name) & {"/", "\\"}:
            raise ValueError(f"--name {self.name} is a part of the folder's name and no path; use --out for a path")


@dataclass(frozen=True, kw_only=True)
class RunConfig(FolderConfig):
    """Where a run is kept, whether it goes on with an earlier one, and who is told of it."""

    resume: str | None = None
    """Go on with this run folder, or with the latest one: its own settings, its own data order."""
    tensorboard: bool = False
    """Also write TensorBoard files (extra `track`)."""
    wandb: bool = False
    """Also report to Weights & Biases (extra `track`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and self.resume:
            raise ValueError(f"--out {self.out} and --resume {self.resume} exclude each other; a resumed run stays in "
                             "its folder")


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
def open_run(task: str, config: FolderConfig, world: "World | None" = None) -> Iterator[Path]:
    """Make the run folder, or go back to it; meanwhile everything logged goes to the console and to train.log.

    Of several processes the first does all this; the others learn from it where the folder is, and keep silent.

    It becomes a run with `keep_settings`. If what was asked for turns out impossible before that, a folder made here
    is removed again, so that the corrected command finds its place free.

    Args:
        task: the command's name.
        config: where and under which name.
        world: the processes; default this one alone.

    Yields:
        The folder.

    Raises:
        ValueError: if the folder holds another run, or one that is still going on.
    """
    if world is not None and not world.is_main:
        with _silence():
            yield Path(world.gather(None)[0])
        return
    resume = config.resume if isinstance(config, RunConfig) else None
    folder, is_new = (find_run(task, resume), False) if resume else _new_folder(task, config)
    if world is not None:
        world.gather(str(folder))
    with _locked(folder), _removed_unless_begun(folder, is_new=is_new), _logging_to(folder / "train.log"):
        try:
            yield folder
        except Exception:
            logging.getLogger("llm.traceback").exception("the run failed")   # in train.log only: _ConsoleHandler
            raise


def keep_settings(folder: Path, settings: Any) -> None:
    """Write run.toml: from now on the folder is a run, which --resume finds.

    Args:
        folder: the run folder.
        settings: the dataclass of all settings, with a FolderConfig as its field `run`.
    """
    # where the run stands is not a setting: run.toml must serve as the --config of another run
    run = replace(settings.run, out=None)
    kept = replace(settings, run=replace(run, resume=None) if isinstance(run, RunConfig) else run)
    _write_whole(folder / "run.toml", write_toml(kept))   # a resumed run that is killed here keeps its settings


def record_environment(folder: Path, *, hashes: Mapping[str, str | None]) -> None:
    """Write environment.json, or hold a resumed run against it.

    Args:
        folder: the run folder.
        hashes: sha256 of what the run stands on, such as data and tokenizer.

    Raises:
        ValueError: if the run was begun with other data or another tokenizer, or the file is damaged.
    """
    path = folder / "environment.json"
    if path.is_file() and (folder / "run.toml").is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["hashes"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}; without it nobody knows which data the run was begun with. "
                             "If they are the same, delete it") from error
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
    _write_whole(path, json.dumps(table, indent=2) + "\n")


def _new_folder(task: str, config: FolderConfig) -> tuple[Path, bool]:
    """The folder of a new run, and whether it was made here."""
    if config.out:
        folder = Path(config.out)
        if folder.is_file():
            raise ValueError(f"--out {folder} is a file; name a folder, new or empty")
        if any((folder / name).exists() for name in ("run.toml", "metrics.jsonl", "checkpoints")):
            remedy = f"go on with --resume {folder}, or " if isinstance(config, RunConfig) else ""
            raise ValueError(f"{folder} holds a run already; {remedy}choose another --out")
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        return folder, is_new
    name = time.strftime("%Y-%m-%d_%H-%M-%S") + (f"_{config.name}" if config.name else "")
    Path("logs", task).mkdir(parents=True, exist_ok=True)
    folder, number = Path("logs", task, name), 1
    while True:
        try:
            folder.mkdir()
            return folder, True
        except FileExistsError:   # another run began in the same second
            number += 1
            folder = folder.with_name(f"{name}-{number}")


@contextmanager
def _removed_unless_begun(folder: Path, *, is_new: bool) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, KeyboardInterrupt):   # not for a fault of ours: train.log tells of it
        if is_new and not (folder / "run.toml").exists():
            shutil.rmtree(folder)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder. The system takes the lock from a process that dies, so none is stale.

    Raises:
        ValueError: if another process has the folder.
    """
    path = folder / ".lock"
    with naming(path):
        file = _take(path)
    try:
        yield
    finally:
        with suppress(OSError):   # it went with its folder; or Windows, where nobody removes an open file
            path.unlink()
        file.close()


def _take(path: Path) -> TextIO:
    """The lock file, open and locked; where the system has no such locks (Windows), only open."""
    while True:
        file = open(path, "a+", encoding="utf-8")   # noqa: SIM115 - as long as it is open, it is ours
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ValueError(f"{path.parent} is in use by {file.read().strip() or 'another process'}; wait until "
                                 "it has ended, or stop it") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()   # who had it before has just removed it
    with suppress(OSError):   # a full disk: then it does not say whose it is
        file.truncate(0)
        os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return file


class _ConsoleHandler(logging.Handler):
    """Lines on stderr that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "llm.traceback":
            tqdm.write(self.format(record), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """train.log; when it cannot be written, a full disk shall end in one line, not in a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    logger = logging.getLogger("llm")
    level = logger.level
    # backslashreplace: a file name that is not UTF-8 can still be spoken of
    console, file = _ConsoleHandler(), _FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.setLevel(logging.INFO)
    for handler in (console, file):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (console, file):
            logger.removeHandler(handler)
        with suppress(OSError):
            file.close()
        logger.setLevel(level)


@contextmanager
def _silence() -> Iterator[None]:
    """For a process whose every word another one says too."""
    logger, handler = logging.getLogger("llm"), logging.NullHandler()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that a run killed meanwhile finds the old one or the new one, never half of it."""
    unfinished = path.with_name(f".unfinished-{path.name}")
    with naming(path), open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _git_commit() -> str | None:
    """The commit of the library's own checkout, None where there is none."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
