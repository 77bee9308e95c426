"""The law of issue 2: a run that is killed again and again ends as one that was left alone, to the bit.

`python -m tests.train.test_kill 20 1` kills twenty times with seed 1 and prints what was hit; the suite kills less
often. Real processes, real SIGKILL: nothing of ours gets a chance to tidy up.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

import llm
from llm.checkpoint import UNFINISHED, CheckpointStore, read_tensors, read_trainer_state

ROOT = Path(llm.__file__).parents[1]
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "the", "dog", "run", "far"]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def write_text(path: Path) -> Path:
    words = random.Random(0).choices(WORDS, k=3000)
    path.write_text(" ".join(words), encoding="utf-8")
    return path


def new_run(text: Path, folder: Path, steps: int) -> list[str]:
    settings = {
        "data": text, "out": folder, "steps": steps, "tokenizer": "byte", "num-layers": 2, "num-heads": 2,
        "num-kv-heads": 1, "dim": 48, "context": 32, "batch-size": 4, "accumulate": 2, "dropout": 0.1, "threads": 1,
        "precision": "fp32", "device": "cpu", "save-every": 2, "eval-every": 5, "eval-tokens": 400,
        "sample-tokens": 8, "keep": 2,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen([sys.executable, "-m", "llm.tasks.pretrain", *arguments], cwd=ROOT, stdout=file,
                                stderr=file)


def has_begun(folder: Path, since: float) -> bool:
    """Whether this life has come to its metrics, which it writes, or cuts, as it begins to train."""
    metrics = folder / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_mtime > since


def is_saving(folder: Path, since: float) -> bool:
    """Whether a save is under way that began in this life; what an earlier kill left behind does not count."""
    for path in (folder / "checkpoints").glob(f"{UNFINISHED}step-*"):
        try:
            if path.stat().st_mtime > since:
                return True
        except FileNotFoundError:   # it has just been finished
            return False
    return False


def kill(process: subprocess.Popen[bytes], folder: Path, *, delay: float, in_save: bool, later: float) -> bool:
    """Kill after a delay, or, in a save: so long after training began wait for a save, and kill so much later.

    False if the run was faster. How long a start takes varies more than all of this training lasts, so it is watched.
    """
    since = time.time()
    while in_save and process.poll() is None and not has_begun(folder, since):
        time.sleep(0.0005)
    time.sleep(delay)
    while in_save and process.poll() is None and not is_saving(folder, since):
        time.sleep(0.0005)
    time.sleep(later)
    process.kill()
    return process.wait() == -signal.SIGKILL


def check_all_that_the_index_names(folder: Path) -> None:
    store = CheckpointStore(folder / "checkpoints")
    index = store.read_index()
    assert index["latest"] in [None, *index["complete"]] and index["best"] in [None, *index["complete"]]
    for step in index["complete"]:
        assert read_trainer_state(store.path(step), keys=())[0]["step"] == step
        assert read_tensors(store.path(step) / "model.safetensors")


def is_cut_in_a_save(folder: Path, since: float) -> bool:
    """What only a kill inside of a save leaves: a folder that is not finished, or that the index does not name.

    Those that an earlier life left lie there until the next save; they do not count.
    """
    if not (folder / "checkpoints").is_dir():
        return False
    complete = CheckpointStore(folder / "checkpoints").read_index()["complete"]
    named = {f"step-{step:08d}" for step in complete}
    return any(path.is_dir() and path.name not in named and path.stat().st_ctime > since
               for path in (folder / "checkpoints").iterdir())


def rows_without_times(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in read(folder / "metrics.jsonl").splitlines()]
    times = ("elapsed_s", "wall_s", "tokens_per_second")
    return [{name: value for name, value in row.items() if name not in times} for row in rows]


def assert_equal_to_the_bit(unbroken: Path, broken: Path) -> None:
    assert rows_without_times(broken) == rows_without_times(unbroken)
    for name in ("samples.txt", "run.toml", "checkpoints/index.json"):
        assert (broken / name).read_bytes() == (unbroken / name).read_bytes(), name
    listings = [sorted(path.relative_to(folder) for path in (folder / "checkpoints").rglob("*"))
                for folder in (unbroken, broken)]
    assert listings[0] == listings[1]
    for name in listings[0]:
        if name.name not in ("state.json", "index.json") and (unbroken / "checkpoints" / name).is_file():
            assert (broken / "checkpoints" / name).read_bytes() == (unbroken / "checkpoints" / name).read_bytes(), name


def kill_again_and_again(place: Path, *, kills: int, seed: int, steps: int) -> dict[str, int]:
    """Half of the kills aim at a save, half fall anywhere in a life, start-up included; returns what they hit."""
    rng = random.Random(seed)
    text, log = write_text(place / "text.txt"), place / "stderr.txt"
    unbroken, broken = place / "unbroken", place / "broken"
    started = time.monotonic()
    process = start(new_run(text, unbroken, steps), log)
    while not (unbroken / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.01)
    startup = time.monotonic() - started
    assert process.wait() == 0, read(log)
    life = (time.monotonic() - started - startup) / kills   # what each may train, so that all together do not finish

    hits = {"kills": 0, "inside a save": 0, "before the first save": 0}
    for number in range(kills):
        since, is_begun, in_save = time.time(), (broken / "run.toml").exists(), number % 2 == 0
        delay = rng.uniform(0, life if in_save else startup + life)
        process = start(["--resume", str(broken)] if is_begun else new_run(text, broken, steps), log)
        if not kill(process, broken, delay=delay, in_save=in_save, later=rng.uniform(0, 0.006) if in_save else 0.0):
            break
        hits["kills"] += 1
        hits["inside a save"] += is_cut_in_a_save(broken, since)
        hits["before the first save"] += not (broken / "checkpoints" / "index.json").exists()
        check_all_that_the_index_names(broken)
    is_begun = (broken / "run.toml").exists()
    last = start(["--resume", str(broken)] if is_begun else new_run(text, broken, steps), log)
    assert last.wait() == 0, read(log)
    assert_equal_to_the_bit(unbroken, broken)
    return hits


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_been_left_alone(tmp_path: Path) -> None:
    hits = kill_again_and_again(tmp_path, kills=4, seed=1, steps=60)
    assert hits["kills"] and hits["inside a save"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_with_its_number_and_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    text, folder, log = write_text(tmp_path / "text.txt"), tmp_path / "run", tmp_path / "stderr.txt"
    process = start(new_run(text, folder, 100_000), log)
    while not is_saving(folder, 0):   # in the middle of a save
        assert process.poll() is None, read(log)
        time.sleep(0.0005)
    process.send_signal(number)
    assert process.wait(timeout=60) == 128 + number, read(log)
    index = CheckpointStore(folder / "checkpoints").read_index()
    assert index["latest"] == len([row for row in rows_without_times(folder) if row["split"] == "train"])
    assert f"{number.name}: saving and stopping after this step" in read(folder / "train.log")
    assert "Traceback" not in read(log)
    assert read(log).splitlines()[-1] == str(folder)   # also now the last line names the run
    assert not is_cut_in_a_save(folder, 0)


if __name__ == "__main__":
    count, chosen_seed = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        print(kill_again_and_again(Path(name), kills=count, seed=chosen_seed, steps=20 * count))
        print(f"the same to the bit; {time.monotonic() - began:.0f} s")
