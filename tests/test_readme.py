"""What the README shows is run: its Python as it stands, its commands as far as their flags."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import llm
from llm.models.config import GPTConfig

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
RUN = "logs/pretrain/2026-01-31_12-00-00"


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[-1][:40])
def test_the_python_of_the_readme_runs(code: str, tmp_path: Path) -> None:
    tokenizer = llm.Tokenizer.character_level("First Citizen: Before we proceed any further, hear me speak.")
    model = llm.GPT(GPTConfig(vocab_size=tokenizer.vocab_size, num_layers=1, num_heads=1, dim=8))
    llm.save(model, tmp_path / RUN / "checkpoints" / "step-00000500", tokenizer=tokenizer)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_the_readme_names_exists() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:llm|tests)/[\w/.]+)`", README):
        assert (root / name).exists(), name
    targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= set(targets)


@pytest.mark.parametrize("line", re.findall(r"^(?:    )?python -m (llm\.tasks\.[^#\n]+)", README, re.MULTILINE))
def test_the_flags_of_the_readme_exist(line: str) -> None:
    module, *flags = shlex.split(line)
    importlib.import_module(module).parse(flags)   # a flag that does not exist ends the process
