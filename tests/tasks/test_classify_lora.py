"""Laws of `--tune lora`: adapters and scores alone learn and are kept; a run goes on to the bit, upon its base only."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import llm
from llm.checkpoint import load_classifier, read_tensors
from llm.tasks import classify
from llm.tokenizers.tokenizer import Tokenizer
from tests.conftest import TINY, random_model
from tests.tasks.test_classify import desk  # noqa: F401 - a working directory with rows.csv

ROOT = Path(llm.__file__).parents[1]
pytestmark = pytest.mark.usefixtures("desk")
RUN = ["--model", "base", "--tune", "lora", "--data", "rows.csv", "--epochs", "1", "--lora-rank", "2", "--batch-size",
       "4", "--threads", "1", "--device", "cpu", "--precision", "fp32",
       "--lr", "0.03"]   # 7 steps
LONG = [word if word != "1" else "6" for word in RUN[: RUN.index("--lora-rank")]] + RUN[RUN.index("--lora-rank") :]


@pytest.fixture(autouse=True)
def base(desk: Path) -> None:   # noqa: F811
    save_base(seed=0)


def save_base(*, seed: int, family: str = "llama") -> None:
    config = type(TINY[family])(**{**vars(TINY[family]), "vocab_size": 257, "context_length": 64})
    llm.save(random_model(config, seed), "base", tokenizer=Tokenizer.byte_level())


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def state_of(folder: str) -> dict[str, Tensor]:
    return load_classifier(folder)[0].state_dict()


@pytest.mark.parametrize("family", ["llama", "gpt"])
def test_a_run_keeps_adapters_and_at_its_end_a_whole_model(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_base(seed=0, family=family)
    assert classify.main([*RUN, "--out", "run", "--lora-alpha", "8"]) == 0
    before = llm.load("base")[0].state_dict()
    assert names("run/checkpoints") == ["index.json", "merged", "step-00000007"]
    assert not {"model.safetensors", "generation_config.json"} & set(names("run/checkpoints/step-00000007"))
    saved = read_tensors(Path("run/checkpoints/step-00000007/adapter_model.safetensors"))
    assert {name.split(".")[-2] for name in saved} == {"lora_A", "lora_B", "score"}
    if family == "llama":   # GPT-2's three in one are written with zeros between them
        learned = sum(tensor.numel() for tensor in saved.values())
        assert f"{learned:,} parameters learn" in Path("run/train.log").read_text(encoding="utf-8")
    merged = state_of("run/checkpoints/merged")
    again = state_of("run")   # the step, upon its base
    assert merged.keys() == again.keys() and all(torch.equal(again[name], merged[name]) for name in again)
    for name, tensor in before.items():
        if name not in ("embed.weight", "head.weight"):
            is_adapted = "_proj.weight" in name
            assert torch.equal(merged[f"decoder.{name}"], tensor) is not is_adapted, name
    assert torch.equal(merged["decoder.embed.weight"][:257], before["embed.weight"])

    with open("run/predictions.csv", encoding="utf-8", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["part"] == "test")
    for model in ("run", "run/checkpoints/merged"):
        capsys.readouterr()
        told = classify.main(["--predict", row["text"], "--model", model, "--device", "cpu", "--precision", "fp32"])
        assert told == 0
        label, shown, _ = capsys.readouterr().out.split("\t")
        assert label == row["predicted"] and float(shown.split()[1]) == pytest.approx(float(row["p(ham)"]), abs=1e-4)
    shutil.rmtree("base")
    with pytest.raises(ValueError, match=r"base', which is not there; .*, or use run/checkpoints/merged, which needs"):
        classify.main(["--predict", "hi", "--model", "run", "--device", "cpu"])


@pytest.mark.parametrize("has_spare", [True, False])
def test_peft_scores_a_padded_batch_as_the_run_did(has_spare: bool) -> None:
    """A control token of the base that is used for nothing pads; without one, the base needs a row more."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    plain = Tokenizer.byte_level().vocabulary
    spare = {"<repo_name>": 257, "<empty_output>": 258} if has_spare else {}
    tokenizer = Tokenizer(replace(plain, special_tokens={**plain.special_tokens, **spare}))
    config = replace(TINY["llama"], vocab_size=tokenizer.vocab_size, context_length=64)
    llm.save(random_model(config), "base", tokenizer=tokenizer)
    assert classify.main([*RUN, "--out", "run"]) == 0
    with open("run/predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    adapter = llm.checkpoint.find_checkpoint("run")
    theirs = transformers.AutoTokenizer.from_pretrained(adapter)
    assert theirs.pad_token == ("<empty_output>" if has_spare else "<|pad|>")
    base = transformers.AutoModelForSequenceClassification.from_pretrained("base", num_labels=2)
    if not has_spare:
        base.resize_token_embeddings(len(theirs))
    base.config.pad_token_id = theirs.pad_token_id
    model = peft.PeftModel.from_pretrained(base, adapter).eval()
    batch = theirs([row["text"] for row in rows], padding=True, return_tensors="pt")
    assert (batch["input_ids"] == theirs.pad_token_id).any()
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.softmax(-1)
    assert found[:, 0].tolist() == pytest.approx([float(row["p(ham)"]) for row in rows], abs=2e-6)


def test_the_scores_begin_where_they_do_without_adapters() -> None:
    """What is drawn for the adapters is drawn after them, and every run draws the same."""
    for out, argv in (("one", RUN), ("two", RUN)):
        assert classify.main([*argv, "--out", out]) == 0
    assert Path("one/predictions.csv").read_bytes() == Path("two/predictions.csv").read_bytes()


def assert_same_ends(one: str, other: str) -> None:
    for name in ("predictions.csv", "results.json", "checkpoints/index.json", *(
            str(path.relative_to(one)) for path in Path(one, "checkpoints").rglob("*.safetensors"))):
        assert Path(one, name).read_bytes() == Path(other, name).read_bytes(), name


def test_a_resumed_run_ends_as_an_unbroken_one_to_the_bit() -> None:
    argv = [*RUN, "--save-every", "3", "--keep", "0", "--eval-every", "3", "--dropout", "0.1", "--lora-dropout", "0.1",
            "--lora-last-blocks", "1", "--lora-targets", "q_proj", "down_proj"]
    for out in ("unbroken", "broken"):
        assert classify.main([*argv, "--out", out]) == 0
    for newest in sorted(Path("broken/checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(newest)
    shutil.rmtree("broken/checkpoints/merged")
    assert classify.main(["--resume", "broken"]) == 0
    index = json.loads(Path("broken/checkpoints/index.json").read_text(encoding="utf-8"))
    assert index["complete"] == [3, 6, 7]
    assert_same_ends("unbroken", "broken")
    table = json.loads(Path("broken/checkpoints/step-00000003/adapter_config.json").read_text(encoding="utf-8"))
    assert (table["r"], table["layers_to_transform"]) == (2, [1])
    assert sorted(table["target_modules"]) == ["down_proj", "q_proj"]


def test_a_run_goes_on_only_upon_the_base_that_it_was_begun_with() -> None:
    assert classify.main([*RUN, "--out", "run"]) == 0
    shutil.move("base", "kept")
    with pytest.raises(ValueError, match="'base' is neither a preset nor an existing path"):
        classify.main(["--resume", "run"])
    save_base(seed=1)
    with pytest.raises(ValueError, match="base weights are not those that run was begun with; restore them"):
        classify.main(["--resume", "run"])
    shutil.rmtree("base")
    shutil.move("kept", "base")
    assert classify.main(["--resume", "run"]) == 0


def test_a_refused_resume_does_not_change_the_run() -> None:
    assert classify.main([*RUN, "--out", "run"]) == 0
    before = Path("run/run.toml").read_bytes()
    with pytest.raises(ValueError, match="rank"):
        classify.main(["--resume", "run", "--lora-rank", "4"])
    assert Path("run/run.toml").read_bytes() == before
    for model in ("run", "run/checkpoints/merged"):
        with pytest.raises(ValueError, match=f"--model {model} is a finished classifier"):
            classify.main([*RUN, "--model", model])
    assert classify.main(["--resume", "run"]) == 0


def test_a_layer_that_is_not_there_leaves_the_place_free() -> None:
    with pytest.raises(ValueError, match="no linear layer 'nope'"):
        classify.main([*RUN, "--out", "run", "--lora-targets", "nope"])
    assert not Path("run").exists()


def test_adapters_are_trained_with_larger_steps_unless_told_otherwise() -> None:
    start = ["--model", "base", "--data", "rows.csv"]
    assert classify.parse(start).train.lr == 2e-4
    lora = classify.parse([*start, "--tune", "lora"])
    assert lora.train.lr == 3e-4 and lora.lora.lora_rank == 8 and lora.train.epochs == 4
    assert not lora.train.save_best and lora.objective.token_dropout == 0.1
    assert classify.parse([*start, "--tune", "lora", "--lr", "2e-4"]).train.lr == 2e-4
    Path("mine.toml").write_text('[objective]\ntune = "lora"\n\n[train]\nlr = 0.5\n', encoding="utf-8")
    assert classify.parse([*start, "--config", "mine.toml"]).train.lr == 0.5


@pytest.mark.parametrize(("argv", "rate", "epochs"), [
    ([], "0.003", "1"), (["--data", "rows.csv"], "0.003", "10"), (["--predict", "hi"], "0.003", "10"),
    (["--model", "base", "--data", "rows.csv"], "0.0002", "4"),
    (["--model", "base", "--data", "rows.csv", "--tune", "lora"], "0.0003", "4")])
def test_help_tells_the_settings_that_the_other_flags_bring(
    argv: list[str], rate: str, epochs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        classify.parse([*argv, "--help"])
    assert stop.value.code == 0
    shown = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
    assert f"--lr FLOAT Peak learning rate. (default: {rate})" in shown
    assert f"Passes over the data, instead of --steps. (default: {epochs})" in shown


@pytest.mark.parametrize(("argv", "message"), [
    (["--tune", "head", "--lora-rank", "4"], "lora_rank=4 has no effect with tune=head; leave it out, or choose"),
    (["--tune", "all", "--lora-targets", "q_proj"], r"lora_targets=\('q_proj',\) has no effect with tune=all"),
    (["--tune", "lora", "--lora-rank", "0"], "lora_rank=0 must be at least 1"),
    (["--tune", "lora", "--lora-alpha", "0"], "lora_alpha=0.0 must be above 0"),
    (["--tune", "lora", "--lora-dropout", "1"], "lora_dropout=1.0 must lie in"),
    (["--tune", "lora", "--lora-last-blocks", "-1"], "lora_last_blocks=-1 must be at least 0"),
    (["--tune", "lora", "--lora-last-blocks", "3"], "last_blocks=3 must lie between 1 and 2"),
    (["--tune", "lora", "--lora-targets", "o_proj"], "no linear layer 'o_proj'; choose from down_proj"),
    (["--tune", "lora", "--warm-up", "1"], "--warm-up 1 would change the weights that --tune lora leaves as they are"),
    (["--tune", "lora", "--model", "spam-tiny"], "--model spam-tiny begins with random ones; name a folder"),
    (["--tune", "lora", "--model", "adapter"], "adapter holds adapters itself; merge them and save"),
])
def test_what_cannot_be_done_says_why(argv: list[str], message: str) -> None:
    model, tokenizer = llm.load("base")
    llm.nn.inject(model, rank=1)
    llm.save(model, "adapter", tokenizer=tokenizer, base="base")
    start = [] if "--model" in argv else ["--model", "base"]
    with pytest.raises(ValueError, match=message):
        classify.main([*start, "--data", "rows.csv", "--device", "cpu", *argv])


def test_a_model_with_adapters_is_tuned_in_other_ways_as_a_plain_one() -> None:
    model, tokenizer = llm.load("base")
    llm.nn.inject(model, rank=1)
    llm.save(model, "adapter", tokenizer=tokenizer, base="base")
    argv = ["--model", "adapter", "--tune", "last-block", "--data", "rows.csv", "--epochs", "1", "--device", "cpu"]
    assert classify.main([*argv, "--threads", "1", "--out", "run"]) == 0
    assert "adapter_config.json" not in names(str(next(Path("run/checkpoints").glob("step-*"))))


@pytest.mark.slow   # two processes that import torch
def test_a_killed_run_ends_as_an_unbroken_one_to_the_bit() -> None:
    argv = [*LONG, "--save-every", "2", "--keep", "0"]
    assert classify.main([*argv, "--out", "unbroken"]) == 0
    command = [sys.executable, "-m", "llm.tasks.classify"]
    process = subprocess.Popen([*command, *argv, "--out", "broken"], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not Path("broken/checkpoints/step-00000004").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not Path("broken/report.md").exists()
    assert classify.main(["--resume", "broken"]) == 0
    assert_same_ends("unbroken", "broken")
