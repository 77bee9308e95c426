"""Laws of the classify command: what a run leaves behind, and that it says of a text what it said in the run."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.tasks import classify

TINY = ["--num-layers", "1", "--num-heads", "1", "--num-kv-heads", "1", "--dim", "8", "--mlp-dim", "8", "--tokenizer",
        "byte", "--epochs", "1", "--warm-up", "1", "--batch-size", "4", "--threads", "1", "--device", "cpu"]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a table of 40 different texts in two classes."""
    monkeypatch.chdir(tmp_path)
    words = ["tea", "sun", "dog", "car", "tree", "moon", "ball", "fish", "milk", "rain"]
    rows = [f"{label},{word} {other} for you\n" for word in words for label, other in
            (("ham", "and bread"), ("spam", "prize"), ("ham", "or jam"), ("spam", "cash"))]
    Path("rows.csv").write_text("Label,Text\n" + "".join(rows), encoding="utf-8")
    yield tmp_path


def run(*argv: str) -> int:
    return classify.main([*TINY, *argv])


def test_a_run_can_be_used_and_says_again_what_it_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", "rows.csv", "--out", "run") == 0
    assert capsys.readouterr().out == "run\n"
    with open("run/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = next(row for row in rows if row["part"] == "test")
    assert classify.main(["--predict", first["text"], "--model", "run", "--device", "cpu"]) == 0
    label, shown, text = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (label, text) == (first["predicted"], first["text"])
    assert float(shown.split()[1]) == pytest.approx(float(first["p(ham)"]), abs=1e-4)


def test_the_default_needs_no_file() -> None:
    assert run("--out", "run", "--context", "16", "--batch-size", "64") == 0
    assert json.loads(Path("run/results.json").read_text(encoding="utf-8"))[0]["test"]["rows"] > 100
