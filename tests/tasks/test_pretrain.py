"""Laws of the pretrain command: what a run leaves behind, how it goes on, and that a wrong command costs nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llm
from llm.config import UsageError, read_toml
from llm.data.tokenfile import write_token_file
from llm.tasks import pretrain
from llm.tokenizers.tokenizer import Tokenizer
from llm.train.logger import read_rows

ROOT = Path(llm.__file__).parents[1]
TINY = ["--model", "gpt-tiny", "--num-layers", "1", "--num-heads", "1", "--dim", "8"]
SHORT = ["--context", "8", "--batch-size", "4", "--steps", "2", "--device", "cpu", "--precision", "fp32",
         "--threads", "1", "--sample-tokens", "5"]
TEXT = "The quick brown fox jumps over the lazy dog.\n猴王出世。\n" * 10


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text in it; every path of a command is relative to it."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def train(*argv: str, architecture: list[str] = TINY) -> int:
    return pretrain.main([*architecture, *SHORT, *argv])


def steps_of(folder: str) -> list[int]:
    return [row["step"] for row in read_rows(Path(folder)) if row["split"] == "train"]


def command(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a person would start it, in a process of its own."""
    return subprocess.run([sys.executable, *argv], capture_output=True, encoding="utf-8", timeout=300,
                          env={**os.environ, "PYTHONPATH": str(ROOT), **environment})


def write_inputs() -> None:
    Path("西游 记/二 回").mkdir(parents=True)
    Path("西游 记/一.txt").write_text("第一回\n" * 20, encoding="utf-8")
    Path("西游 记/二 回/二.txt").write_text("第二回\n" * 20, encoding="utf-8")
    Path("rows.jsonl").write_text("".join(json.dumps({"text": f"row {row}"}) + "\n" for row in range(40)), "utf-8")
    tokenizer = Tokenizer.byte_level()
    write_token_file("tokens.bin", [tokenizer.encode_document(TEXT)], vocab_size=257, fingerprint=tokenizer.fingerprint)
    np.arange(200, dtype=np.uint32).tofile("raw.bin")


def test_experts_train_with_their_health_in_the_metrics() -> None:
    experts = ["--model", "qwen3-moe-tiny", "--num-layers", "1", "--num-heads", "2", "--dim", "8"]
    assert train("--data", "a.txt", "--balance", "0.1", "--out", "run", "--tokenizer", "byte",
                 architecture=experts) == 0
    rows = read_rows(Path("run"))
    assert {"balance", "dead_experts", "dead_experts.0", "peak_load.0", "router_entropy.0"} <= rows[0].keys()
    assert "balance" in rows[-1] and rows[-1]["split"] == "val"
    assert llm.load("run")[0].config.expert_count == 4
    for flag in ("--balance", "--router-z"):
        with pytest.raises(ValueError, match="has no effect on a model without experts"):
            train("--data", "a.txt", flag, "0.1")


@pytest.mark.parametrize(("data", "vocab_size"), [
    (["a.txt", "--tokenizer", "char"], len(set(TEXT))),
    (["a.txt", "--tokenizer", "bpe:270"], 270),
    (["rows.jsonl", "--tokenizer", "byte", "--limit", "20"], 257),
    (["西游 记", "--tokenizer", "char"], 5),
    (["tokens.bin"], 257),
    (["tokens.bin", "--tokenizer", "byte", "--val", "tokens.bin"], 257),
    (["raw.bin", "--raw-dtype", "uint32"], 200),
])
def test_every_kind_of_data_trains(data: list[str], vocab_size: int) -> None:
    write_inputs()
    assert train("--data", *data, "--out", "run") == 0
    assert steps_of("run") == [1, 2]
    assert llm.load("run")[0].config.vocab_size == vocab_size


def test_a_run_folder_is_complete() -> None:
    train("--data", "a.txt", "--tokenizer", "char", "--out", "run")
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "checkpoints", "environment.json", "loss.png", "metrics.jsonl", "run.toml", "samples.txt", "train.log"]
    step = Path("run/checkpoints/step-00000002")
    assert sorted(str(path.relative_to(step)) for path in step.rglob("*") if path.is_file()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "trainer/optimizer.safetensors", "trainer/state.json"]
    environment = json.loads(Path("run/environment.json").read_text("utf-8"))
    assert {"packages", "python", "machine", "git_commit", "hashes", "command"} <= set(environment)
    assert {"tokenizer", "data"} == set(environment["hashes"])
    [train_row, _, val_row] = read_rows(Path("run"))
    shared = {"split", "step", "tokens", "loss", "elapsed_s", "wall_s", "bits_per_byte"}
    assert set(val_row) == shared
    assert set(train_row) == shared | {"lr", "grad_norm", "tokens_per_second"}
    assert "a.txt: 1 document" in Path("run/train.log").read_text("utf-8")
    assert Path("run/samples.txt").read_text("utf-8").startswith("=== step 2, val loss")


def test_a_run_s_settings_start_the_same_run_again() -> None:
    train("--data", "a.txt", "--out", "one", "--dropout", "0.1", "--name", "ignored by --out")
    assert pretrain.main(["--config", "one/run.toml", "--out", "two"]) == 0
    one, two = (llm.load(name)[0].state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {**read_toml(Path("two/run.toml")), "config": None} == {**read_toml(Path("one/run.toml")), "config": None}


def test_without_out_the_folder_is_named_by_time_and_name(capsys: pytest.CaptureFixture[str]) -> None:
    folders = []
    for _ in range(2):   # most likely within one second
        train("--data", "a.txt", "--name", "first 次")
        folders.append(capsys.readouterr().out.splitlines()[-1])
    assert sorted(map(str, Path("logs/pretrain").iterdir())) == sorted(folders)
    assert all("_first 次" in folder for folder in folders)


@pytest.mark.parametrize("resume", ["run", "latest"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(resume: str) -> None:
    settings = ["--data", "a.txt", "--dropout", "0.2", "--schedule", "constant", "--warmup", "0"]
    train(*settings, "--steps", "4", "--out", "unbroken")
    train(*settings, "--steps", "2", *(["--out", "run"] if resume == "run" else []))
    assert pretrain.main(["--resume", resume, "--steps", "4"]) == 0
    broken = "run" if resume == "run" else str(next(Path("logs/pretrain").iterdir()))
    assert steps_of(broken) == steps_of("unbroken") == [1, 2, 3, 4]
    one, other = (llm.load(f"{name}/checkpoints/step-00000004")[0].state_dict() for name in (broken, "unbroken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_toml(Path(broken, "run.toml"))["train"]["steps"] == 4


def test_a_run_whose_data_changed_is_not_resumed_and_not_spoilt() -> None:
    train("--data", "a.txt", "--out", "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file() and path.suffix != ".log"}
    Path("a.txt").write_text(TEXT.replace("fox", "cat"), encoding="utf-8")
    with pytest.raises(ValueError, match="data and tokenizer are not those that run was begun with; restore"):
        pretrain.main(["--resume", "run", "--steps", "4"])
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ValueError, match="seed=7, but the run was made with 1"):
        pretrain.main(["--resume", "run", "--seed", "7"])
    assert before == {path: path.read_bytes() for path in before}
    assert pretrain.main(["--resume", "run", "--steps", "4"]) == 0


def test_an_out_folder_that_holds_a_run_is_refused_and_left_alone() -> None:
    train("--data", "a.txt", "--out", "run")
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="run holds a run already; go on with --resume run, or choose another --out"):
        train("--data", "a.txt", "--out", "run")
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}


BAD = [
    ([], "--data is missing; name a text file, a folder of them or a token file"),
    (["--data", "b.txt"], "--data b.txt: there is no such file or folder"),
    (["--data", "a.txt", "--tokenizer", "chra"], "--tokenizer chra is none of char, byte, bpe:SIZE"),
    (["--data", "a.txt", "--limit", "3"], "--limit 3 counts documents"),
    (["--data", "a.txt", "--warmup", "9"], "warmup"),
    (["--data", "a.txt", "--device", "cuda:77"], "--device cuda:77"),
    (["--data", "a.txt", "--tokenizer", "char", "--sample-prompt", "Ω"], "--sample-prompt 'Ω': 1 characters"),
]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(("argv", "message"), BAD)
def test_a_wrong_command_leaves_the_folder_free_for_the_right_one(argv: list[str], message: str, exists: bool) -> None:
    if exists:
        Path("run").mkdir()
    with pytest.raises(ValueError) as caught:
        train(*argv, "--out", "run")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert Path("run").exists() == exists
    with pytest.raises(ValueError, match="there is no run"):
        pretrain.main(["--resume", "latest"])
    if argv == BAD[3][0]:   # one of them is enough to train after
        assert train("--data", "a.txt", "--out", "run") == 0


def test_a_wrong_command_leaves_nothing_below_logs() -> None:
    with pytest.raises(ValueError, match="no such file"):
        train("--data", "b.txt")
    assert not list(Path("logs/pretrain").iterdir())


@pytest.mark.parametrize(("argv", "message"), [
    (["--resume", "nowhere"], "--resume nowhere: that is no run folder"),
    (["--resume", "latest"], "--resume latest: there is no run below logs/pretrain"),
    (["--resume", "run", "--config", "demo"], "--config demo and --resume run exclude each other"),
    (["--resume", "run", "--model", "gpt-tiny"], "--model gpt-tiny and --resume run exclude each other"),
])
def test_a_resume_that_makes_no_sense_is_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain.main(argv)


@pytest.mark.parametrize(("argv", "message"), [
    (["--resume", "run", "--out", "b"], "--out b and --resume run exclude each other"),
    (["--name", "a/b"], "--name a/b is a part of the folder"),
    (["--sample-tokens", "-1"], "sample_tokens=-1 must be at least 0"),
])
def test_flags_that_contradict_each_other_are_a_usage_error(argv: list[str], message: str) -> None:
    train("--data", "a.txt", "--out", "run")
    with pytest.raises(UsageError, match=message):
        pretrain.main(argv)


def test_training_goes_on_from_the_weights_of_a_folder() -> None:
    train("--data", "a.txt", "--tokenizer", "char", "--out", "first 一")
    Path("b.txt").write_text(TEXT.replace("dog", "fox") * 2, encoding="utf-8")
    assert train("--model", "first 一", "--data", "b.txt", "--lr", "1e-30", "--out", "second", architecture=[]) == 0
    (first, letters), (second, again) = llm.load("first 一"), llm.load("second")
    assert all(torch.allclose(one, other) for one, other in
               zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert letters is not None and again is not None and letters.fingerprint == again.fingerprint
    assert pretrain.main(["--resume", "second", "--steps", "3"]) == 0


@pytest.mark.parametrize(("argv", "message"), [
    (["--dim", "16"], "brings its own architecture; leave the architecture's flags out"),
    (["--init", "copying"], "is for a model trained from nothing; .* leave --init out"),
    (["--context", "9"], "--context 9 exceeds the model's context_length=8"),
    (["--tokenizer", "byte"], "--tokenizer byte is not the tokenizer that the model was trained with"),
    (["--data", "b.txt"], "not in the tokenizer's alphabet"),
])
def test_a_folder_s_model_may_not_be_contradicted(argv: list[str], message: str) -> None:
    train("--data", "a.txt", "--tokenizer", "char", "--out", "first")
    Path("b.txt").write_text(TEXT + "Ω", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        train("--data", "a.txt", "--model", "first", "--out", "second", *argv, architecture=[])
    assert not Path("second").exists()


def test_a_copying_start_is_another_start() -> None:
    flags = ["--data", "a.txt", "--tokenizer", "char", "--lr", "1e-30"]
    train(*flags, "--out", "standard")
    train(*flags, "--init", "copying", "--out", "copying")
    (standard, _), (copying, _) = llm.load("standard"), llm.load("copying")
    attention = copying.blocks[0].attention
    assert torch.equal(standard.embed.weight, copying.embed.weight)
    assert not torch.equal(standard.blocks[0].attention.v_proj.weight, attention.v_proj.weight)
    assert torch.allclose(attention.v_proj.weight @ attention.v_proj.weight.T, torch.eye(len(attention.v_proj.weight)),
                          atol=1e-5)


def test_windows_of_documents_are_trained_on_and_validated_on_alike() -> None:
    Path("c.txt").write_text("\n<|endoftext|>\n".join(f"the dog {number:02}" for number in range(40)), encoding="utf-8")
    flags = ["--data", "c.txt", "--tokenizer", "byte", "--windows", "documents", "--context", "16"]
    assert train(*flags, "--out", "run") == 0
    rows = read_rows(Path("run"))
    assert rows[0]["tokens"] in (4 * 11, 4 * 11 - 1)   # four documents and their ends; before the first stands none
    assert rows[-1]["split"] == "val"
    with pytest.raises(ValueError, match="needs a tokenizer with an end-of-text token; char has none"):
        train("--data", "c.txt", "--tokenizer", "char", "--windows", "documents", "--out", "other")


def test_a_model_without_a_tokenizer_needs_one_named() -> None:
    llm.save(llm.GPT(llm.GPTConfig(vocab_size=100, context_length=8, num_layers=1, num_heads=1, dim=8)), "bare")
    with pytest.raises(ValueError, match=r"--model bare has no tokenizer.json; name its --tokenizer"):
        train("--data", "a.txt", "--model", "bare", architecture=[])
    with pytest.raises(ValueError, match="the tokenizer has 257 ids, but --model bare knows only 100"):
        train("--data", "a.txt", "--model", "bare", "--tokenizer", "byte", architecture=[])
    assert train("--data", "a.txt", "--model", "bare", "--tokenizer", "char", architecture=[]) == 0


def test_a_preset_wins_over_a_folder_of_its_name() -> None:
    Path("gpt-tiny").mkdir()
    assert train("--data", "a.txt", "--out", "run") == 0


@pytest.mark.slow
def test_the_last_line_of_the_output_is_the_run_folder() -> None:
    good = command("-m", "llm.tasks.pretrain", *TINY, *SHORT, "--data", "a.txt", "--out", "run 一")
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "run 一"), good.stderr
    assert "Traceback" not in good.stderr


@pytest.mark.slow
def test_an_error_is_one_line_and_status_1() -> None:
    bad = command("-m", "llm.tasks.pretrain")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == "error: --data is missing; name a text file, a folder of them or a token file\n"


TRAIN_AND_WRITE = """
import sys
from llm.tasks import entry, generate, pretrain
middle = sys.argv.index("then")
entry(lambda: pretrain.main(sys.argv[1:middle]) or generate.main(sys.argv[middle + 1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C"},
                                         {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}])
def test_narrow_locales_train_and_write_chinese(environment: dict[str, str]) -> None:
    write_inputs()
    run = "跑 一"
    done = command("-O", "-c", TRAIN_AND_WRITE, *TINY, *SHORT, "--data", "西游 记", "--tokenizer", "char",
                   "--sample-prompt", "第", "--out", run, "then", "--model", run, "--prompt", "第一",
                   "--max-new-tokens", "5", **environment)
    assert done.returncode == 0, done.stderr
    settings: dict[str, Any] = read_toml(Path(run, "run.toml"))
    assert (settings["data"]["data"], settings["samples"]["sample_prompt"]) == ("西游 记", "第")
    folder, text = done.stdout.split("\n", 1)
    assert (folder, text[:2]) == (("? ?", "??") if "PYTHONIOENCODING" in environment else (run, "第一"))


def test_a_command_says_what_a_run_will_cost_and_what_it_took(capsys: pytest.CaptureFixture[str]) -> None:
    train("--data", "a.txt", "--tokenizer", "char", "--out", "run")
    for text in (capsys.readouterr().err, Path("run/train.log").read_text(encoding="utf-8")):
        assert "MFLOP per token" in text and "memory grew by" in text
