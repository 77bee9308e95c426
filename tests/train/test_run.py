"""Laws of the run folder: it says what was done with what, and refuses to be mixed with another run."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from llm.config import merge, read_toml
from llm.train.run import RunConfig, find_run, keep_settings, open_run, record_environment


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 5
    run: RunConfig = field(default_factory=RunConfig)


def settings(steps: int = 5, **run: object) -> Settings:
    return Settings(steps=steps, run=RunConfig(**run))   # type: ignore[arg-type]


def opened(config: Settings) -> Path:
    with open_run("pretrain", config.run) as folder:
        keep_settings(folder, config)
        return folder


def test_the_folder_is_named_after_task_time_and_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = opened(settings(name="first"))
    assert folder.parts[:2] == ("logs", "pretrain")
    assert folder.match("????-??-??_??-??-??_first")
    assert opened(settings(out="elsewhere/deep")) == Path("elsewhere/deep")


def test_run_toml_is_the_settings_in_force_and_a_config_for_another_run(tmp_path: Path) -> None:
    folder = opened(settings(7, out=str(tmp_path / "run"), name="first", wandb=True))
    again = merge(Settings(), read_toml(folder / "run.toml"), where="run.toml")
    assert again == settings(7, name="first", wandb=True)   # but not where the run stood
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_holds_a_run_is_not_used_for_another(tmp_path: Path) -> None:
    opened(settings(out=str(tmp_path)))
    with pytest.raises(ValueError, match=r"holds a run already; go on with --resume"):
        opened(settings(out=str(tmp_path)))
    assert opened(settings(resume=str(tmp_path))) == tmp_path


def test_resume_finds_a_run_by_path_or_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no run below"):
        find_run("pretrain", "latest")
    for name in ("2026-01-02_00-00-00_old", "2026-01-10_00-00-00", "2026-01-09_00-00-00_z"):
        opened(settings(out=f"logs/pretrain/{name}"))
    (tmp_path / "logs/pretrain/2027-01-01_00-00-00").mkdir()   # was killed before it began
    assert find_run("pretrain", "latest").name == "2026-01-10_00-00-00"
    assert find_run("pretrain", "logs/pretrain/2026-01-09_00-00-00_z").name == "2026-01-09_00-00-00_z"
    with pytest.raises(ValueError, match=r"no run folder, it has no run.toml"):
        find_run("pretrain", str(tmp_path))


def test_train_log_keeps_what_the_console_showed_and_why_a_run_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(out=str(tmp_path))
    with pytest.raises(KeyError), open_run("pretrain", config.run):
        logging.getLogger("llm.anything").info("step 1 is done")
        raise KeyError("a mistake of ours")
    kept, shown = (tmp_path / "train.log").read_text(), capsys.readouterr().err
    assert "step 1 is done" in kept and "step 1 is done" in shown
    assert "Traceback" in kept and "a mistake of ours" in kept
    assert "Traceback" not in shown   # the command ends with one line
    handlers = len(logging.getLogger("llm").handlers)
    keep_settings(tmp_path, config)
    opened(settings(resume=str(tmp_path)))
    assert len(logging.getLogger("llm").handlers) == handlers
    assert kept in (tmp_path / "train.log").read_text()   # a resumed run writes on


def test_the_environment_is_recorded_once_and_holds_a_resumed_run_to_its_data(tmp_path: Path) -> None:
    record_environment(tmp_path, hashes={"data": "1", "tokenizer": None})
    keep_settings(tmp_path, settings())   # from here on it is a run
    before = (tmp_path / "environment.json").read_text()
    table = json.loads(before)
    assert table["hashes"] == {"data": "1", "tokenizer": None}
    assert {"torch", "numpy"} <= set(table["packages"])
    record_environment(tmp_path, hashes={"data": "1", "tokenizer": None})
    for changed, named in (({"data": "2", "tokenizer": None}, "data"), ({"data": "1", "tokenizer": "x"}, "tokenizer"),
                           ({"data": "2", "tokenizer": "x"}, "data and tokenizer")):
        with pytest.raises(ValueError, match=f"^{named} are not those"):
            record_environment(tmp_path, hashes=changed)
    assert (tmp_path / "environment.json").read_text() == before


def test_a_damaged_environment_is_named(tmp_path: Path) -> None:
    keep_settings(tmp_path, settings())
    (tmp_path / "environment.json").write_text("{")
    with pytest.raises(ValueError, match=r"environment\.json is damaged"):
        record_environment(tmp_path, hashes={"data": "1"})


def test_a_table_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path) -> None:
    """A resumed run writes run.toml again; were it cut off in between, the run would have lost its settings."""
    resource = pytest.importorskip("resource")
    folder = opened(settings(7, out=str(tmp_path / "run")))
    before = (folder / "run.toml").read_text()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, limit[1]))
    try:
        with pytest.raises(OSError, match=r"run\.toml"):
            opened(settings(8, resume=str(folder)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (folder / "run.toml").read_text() == before
