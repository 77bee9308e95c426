"""Laws of settings: defaults < file < flags, what is written is read back, and what is misspelt is never ignored."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import llm
from llm.config import UsageError, load, merge, read_toml, write_toml
from llm.models.config import GPTConfig, QwenConfig, model_preset
from llm.tasks.bench import COMMANDS
from llm.tasks.generate import GenerateConfig
from llm.tasks.pretrain import PretrainConfig, choose_model
from llm.train.config import TrainConfig

TASKS = sorted(path.stem for path in (Path(llm.__file__).parent / "tasks").glob("[!_]*.py"))


def pretrain_settings(*argv: str) -> PretrainConfig:
    return load(PretrainConfig, argv, prog="pretrain", choose_model=choose_model)


def settings_file(folder: Path, text: str) -> str:
    path = folder / "my settings 设置.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, encoding="utf-8", **options)


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = settings_file(tmp_path, 'model = "gpt-tiny"\n[train]\nlr = 0.5\nsteps = 7\n[architecture]\ndim = 64\n')
    config = pretrain_settings("--config", path, "--lr", "0.25", "--num-heads", "2")
    assert (config.train.lr, config.train.steps, config.train.batch_size) == (0.25, 7, TrainConfig().batch_size)
    assert config.architecture == GPTConfig(dim=64, num_heads=2)
    assert pretrain_settings(f"--config={path}", "--lr=0.25", "--num-heads=2") == config


def test_a_model_flag_replaces_the_file_s_model_and_its_architecture(tmp_path: Path) -> None:
    path = settings_file(tmp_path, 'model = "gpt-tiny"\n[train]\nsteps = 7\n[architecture]\nnorm_eps = 0.1\n')
    config = pretrain_settings("--config", path, "--model", "qwen3-0.6b", "--num-layers", "2")
    assert config.architecture == dataclasses.replace(model_preset("qwen3-0.6b"), num_layers=2)
    assert (config.model, config.train.steps) == ("qwen3-0.6b", 7)


def test_the_last_of_two_model_flags_counts_for_the_architecture_too() -> None:
    config = pretrain_settings("--model", "gpt-tiny", "--model=qwen-tiny")
    assert (config.model, type(config.architecture)) == ("qwen-tiny", QwenConfig)


@pytest.mark.parametrize(("text", "message"), [
    ("steps = 3", "unknown key 'steps'; choose from config, model, init"),
    ("[train]\nstesp = 3", "[train]: unknown key 'stesp'; did you mean 'steps'"),
    ("[trian]\nsteps = 3", "unknown key 'trian'; did you mean 'train'?"),
    ("[architecture]\nlayers = 3", "[architecture]: unknown key 'layers'; did you mean 'num_layers'"),
    ('[train]\nlr = "fast"', "[train]: lr = 'fast' must be of type float"),
    ("[train]\nsteps = 3.0", "[train]: steps = 3.0 must be of type int"),
    ("[train]\nbatch_size = true", "[train]: batch_size = True must be of type int"),
    ("[train]\ncompile = 1", "[train]: compile = 1 must be of type bool"),
    ('[train]\noptimizer = "sgd"', "[train]: optimizer = 'sgd'; choose from adamw"),
    ('[train]\nprecision = "bf61"', "[train]: precision = 'bf61'; did you mean 'bf16'?"),
    ("[train]\nprecision = 16", "[train]: precision = 16 must be of type 'auto' or 'fp32'"),
    ("[train]\nsteps = 0", "[train]: steps=0 must be at least 1"),
    ("[train]\nsteps = 3\nepochs = 3", "steps=3 and epochs=3: give one of them"),
    ("[data]\ndata = 3", "[data]: data = 3 must be of type str"),
    ("[data]\nlimit = [3]", "[data]: limit = [3] must be of type int"),
    ("[data.val]\nx = 3", "[data]: val = {'x': 3} must be of type str"),
    ("train = 3", "train = 3, but train is a table: [train]"),
    ("model = 3", "model = 3 must be of type str"),
    ("model = ", "is not a TOML file: "),
])
def test_a_wrong_file_is_refused_in_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = settings_file(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        pretrain_settings("--config", path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_integer_stands_for_a_float_and_stays_equal_to_it() -> None:
    config = merge(TrainConfig(), {"lr": 1}, where="my.toml")
    assert config == TrainConfig(lr=1.0) and type(config.lr) is float


def test_none_is_written_in_words(tmp_path: Path) -> None:
    path = settings_file(tmp_path, '[train]\nsteps = 3\n[architecture]\nnum_kv_heads = "None"\n')
    assert isinstance(architecture := pretrain_settings("--config", path).architecture, QwenConfig)
    assert architecture.num_kv_heads is None
    assert pretrain_settings("--config", path, "--steps", "None", "--epochs", "2").train.epochs == 2


@pytest.mark.parametrize("argv", [
    [],
    ["--model", "gpt-tiny", "--dim", "64", "--mlp-dim", "100", "--no-tie-embeddings"],
    ["--num-kv-heads", "None"],
    ["--data", "a.bin", "--raw-dtype", "uint16", "--val", "b.bin"],
    ["--lr", "1e-30", "--clip", "inf", "--steps", "3", "--wandb", "--precision", "bf16", "--threads", "2"],
    ["--data", 'C:\\new\\"quoted" \\u0041', "--sample-prompt", "第一回\n\t\r\x00\x01\x1b\x7f\x85\u2028😀'"],
    ["--document-separator", "", "--name", "None of it", "--tokenizer", "[train]\n# = "],
])
def test_settings_that_were_written_are_read_back_the_same(tmp_path: Path, argv: list[str]) -> None:
    config = pretrain_settings(*argv)
    again = pretrain_settings("--config", settings_file(tmp_path, write_toml(config)))
    assert dataclasses.replace(again, config=None) == config


def test_the_settings_of_generate_are_read_back_the_same(tmp_path: Path) -> None:
    argv = ["--model", "a b", "--prompt", "他说：\"好\"\\\n", "--top-k", "5", "--temperature", "0"]
    config = load(GenerateConfig, argv, prog="generate")
    again = load(GenerateConfig, ["--config", settings_file(tmp_path, write_toml(config))], prog="generate")
    assert dataclasses.replace(again, config=None) == config


def test_every_character_survives_a_settings_file(tmp_path: Path) -> None:
    everything = "".join(map(chr, [*range(0x300), *range(0xD7F0, 0xD800), *range(0xE000, 0xE010), 0xFFFF, 0x10FFFF]))
    path = settings_file(tmp_path, write_toml(GenerateConfig(prompt=everything)))
    assert read_toml(Path(path))["prompt"] == everything


def test_a_path_that_is_not_utf_8_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model = 'caf\\udce9' is not UTF-8"):
        write_toml(GenerateConfig(model="caf\udce9"))


@pytest.mark.parametrize(("argv", "message"), [
    (["--config", "shakespear"], "'shakespear' is neither a preset nor an existing path"),
    (["--model", "qwen-tyni"], "'qwen-tyni' is neither a preset nor an existing path; did you mean 'qwen-tiny'"),
])
def test_unknown_presets_name_the_nearest(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        pretrain_settings(*argv)
    assert message in str(caught.value)
    assert not str(caught.value).endswith(" ")


@pytest.mark.parametrize(("argv", "message"), [
    (["--batchsize", "3"], "--batch-size"),
    (["--stesp", "3"], "--steps"),
    (["--optimizer", "sgd"], "adamw"),
    (["--model", "gpt-tiny", "--num-kv-heads", "2"], "Unrecognized options: --num-kv-heads"),
    (["--lr"], "--lr"),
    (["--steps", "0"], "steps=0 must be at least 1"),
    (["--num-heads", "3"], "num_heads=3 does not divide dim=256; choose 2 or 4"),
])
def test_a_bad_flag_is_told_in_one_line_with_a_hint(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        pretrain_settings(*argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


def leaves(config: Any) -> list[str]:
    """The names of all flags that a settings dataclass makes."""
    names = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        names += leaves(value) if dataclasses.is_dataclass(value) else [field.name]
    return names


@pytest.mark.parametrize("task", TASKS)
def test_the_flags_of_every_task_are_unambiguous_and_round_trip(task: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"llm.tasks.{task}")
    config_class = getattr(module, f"{task.capitalize()}Config", None)
    if config_class is None:
        pytest.skip(f"{task} has no settings")
    config = load(config_class, [], prog=task, choose_model=getattr(module, "choose_model", None))
    names = leaves(config)
    assert len(set(names)) == len(names)
    assert merge(config_class(), read_toml(Path(settings_file(tmp_path, write_toml(config)))), where=task) == config


def test_help_comes_without_torch(tmp_path: Path) -> None:
    """The import of torch alone takes longer than anyone wants to wait for a list of flags."""
    commands = [(task, ["--help"]) for task in TASKS] + [("bench", [word, "--help"]) for word in COMMANDS]
    code = f"""
import importlib, sys
for task, argv in {commands}:
    try:
        importlib.import_module(f"llm.tasks.{{task}}").main(argv)
    except SystemExit as stop:
        assert stop.code == 0
    found = {{"torch", "matplotlib", "pandas", "transformers", "tiktoken"}} & set(sys.modules)
    assert not found, (task, argv, found)
"""
    done = python("-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(llm.__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    for task, argv in commands:
        assert f"python -m llm.tasks.{' '.join([task, *argv[:-1]])}" in done.stdout


def test_the_bare_library_names_every_task() -> None:
    done = python("-m", "llm")
    assert done.returncode == 0
    for task in TASKS:
        assert f"python -m llm.tasks.{task} " in done.stdout
