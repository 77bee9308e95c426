"""Laws of the command under torchrun: it trains as one process does, and whatever goes wrong is told once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import llm
from llm.checkpoint import CheckpointStore
from llm.tasks import pretrain
from llm.train.logger import read_rows

ROOT = Path(llm.__file__).parents[1]
TINY = ["--model", "gpt-tiny", "--num-layers", "1", "--num-heads", "2", "--dim", "16", "--context", "8", "--batch-size",
        "6", "--steps", "4", "--device", "cpu", "--precision", "fp32", "--tokenizer", "byte", "--sample-tokens", "5"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 20, encoding="utf-8")
    return tmp_path


def start(*argv: str, task: str = "llm.tasks.pretrain") -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*TORCHRUN, task, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment, start_new_session=True)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Status, output, and what we said ourselves: torchrun has words of its own."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def our_errors(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("error:")]


def test_two_processes_train_what_one_trains() -> None:
    status, out, err = finish(start(*TINY, "--data", "a.txt", "--accumulate", "2", "--out", "two 二"))
    assert (status, out) == (0, "two 二\n"), err
    assert "Traceback" not in err
    assert sum("2 processes on cpu, each in fp32" in line for line in err.splitlines()) == 1   # one of them speaks
    assert pretrain.main([*TINY, "--data", "a.txt", "--out", "one"]) == 0
    one, two = (llm.load(name)[0].state_dict() for name in ("one", "two 二"))
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
    assert sorted(path.name for path in Path("one").iterdir()) == sorted(path.name for path in Path("two 二").iterdir())
    rows, others = read_rows(Path("one")), read_rows(Path("two 二"))
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in others]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], rel=1e-4)


@pytest.mark.parametrize(("argv", "status", "message"), [
    (["--data", "b.txt"], 1, "error: --data b.txt: there is no such file or folder"),
    (["--data", "a.txt", "--stepz", "3"], 2, "error: Unrecognized options: --stepz, 3; did you mean --steps?"),
])
def test_what_is_wrong_for_all_is_told_once(argv: list[str], status: int, message: str) -> None:
    code, out, err = finish(start(*TINY, *argv, "--out", "run"))
    assert code != 0 and out == ""
    [told] = our_errors(err)
    assert told.startswith(message)
    assert f"exitcode  : {status} " in err   # in torchrun's own table
    assert err.count("Traceback") == 1   # torchrun's own
    assert not Path("run").exists()
    assert "forcefully" not in err   # torchrun's word for a process that did not end by itself within 30 seconds


def test_a_command_for_one_process_says_so() -> None:
    _, out, err = finish(start("--model", "nowhere", task="llm.tasks.generate"))
    assert our_errors(err) == ["error: torchrun started 2 processes, but this command works in one; start it without "
                               "torchrun"]
    assert out == ""


FAILING = """
import os, sys
from llm.objectives.language import NextToken
from llm.tasks import entry, pretrain

def fail(self, model, batch, original=NextToken.__call__, calls=[0]):
    calls[0] += 1
    if os.environ["RANK"] == "1" and calls[0] == 3:
        {deed}
    return original(self, model, batch)

NextToken.__call__ = fail
entry(lambda: pretrain.main(sys.argv[1:]), is_for_several=True)
"""


@pytest.mark.parametrize(("deed", "told"), [
    ("raise OSError(5, 'the disk of the second process is gone')", "error: [Errno 5] the disk of the second process"),
    ("raise KeyError('a fault of ours')", "KeyError: 'a fault of ours'"),
    ("os.kill(os.getpid(), 9)", "exitcode  : -9 "),   # torchrun's word for it
])
def test_an_error_of_one_process_ends_all_and_is_told_once(deed: str, told: str) -> None:
    Path("failing.py").write_text(FAILING.format(deed=deed), encoding="utf-8")
    status, out, err = finish(start(*TINY, "--steps", "1000", "--data", "a.txt", "--out", "run", task="failing"))
    assert status != 0 and out == ""
    ours = err.split("torch/distributed/elastic")[0]
    assert len([line for line in err.splitlines() if told in line]) == 1, err
    if "kill" not in deed:   # then the other one says that it was left alone, if torchrun leaves it the time
        assert len(our_errors(err)) == ("KeyError" not in told), err
    assert ours.count("Traceback") == ("KeyError" in told), err
    assert "forcefully" not in err


def test_sigterm_to_one_process_saves_and_stops_all() -> None:
    process = start(*TINY, "--steps", "100000", "--data", "a.txt", "--out", "run")
    deadline = time.monotonic() + 200
    while len(read_rows(Path("run"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    [pid] = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()
             and _environment(folder).get("RANK") == "1" and _parent(folder) == process.pid]
    os.kill(pid, signal.SIGTERM)
    status, out, err = finish(process)
    assert status != 0 and out == "run\n", err
    step = CheckpointStore(Path("run/checkpoints")).read_index()["latest"]
    assert read_rows(Path("run"))[-1]["step"] == step
    state = json.loads(Path(f"run/checkpoints/step-{step:08d}/trainer/state.json").read_text("utf-8"))
    assert (state["world_size"], len(state["rng"])) == (2, 2)
    assert f"stopped by SIGTERM after step {step} of 100000" in err
    assert our_errors(err) == []
    # torchrun ends the other one as soon as one has gone
    assert f"exitcode  : {128 + signal.SIGTERM} " in err, err


def _environment(process: Path) -> dict[str, str]:
    try:
        entries = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0
