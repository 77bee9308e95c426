"""The command: lists the sets, fetches one, and ends in one line where it cannot."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from llm.data.download import REGISTRY, DataFile, DataSet
from llm.tasks.download import main

TEXT = b"once upon a time"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = DataFile(name="text.txt", sha256=hashlib.sha256(TEXT).hexdigest())
    monkeypatch.setitem(REGISTRY, "tiny", DataSet(summary="", kind="text", source="", licence="", train=file))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    return tmp_path


def test_without_a_name_the_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name, entry in REGISTRY.items():
        assert f"{name} ({entry.kind}, " in shown and entry.licence in shown and entry.source in shown


def test_the_last_line_is_the_path(mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", "tiny", "--mirror", str(mirror)]) == 0
    assert capsys.readouterr().out == "data/tiny/text.txt\n"
    assert Path("data/tiny/text.txt").read_bytes() == TEXT
    assert main(["--data", "tiny", "--folder", "elsewhere", "--mirror", "."]) == 0
    assert Path("elsewhere/tiny/text.txt").read_bytes() == TEXT


@pytest.mark.parametrize(("argv", "message"), [
    (["--data", "alpacca"], "error: 'alpacca' is no data set of the registry; did you mean 'alpaca'?\n"),
    (["--data", "alpaca", "--mirror", "no/where"], "error: --mirror no/where: there is no such folder; name"),
])
def test_what_cannot_be_had_ends_in_one_line(tmp_path: Path, argv: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "llm.tasks.download", *argv], cwd=tmp_path, text=True,
                          capture_output=True, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1
