"""Laws of the bench command: one word says what is measured, and all of it is kept in the folder named last."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llm.bench.measure import matmul_rate
from llm.config import UsageError, write_toml
from llm.models.config import GPTConfig, QwenConfig
from llm.tasks import bench

TINY = ["--num-layers", "1", "--num-heads", "1", "--dim", "8", "--device", "cpu", "--threads", "1"]
SHORT = {
    "train": [*TINY, "--vocab-size", "61", "--context", "8", "--batch-size", "2", "--steps", "1", "--precision", "fp32",
              "--memory", "none"],
    "generate": [*TINY, "--vocab-size", "61", "--prompt-tokens", "2", "--new-tokens", "2", "--rounds", "1",
                 "--precision", "fp32", "--memory", "none"],
    "classify": [*TINY, "--texts", "4", "--turns", "1", "--precision", "fp32", "--tokenizer", "byte"],
    "data": [*TINY, "--megabytes", "0.01", "--tokenizer", "byte", "--workers", "1", "--context", "8", "--steps", "1"],
}


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llm.bench.measure.MATRIX_SIZE", 64)
    monkeypatch.setattr("llm.bench.training.matmul_rate_apart", matmul_rate)   # a process would know no other size
    monkeypatch.setattr("llm.bench.measure.STREAM_BYTES", 2**20)


@pytest.mark.parametrize("command", SHORT)
def test_the_table_is_shown_and_kept_and_the_folder_named_last(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([command, *SHORT[command], "--name", "first 次"]) == 0
    *table, folder = capsys.readouterr().out.splitlines()
    assert [folder] == [str(path) for path in Path("logs/bench").glob("*_first 次")]
    assert sorted(path.name for path in Path(folder).iterdir()) == [
        "environment.json", "results.json", "results.txt", "run.toml", "train.log"]
    assert (Path(folder) / "results.txt").read_text("utf-8").splitlines() == table
    results = json.loads((Path(folder) / "results.json").read_text("utf-8"))
    assert len(results["rows"]) == len(table) - 1
    assert results["machine"]["threads"] == 1 and results["settings"]["architecture"]["dim"] == 8
    assert {"packages", "git_commit"} <= set(json.loads((Path(folder) / "environment.json").read_text("utf-8")))


@pytest.mark.parametrize("command", SHORT)
def test_the_settings_that_were_kept_measure_the_same_again(command: str) -> None:
    config = bench.parse([command, *SHORT[command]])
    Path("again.toml").write_text(write_toml(config), encoding="utf-8")
    assert replace(bench.parse([command, "--config", "again.toml"]), config=None) == config


def test_another_clock_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["train", *SHORT["train"], "--clock", "cpu", "--out", "here"])
    assert "one of a processor" in capsys.readouterr().out
    assert json.loads(Path("here/results.json").read_text("utf-8"))["machine"]["clock"] == "cpu"


def test_a_profile_leaves_traces_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["train", *SHORT["train"], "--against", "transformers", "--profile", "--out", "here"]) == 0
    assert "where the time goes" in capsys.readouterr().out
    for program in ("ours", "transformers"):
        assert json.loads(Path(f"here/trace-{program}-fp32.json").read_text("utf-8"))["traceEvents"]
        assert "head and loss" in Path(f"here/profile-{program}-fp32.txt").read_text("utf-8")


def test_the_model_fixes_the_architecture_and_lists_take_several_values() -> None:
    config = bench.parse(["train", "--model", "qwen3-0.6b", "--num-layers", "2", "--precision", "fp32", "bf16",
                          "--compile", "false", "true"])
    assert isinstance(config.architecture, QwenConfig)
    assert (config.architecture.num_layers, config.architecture.vocab_size) == (2, 151_936)
    assert (config.precision, config.compile) == (("fp32", "bf16"), ("false", "true"))   # type: ignore[union-attr]
    assert bench.parse(["data"]).architecture == GPTConfig()
    assert bench.parse(["generate", "--batch-size", "1", "4"]).batch_size == (1, 4)


@pytest.mark.parametrize(("argv", "message"), [
    ([], "Expected one of"), (["trian"], "trian"), (["train", "--stesp", "3"], "--steps"),
    (["train", "--resume", "latest"], "Unrecognized options: --resume"),
])
def test_a_wrong_command_is_a_usage_error_with_a_hint(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        bench.parse(argv)
    assert message in str(caught.value)


@pytest.mark.parametrize("command", ["train", "generate", "classify"])
def test_without_transformers_one_line_says_so_and_nothing_is_left(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="it is in the extra `test`"):
        bench.main([command, *SHORT[command], "--against", "transformers"])
    assert not list(Path("logs/bench").iterdir())


def test_a_folder_that_holds_results_is_not_written_over() -> None:
    bench.main(["train", *SHORT["train"], "--out", "here"])
    with pytest.raises(ValueError, match="here holds a run already; choose another --out"):
        bench.main(["train", *SHORT["train"], "--out", "here"])
