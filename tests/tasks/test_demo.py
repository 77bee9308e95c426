"""The demo in small: every part runs, and what it reports is measured."""

from pathlib import Path

import pytest

from llm.config import UsageError
from llm.data import tinyworld
from llm.tasks import demo


@pytest.mark.slow
def test_the_demo_trains_examines_draws_and_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TRAIN_CHARACTERS", 60_000)
    monkeypatch.setattr(demo, "VAL_CHARACTERS", 6_000)
    monkeypatch.setattr(demo, "NUM_STORIES", 4)
    argv = ["--num-layers", "1", "--num-heads", "2", "--dim", "32", "--steps", "6", "--eval-every", "3", "--batch-size",
            "4", "--context", "420", "--tokenizer", "bpe:600", "--out", "run", "--precision", "fp32", "--warmup", "0"]
    assert demo.main(argv) == 0
    out = capsys.readouterr().out
    assert "No model goes below" in out and "0% grammatical" in out and "100% not in the training text" in out
    assert "written by the little world" in out and out.strip().endswith("run")
    assert {"demo.png", "loss.png", "samples.txt", "run.toml"} <= {path.name for path in Path("run").iterdir()}
    assert demo.main(["--resume", "run"]) == 0   # its own settings: those of the preset would not fit its weights
    assert capsys.readouterr().out.strip().endswith("run")


def test_a_true_story_is_written_side_by_side_in_columns_of_equal_width() -> None:
    english, chinese = (next(iter(tinyworld.stories(1, language, 10))) for language in ("en", "zh"))
    lines = demo.side_by_side(english, chinese, titles=("a", "b"), width=40).splitlines()
    assert len(lines) > 10
    for line in lines:
        assert demo._places(line) <= 83
        assert demo._places(line[: line.rindex("   ")].rstrip()) <= 40 or not line.strip()


@pytest.mark.parametrize("flag", ["--help", "--stepz"])
def test_help_and_a_bad_flag_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SystemExit, UsageError)):
        demo.main([flag])
    assert not any(tmp_path.iterdir())
