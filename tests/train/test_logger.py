"""Laws of the loggers: nothing is lost, what is written can be read, and no tracker ever stops a run."""

import json
import logging
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import llm
from llm.models.build import build_model
from llm.train.logger import Console, Guarded, JsonLines, Plot, plot_losses, read_rows, trackers
from tests.conftest import TINY, windows


def train_row(step: int, **changes: Any) -> dict[str, Any]:
    return {"split": "train", "step": step, "tokens": 8 * step, "loss": 4.0 / step, "lr": 1e-3, "grad_norm": 0.5,
            "elapsed_s": 0.1, "tokens_per_second": 80.0, "wall_s": 0.2, **changes}


def val_row(step: int, **changes: Any) -> dict[str, Any]:
    return {"split": "val", "step": step, "tokens": 8 * step, "loss": 5.0 / step, "elapsed_s": 0.1, "wall_s": 0.2,
            **changes}


def logged(folder: Path, *rows: dict[str, Any]) -> Path:
    lines = JsonLines(folder / "metrics.jsonl")
    for row in rows:
        lines.log(row)
    lines.close()
    return folder


def run(folder: Path | None, *loggers: Any, steps: int = 4) -> llm.Trainer:
    config = llm.TrainConfig(steps=steps, batch_size=8, device="cpu", precision="fp32", eval_every=2)
    trainer = llm.Trainer(build_model(TINY["gpt"]), llm.NextToken(), train=windows(), config=config, folder=folder,
                          val=windows(100, is_shifted=False), loggers=loggers)
    trainer.fit()
    return trainer


def test_each_line_is_on_its_way_to_the_disk_at_once(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    lines.log(train_row(1))
    assert read_rows(tmp_path) == [train_row(1)]   # although the file is still open
    lines.close()
    logged(tmp_path, val_row(1))
    assert read_rows(tmp_path) == [train_row(1), val_row(1)]   # a resumed run writes on


def test_every_line_is_json_also_when_a_number_is_not_one(tmp_path: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    logged(tmp_path, train_row(1, loss=float("nan"), grad_norm=float("inf")), train_row(2, loss=None))
    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [rows[0]["loss"], rows[0]["grad_norm"], rows[1]["loss"]] == [None, None, None]


def test_a_row_has_what_the_documentation_promises(tmp_path: Path) -> None:
    run(tmp_path)
    rows = read_rows(tmp_path)
    both = {"split", "step", "tokens", "loss", "elapsed_s", "wall_s"}
    assert [(row["split"], row["step"]) for row in rows] == [
        ("train", 1), ("train", 2), ("val", 2), ("train", 3), ("train", 4), ("val", 4)]
    for row in rows:
        assert set(row) == both | ({"lr", "grad_norm", "tokens_per_second"} if row["split"] == "train" else set())
    assert all(row["grad_norm"] > 0 for row in rows if row["split"] == "train")


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and content.rstrip().endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", content[16:24])   # type: ignore[return-value]


@pytest.mark.parametrize("rows", [
    [train_row(1)], [train_row(1), val_row(1)], [train_row(step) for step in range(1, 60)] + [val_row(59, loss=None)],
    [train_row(1, loss=None), train_row(2), train_row(3, loss=1e9)],
])
def test_the_plot_is_a_whole_picture_of_any_beginning(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    plot_losses(logged(tmp_path, *rows))
    assert png_size(tmp_path / "loss.png") == (1080, 720)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_without_a_loss_there_is_no_plot(tmp_path: Path) -> None:
    plot_losses(tmp_path)
    plot_losses(logged(tmp_path, train_row(1, loss=None)))
    assert not (tmp_path / "loss.png").exists()


def test_the_plot_shows_the_bulk_of_the_losses() -> None:
    from llm.train.logger import _loss_limits

    falling = [4.0 / step**0.2 for step in range(1, 1000)]
    low, high = _loss_limits(falling)
    assert low < min(falling) and high > max(falling)
    low, high = _loss_limits([60.0, *falling, 1000.0])   # a first loss of 60 would press the rest flat
    assert low < min(falling) and 2.5 < high < 8


def test_the_median_neither_lags_nor_sees_spikes() -> None:
    from llm.train.logger import _running_median

    places, medians = _running_median([*range(1000, 500, -1), 10**6, *range(499, 0, -1)])
    assert len(places) == 400
    assert all(abs(median - (1000 - place)) <= 15 for place, median in zip(places, medians, strict=True))
    assert _running_median([2.5]) == ([0], [2.5])


def test_a_plot_that_fails_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "loss.png").mkdir()   # nothing can be written there
    assert run(tmp_path).state.step == 4
    assert [record.message.split(":")[0] for record in caplog.records] == ["Plot is switched off"]


class Failing:
    """A tracker whose account is gone from a certain moment on."""

    def __init__(self, fails_at: str):
        self.fails_at, self.rows = fails_at, 0
        self.reach("start")

    def reach(self, moment: str) -> None:
        if moment == self.fails_at:
            raise ConnectionError("no such account")

    def log(self, row: Any) -> None:
        self.rows += 1
        self.reach(f"row {self.rows}")

    def close(self) -> None:
        self.reach("close")


@pytest.mark.parametrize("moment", ["start", "row 1", "row 3", "close"])
def test_a_tracker_that_fails_is_switched_off_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    tracker = Guarded(Failing, moment)
    inner = tracker.logger
    assert run(None, tracker).state.step == 4
    tracker.close()
    tracker.close()
    messages = [record.message for record in caplog.records]
    assert messages == ["Failing is switched off: ConnectionError: no such account"]
    if isinstance(inner, Failing) and moment == "row 3":
        assert inner.rows == 3


def test_the_console_tells_validations_only(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="llm"):
        for row in (train_row(1), val_row(2, bits_per_byte=1.25), val_row(3, loss=float("nan"))):
            Console().log(row)
    assert [record.message for record in caplog.records] == [
        "step 2 | val loss 2.5000 | bits_per_byte 1.25 | 0 s", "step 3 | val loss nan | 0 s"]


def test_a_plot_costs_little_even_when_asked_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged(tmp_path, train_row(1))
    Plot(tmp_path).log(val_row(1))
    assert not (tmp_path / "loss.png").exists()   # the run is too young
    monkeypatch.setattr("llm.train.logger.FIRST_PLOT_S", 0)
    plot = Plot(tmp_path)
    plot.log(val_row(1))
    before = (tmp_path / "loss.png").stat().st_mtime_ns
    for step in range(2, 50):
        plot.log(val_row(step))
    assert (tmp_path / "loss.png").stat().st_mtime_ns == before
    plot.close()
    assert (tmp_path / "loss.png").stat().st_mtime_ns > before


@pytest.mark.slow
def test_tensorboard_holds_every_number_and_survives_a_skipped_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    [tracker] = trackers(tmp_path, llm.TrainConfig(), tensorboard=True, wandb=False)
    skipped, infinite = train_row(2, loss=None, skipped=1), val_row(3, loss=float("inf"))
    for row in (train_row(1), skipped, train_row(4), infinite, val_row(4)):
        tracker.log(row)
    tracker.close()
    assert not caplog.records
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 4.0), (4, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(4, 1.25)]
    assert {"train/lr", "train/grad_norm", "train/skipped"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_wandb_works_offline_and_keeps_to_the_run_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    [tracker] = trackers(folder, llm.TrainConfig(), tensorboard=False, wandb=True)
    assert run(folder, tracker).state.step == 4
    tracker.log(train_row(5, loss=None, skipped=1))
    tracker.close()
    assert not caplog.records
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    [file] = (folder / "wandb").glob("offline-run-*/*.wandb")
    names = (b"train/loss", b"val/loss", b"train/grad_norm", b"train/skipped")
    deadline = time.monotonic() + 20   # its own process writes the file, also after finish() has returned
    while not all(name in file.read_bytes() for name in names) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all(name in file.read_bytes() for name in names)


def test_without_a_request_nothing_is_tracked(tmp_path: Path) -> None:
    assert trackers(tmp_path, llm.TrainConfig(), tensorboard=False, wandb=False) == []


def test_a_full_disk_is_told_in_one_error_that_names_the_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    lines = JsonLines(tmp_path / "metrics.jsonl")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            lines.log(train_row(1))
        lines.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
