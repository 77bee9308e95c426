"""What a run keeps: the checkpoints that are complete, the latest and the best, and the state of the trainer in each.

Everything is first written under another name, forced to the disk and then renamed, the index last; a run that is
killed at any moment loses nothing that the index names.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from llm.interop.shards import read_json, read_tensors, write_json

UNFINISHED = ".unfinished-"


def step_name(step: int) -> str:
    """The folder name of a step."""
    return f"step-{step:08d}"


class CheckpointStore:
    """The checkpoints of one run: what is complete, the latest, the best; writes a new one, removes old ones.

    Args:
        folder: `checkpoints` of the run.
        keep: how many of the newest to keep; the best is kept besides. 0 keeps all.
    """

    def __init__(self, folder: Path, *, keep: int = 0):
        self.folder = folder
        self.keep = keep

    def read_index(self) -> dict[str, Any]:
        """`complete` (steps, ascending), `latest`, `best`; empty if nothing was saved yet.

        A folder has its name only when it is complete, so that a lost index, or folders deleted by hand, cost nothing
        else.

        Raises:
            ValueError: if the index is damaged.
        """
        found = sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-????????")
                       if path.name[5:].isdecimal() and path.is_dir())
        file, remedy = self.folder / "index.json", "delete it, the folders beside it tell the same"
        if not file.exists():
            return {"complete": found, "latest": found[-1] if found else None, "best": None}
        index = read_json(file, keys=("complete", "latest", "best"), remedy=remedy)
        steps = [*index["complete"], index["latest"], index["best"]] if isinstance(index["complete"], list) else [""]
        if not all(step is None or type(step) is int for step in steps):
            raise ValueError(f"{file} is damaged: its steps are no numbers; {remedy}")
        complete = [step for step in index["complete"] if step in found]
        latest, best = (index[name] if index[name] in complete else None for name in ("latest", "best"))
        if latest is None and complete:
            latest = complete[-1]
        return {"complete": complete, "latest": latest, "best": best}

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / step_name(step)

    def write(self, step: int, fill: Callable[[Path], None], *, is_best: bool) -> None:
        """Make the checkpoint of a step complete, or leave everything as it was.

        Args:
            step: the optimizer steps done.
            fill: writes the files into the folder it is given.
            is_best: whether this step becomes the best.

        Raises:
            ValueError: if the step is saved already; a folder cannot be replaced in one instant.
            OSError: if the disk is full or refuses otherwise.
        """
        if step in self.read_index()["complete"]:
            raise ValueError(f"{self.path(step)} is saved already; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clean()
        target = self.path(step)
        with _finished_folder(self.folder / f"{UNFINISHED}{target.name}", target) as unfinished:
            fill(unfinished)
        index = self.read_index()
        steps = sorted({*index["complete"], step})
        best = step if is_best else index["best"]
        kept = [other for other in steps if other in (steps[-self.keep :] if self.keep else steps) or other == best]
        self._write_index({"complete": kept, "latest": step, "best": best})
        for other in set(steps) - set(kept):
            shutil.rmtree(self.path(other))

    def clean(self) -> None:
        """Remove what killed runs left behind: unfinished folders, and steps that the index does not name."""
        complete = {step_name(step) for step in self.read_index()["complete"]}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in complete and path.name.startswith((UNFINISHED, "step-")):
                shutil.rmtree(path)

    def write_beside(self, name: str, fill: Callable[[Path], None]) -> None:
        """Make a folder of another name complete beside the checkpoints, in place of an older one.

        Raises:
            OSError: if the disk is full or refuses otherwise.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clean()
        target = self.folder / name
        with _finished_folder(self.folder / f"{UNFINISHED}{name}", target) as unfinished:
            fill(unfinished)
            shutil.rmtree(target, ignore_errors=True)   # a folder cannot be replaced in one instant

    def _write_index(self, index: dict[str, Any]) -> None:
        unfinished = self.folder / f"{UNFINISHED}index.json"
        write_json(unfinished, index)
        _sync(unfinished)
        os.replace(unfinished, self.folder / "index.json")
        _sync(self.folder)


def write_trainer_state(folder: Path, state: Mapping[str, Any], optimizer: Mapping[str, Tensor]) -> None:
    """Write `trainer/` of a checkpoint: plain values as JSON, the optimizer's tensors as safetensors."""
    (folder / "trainer").mkdir()
    write_json(folder / "trainer" / "state.json", state)
    safetensors.torch.save_file(dict(optimizer), folder / "trainer" / "optimizer.safetensors")


def read_trainer_state(folder: Path, *, keys: Iterable[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The counterpart of `write_trainer_state`; `keys` are those that the state must have.

    Raises:
        ValueError: if the folder holds a model only, or its files are damaged.
    """
    path = folder / "trainer" / "state.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no trainer/ to resume from; start from its weights with --model")
    return read_json(path, keys=keys), read_tensors(folder / "trainer" / "optimizer.safetensors")


@contextmanager
def _finished_folder(unfinished: Path, target: Path) -> Iterator[Path]:
    """A folder to fill; when that succeeds it is on the disk under its final name, else it is gone."""
    unfinished.mkdir()
    try:
        yield unfinished
        for path in sorted(unfinished.rglob("*")):
            _sync(path)
        _sync(unfinished)
        os.replace(unfinished, target)
        _sync(target.parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{target} could not be written: {error}; the checkpoints before it are untouched") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return   # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
