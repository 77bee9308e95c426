"""Laws of the generate command: the text begins with the prompt, a seed repeats it, and errors name the remedy."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import llm
from llm.config import UsageError
from llm.tasks import generate

TEXT = "The quick brown fox.\n猴王出世"


@pytest.fixture(params=["characters", "bytes"])
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return saved(llm.Tokenizer.character_level(TEXT) if request.param == "characters" else llm.Tokenizer.byte_level())


def saved(tokenizer: llm.Tokenizer, *, more_ids: int = 0) -> str:
    """A folder, relative to the working directory, with a model of large random weights."""
    torch.manual_seed(1)
    config = llm.GPTConfig(vocab_size=tokenizer.vocab_size + more_ids, context_length=16, num_layers=1, num_heads=1,
                           dim=8)
    network = llm.GPT(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape))
    llm.save(network, "我的 model", tokenizer=tokenizer)
    return "我的 model"


def written(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    settings = ["--device", "cpu", "--dtype", "fp32", "--threads", "1", "--max-new-tokens", "12"]
    assert generate.main([*settings, *map(str, argv)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("prompt", ["", "T", "The quick", "猴王", TEXT])
def test_the_text_begins_with_the_prompt(model: str, prompt: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(capsys, "--model", model, "--prompt", prompt)
    assert text.startswith(prompt)
    assert text.endswith("\n")
    assert len(text) > len(prompt) + 1


def test_a_seed_repeats_the_text_and_another_does_not(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [written(capsys, "--model", model, "--seed", seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_several_samples_are_numbered_differ_and_the_first_is_the_streamed_one(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = written(capsys, "--model", model, "--prompt", "fox", "--num-samples", 3)
    heads = [f"--- {number}\nfox" for number in (1, 2, 3)]
    assert all(text.count(head) == 1 for head in heads)
    samples = [text.split(head)[1].split("--- ")[0] for head in heads]
    assert len(set(samples)) == 3
    assert "fox" + samples[0] == written(capsys, "--model", model, "--prompt", "fox")


def test_a_stop_string_ends_every_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model", model, "--prompt", "fox", "--temperature", 2, "--seed", 5]
    body = written(capsys, *argv).removeprefix("fox").removesuffix("\n")
    stop = body[3:5]
    expected = "fox" + body[: body.index(stop)] + "\n"
    assert written(capsys, *argv, "--stop", "nothing", stop) == expected
    several = written(capsys, *argv, "--stop", stop, "--num-samples", 3)
    assert several.startswith(f"--- 1\n{expected}--- 2\n") and several.count(stop) == 0


def test_weights_have_the_dtype_that_is_asked_for(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    opened = generate.open_model(model, dtype="bf16", device="cpu", threads=1)
    assert {parameter.dtype for parameter in opened.model.parameters()} == {torch.bfloat16}
    assert opened.name.endswith("parameters, bf16, context 16")
    assert generate.main(["--model", model, "--dtype", "bf16", "--prompt", "fox", "--max-new-tokens", "20"]) == 0
    assert "bf16" in capsys.readouterr().err


@pytest.mark.parametrize("rule", [["--min-p", "1"], ["--repetition-penalty", "5"], ["--presence-penalty", "50"],
                                  ["--frequency-penalty", "50"], ["--no-repeat-ngram", "1"]])
def test_every_rule_has_its_effect(model: str, rule: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    plain = written(capsys, "--model", model, "--prompt", "fox", "--temperature", 1)
    assert written(capsys, "--model", model, "--prompt", "fox", "--temperature", 1, *rule) != plain


@pytest.mark.parametrize("narrow", [["--temperature", "0"], ["--top-k", "1"], ["--top-p", "0"]])
def test_the_likeliest_text_does_not_depend_on_the_seed(
    model: str, narrow: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = written(capsys, "--model", model, "--temperature", 0)
    assert {written(capsys, "--model", model, *narrow, "--seed", seed) for seed in (1, 2)} == {plain}


def test_no_new_tokens_give_the_prompt_back(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, "--model", model, "--prompt", "fox", "--max-new-tokens", 0) == "fox\n"


def test_ids_beyond_the_tokenizer_are_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Published models have more rows than their tokenizers have ids."""
    monkeypatch.chdir(tmp_path)
    folder = saved(llm.Tokenizer.character_level(TEXT), more_ids=500)
    text = written(capsys, "--model", folder, "--temperature", 5, "--max-new-tokens", 50)
    assert len(text) == 51 and set(text) <= set(TEXT)


def test_characters_that_the_model_does_not_know_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = saved(llm.Tokenizer.character_level(TEXT))
    with pytest.raises(ValueError, match=r"2 characters of the text .*: 'Ω' \(U\+03A9\), '猪' \(U\+732A\)"):
        written(capsys, "--model", folder, "--prompt", "TheΩ猪")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("argv", "message"), [
    ([], "--model is missing; name a run folder, a checkpoint, a Hugging Face folder or a .gguf file"),
    (["--model", "nowhere"], "nowhere does not exist; name a run folder"),
    (["--model", "."], ". holds no complete checkpoint; name a run folder"),
    (["--model", "bare"], "bare has no tokenizer.json; text cannot be turned into its ids"),
    (["--model", "bare", "--num-samples", "0"], "num_samples=0 must be at least 1"),
    (["--model", "bare", "--seed", "-1"], "seed=-1 must be at least 0"),
    (["--model", "我的 model", "--stop", ""], "a stop string is empty"),
])
def test_what_cannot_be_written_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(llm.Tokenizer.byte_level())
    llm.save(llm.GPT(llm.GPTConfig(vocab_size=9, context_length=8, num_layers=1, num_heads=1, dim=8)), "bare")
    with pytest.raises(ValueError) as caught:
        generate.main(argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_out_of_range_end_the_command_with_their_name() -> None:
    with pytest.raises(UsageError, match=r"top_p=2\.0 must lie between 0 and 1"):
        generate.main(["--model", "any", "--top-p", "2"])


def test_settings_come_from_a_file_too(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("设置.toml").write_text(f'model = "{model}"\nprompt = "猴王"\n[sampling]\ntemperature = 0\n', encoding="utf-8")
    assert written(capsys, "--config", "设置.toml") == written(
        capsys, "--model", model, "--prompt", "猴王", "--temperature", 0)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "gbk"])
def test_a_narrow_output_shows_a_question_mark_for_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = saved(llm.Tokenizer.character_level(TEXT + "😀"))
    done = subprocess.run(
        [sys.executable, "-m", "llm.tasks.generate", "--model", folder, "--prompt", "fox 😀"], capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(llm.__file__).parents[1]), "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"fox ?")


@pytest.mark.slow
def test_a_reader_who_has_seen_enough_ends_the_command_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = saved(llm.Tokenizer.byte_level())
    process = subprocess.Popen(
        [sys.executable, "-m", "llm.tasks.generate", "--model", folder, "--max-new-tokens", "100000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(llm.__file__).parents[1])})
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read().decode()
    assert process.wait(60) == 1
    assert "Broken" not in errors and "Exception" not in errors
