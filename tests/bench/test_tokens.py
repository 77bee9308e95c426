"""Laws of `bench data`: the same tokens whichever way, and every speed beside that of the training it feeds."""

from pathlib import Path

import pytest

from llm.bench import tokens
from llm.bench.config import DataBenchConfig, MachineConfig
from llm.bench.tokens import bench_data, show_data, text_of
from llm.data.tokenfile import open_token_file
from tests.conftest import TINY

SETTINGS = {"architecture": TINY["gpt"], "megabytes": 0.02, "tokenizer": "byte", "workers": 1, "context": 16,
            "batch_size": 2, "steps": 1}


def test_tokenizing_reading_and_training_stand_side_by_side(tmp_path: Path) -> None:
    rows = bench_data(DataBenchConfig(**SETTINGS))   # type: ignore[arg-type]
    assert [row["what"] for row in rows] == [
        "encode in memory", "text to token files, 1 process", "windows in order", "windows from anywhere",
        rows[-1]["what"]]
    assert rows[-1]["what"].startswith("training gpt-tiny in ")
    for row in rows:
        assert row["times_training"] == row["tokens_per_s"] / rows[-1]["tokens_per_s"]
    in_memory, in_files = rows[:2]   # bytes are tokens here, and each document has one token more
    for row in (in_memory, in_files):
        assert row["tokens_per_s"] == pytest.approx(1e6 * row["megabytes_per_s"], rel=0.02)
    assert show_data(rows).splitlines()[-1].split()[-2:] == [f"{rows[-1]['tokens_per_s']:,.0f}", "1.0"]


@pytest.mark.slow   # starts processes
def test_several_processes_are_measured_beside_one() -> None:
    rows = bench_data(DataBenchConfig(**{**SETTINGS, "workers": 2}))   # type: ignore[arg-type]
    assert [row["what"] for row in rows[1:3]] == ["text to token files, 1 process", "text to token files, 2 processes"]


def test_a_text_of_one_s_own_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "我的 text.txt"
    path.write_text("The quick brown fox.\n" * 50, encoding="utf-8")
    assert text_of(DataBenchConfig(data=str(path)), tmp_path) == path
    with pytest.raises(ValueError, match=r"megabytes=3.0 is for the text made on the spot"):
        DataBenchConfig(data=str(path), megabytes=3.0)
    with pytest.raises(ValueError, match=r"--data .*nowhere"):
        text_of(DataBenchConfig(data="nowhere.txt"), tmp_path)
    counts = []

    def count_instead(file: Path, config: DataBenchConfig) -> list[tokens.Row]:
        counts.append(len(open_token_file(file).tokens))
        return []

    monkeypatch.setattr(tokens, "reading", count_instead)
    bench_data(DataBenchConfig(**{**SETTINGS, "megabytes": 8.0, "data": str(path)}))   # type: ignore[arg-type]
    assert 0.8 * 21 * 50 < counts[0] < 21 * 50   # bytes, less the tenth held out


@pytest.mark.parametrize(("settings", "message"), [
    ({"megabytes": 0.0}, "megabytes=0.0 must be above 0"), ({"workers": 0}, "workers=0 must be at least 1"),
    ({"machine": MachineConfig(clock="cpu")}, "clock=cpu does not see the processes that tokenize")])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataBenchConfig(**settings)   # type: ignore[arg-type]
