"""What happens when the machine fails: a full disk, a second run, a vanished file, numbers that are none."""

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import llm
from llm.checkpoint import CheckpointStore
from llm.tasks import entry, pretrain
from llm.train.logger import read_rows
from llm.train.run import RunConfig, open_run
from tests.test_bad_input import ROOT, SHORT, TEXT, TINY, answer, contents, desk, good  # noqa: F401 - fixtures
from tests.train.test_trainer import equal, settings, snapshot

pytestmark = pytest.mark.usefixtures("desk")
NEW = [*TINY, *SHORT, "--data", "a.txt", "--tokenizer", "byte", "--out", "new", "--dropout", "0.1"]


def weights(folder: str, step: int) -> dict[str, torch.Tensor]:
    return llm.load(f"{folder}/checkpoints/step-{step:08d}")[0].state_dict()


def fail_at(monkeypatch: pytest.MonkeyPatch, call: int, deed: Any) -> None:
    """Let the writing of tensors do something else at its n-th call."""
    original, calls = safetensors.torch.save_file, []

    def save_file(tensors: Any, path: Any, **options: Any) -> None:
        calls.append(path)
        if len(calls) == call:
            deed(path)
        original(tensors, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", save_file)


# each save writes twice: the weights, then the optimizer's state
@pytest.mark.parametrize("call", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_afterwards(
    monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    def no_room(path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    pretrain.main([*NEW, "--steps", "4", "--out", "unbroken"])
    with monkeypatch.context() as patch:
        fail_at(patch, call, no_room)
        code, said = answer(pretrain, [*NEW, "--steps", "4", "--save-every", "2"])
    assert code == 1
    assert re.search("error: new/checkpoints/step-00000004 could not be written: .*No space left on device; the "
                     "checkpoints before it are untouched", said[-1])
    assert [path.name for path in Path("new/checkpoints").iterdir()] in (
        ["index.json", "step-00000002"], ["step-00000002", "index.json"])
    assert pretrain.main(["--resume", "new"]) == 0
    assert equal(weights("new", 4), weights("unbroken", 4))


@pytest.mark.slow
def test_a_signal_in_the_middle_of_a_save_waits_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 1, lambda path: os.kill(os.getpid(), signal.SIGTERM))
        code, said = answer(pretrain, [*NEW, "--steps", "6", "--save-every", "2"])
    assert code == 128 + signal.SIGTERM
    assert not [line for line in said if line.startswith("error:")]
    assert CheckpointStore(Path("new/checkpoints")).read_index()["latest"] == 2
    assert pretrain.main(["--resume", "new"]) == 0
    assert [row["step"] for row in read_rows(Path("new")) if row["split"] == "train"] == [1, 2, 3, 4, 5, 6]


def test_a_lost_index_costs_nothing() -> None:
    Path("run/checkpoints/index.json").unlink()
    before = weights("run", 2)
    assert pretrain.main(["--resume", "run", "--steps", "4"]) == 0
    assert equal(weights("run", 2), before)
    assert CheckpointStore(Path("run/checkpoints")).read_index()["complete"] == [2, 4]
    assert [row["step"] for row in read_rows(Path("run")) if row["split"] == "train"] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_deleted_goes_on_with_the_one_before() -> None:
    assert pretrain.main(["--resume", "run", "--steps", "4"]) == 0
    after = weights("run", 4)
    shutil.rmtree("run/checkpoints/step-00000004")
    assert CheckpointStore(Path("run/checkpoints")).read_index() == {"complete": [2], "latest": 2, "best": None}
    assert llm.load("run")[0].config.dim == 8
    assert pretrain.main(["--resume", "run"]) == 0
    assert equal(weights("run", 4), after)


def test_two_runs_cannot_have_one_folder() -> None:
    name = f"process {os.getpid()} on {socket.gethostname()}"
    for argv, folder, config in ((["--resume", "run"], "run", RunConfig(resume="run")),
                                 (NEW, "new", RunConfig(out="new"))):
        with open_run("pretrain", config):
            before = contents(folder)
            code, said = answer(pretrain, argv)
            assert (code, said[-1]) == (1, f"error: {folder} is in use by {name}; wait until it has ended, or stop it")
            assert contents(folder) == before
    assert not Path("run/.lock").exists()
    assert pretrain.main(["--resume", "run", "--steps", "3"]) == 0


HOLDING = """
import sys
from llm.train.run import RunConfig, open_run
with open_run("pretrain", RunConfig(resume="run")):
    print("has it", flush=True)
    sys.stdin.read()
"""


def test_the_lock_of_a_killed_process_is_no_lock() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert holder.stdout is not None and holder.stdout.readline() == "has it\n"
    code, said = answer(pretrain, ["--resume", "run"])
    assert code == 1 and f"run is in use by process {holder.pid} on" in said[-1]
    holder.kill()
    holder.communicate()
    assert Path("run/.lock").exists()
    assert pretrain.main(["--resume", "run", "--steps", "3"]) == 0


def test_a_file_that_vanishes_while_its_folder_is_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("docs").mkdir()
    for name in ("a.txt", "b.txt"):
        Path("docs", name).write_text(TEXT, encoding="utf-8")
    original = Path.rglob

    def vanishing(self: Path, pattern: str) -> Any:
        found = list(original(self, pattern))
        Path("docs/b.txt").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "is_file", lambda self: True if self.name == "b.txt" else os.path.isfile(self))
    monkeypatch.setattr(Path, "rglob", vanishing)
    code, said = answer(pretrain, [*NEW, "--data", "docs"])
    assert (code, said[-1]) == (1, "error: docs/b.txt: No such file or directory; check the path; what is read must "
                                   "stay there meanwhile")
    assert not Path("new").exists()


@pytest.mark.slow
def test_a_run_that_diverges_ends_with_the_remedy_and_keeps_its_checkpoints() -> None:
    code, said = answer(pretrain, [*NEW, "--steps", "40", "--save-every", "1", "--lr", "1e38", "--warmup", "0",
                                   "--clip", "0", "--max-skipped", "3", "--schedule", "constant"])
    assert code == 1
    assert re.search("error: 3 steps in a row were skipped, the last because .*; lower the learning rate, look at the "
                     "data, or go back to an earlier checkpoint", said[-1])
    assert CheckpointStore(Path("new/checkpoints")).read_index()["complete"]


def test_data_with_a_number_that_is_none_costs_one_step(caplog: pytest.LogCaptureFixture) -> None:
    class Square:
        def weight(self, batch: torch.Tensor) -> float:
            return float(len(batch))

        def __call__(self, model: torch.nn.Module, batch: torch.Tensor) -> llm.Result:
            return llm.Result(model(batch).square().sum())

    samples = torch.ones(12, 2)
    samples[7, 1] = float("nan")
    ours = llm.Trainer(torch.nn.Linear(2, 1), Square(), train=llm.Examples(list(samples)),
                       config=settings(steps=None, epochs=1, batch_size=4))
    skipped = []
    for _ in range(3):
        before = snapshot(ours)
        row = ours.train_step()
        skipped.append(row["loss"] is None)
        assert equal(snapshot(ours), before) == skipped[-1]
    assert sorted(skipped) == [False, False, True] and ours.state.skipped == 1
    assert "its loss sum is nan" in caplog.text


def fail(message: str) -> None:
    raise ValueError(message)


@pytest.mark.parametrize(("deed", "told"), [
    (lambda: torch.empty(2**58, dtype=torch.uint8), "allocate .*; lower --batch-size, raise --accumulate or choose a"),
    (lambda: np.empty(2**58, dtype=np.uint8), "Unable to allocate .*; lower --batch-size, raise --accumulate or"),
    (lambda: torch.ones(2, 3) @ torch.ones(2, 3), "mat1 and mat2 shapes cannot be multiplied"),
    (lambda: Path("a.txt/b").read_text("utf-8"), "error: a.txt/b: Not a directory; a part of the path is a file"),
    (lambda: Path("run").read_text("utf-8"), "error: run: Is a directory; name a file instead"),
    (lambda: fail("two\n  lines"), "error: two lines"),
])
def test_what_the_system_or_torch_says_becomes_one_line(
    deed: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        entry(deed)
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert said.startswith("error: ") and said.count("\n") == 1
    assert re.search(told, said)


def test_a_fault_of_ours_shows_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        entry(lambda: {}["missing"])
    assert stop.value.code == 1
    assert re.search(r"Traceback.*test_faults.py.*KeyError: 'missing'", capsys.readouterr().err, re.DOTALL)
