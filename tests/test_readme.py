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
def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    """Each piece with names and a folder of its own; one process for all, since importing torch costs most."""
    tokenizer = llm.Tokenizer.character_level("First Citizen: Before we proceed any further, hear me speak.")
    model = llm.GPT(GPTConfig(vocab_size=tokenizer.vocab_size, num_layers=1, num_heads=1, dim=8))
    for number, code in enumerate(PYTHON):
        llm.save(model, tmp_path / str(number) / RUN / "checkpoints" / "step-00000500", tokenizer=tokenizer)
        (tmp_path / str(number) / "piece.py").write_text(code, encoding="utf-8")
    runner = f"import os, runpy\nfor n in range({len(PYTHON)}): os.chdir(f'../{{n}}'); runpy.run_path('piece.py')"
    done = subprocess.run([sys.executable, "-c", runner], cwd=tmp_path / "0", capture_output=True, text=True,
                          timeout=600)
    assert done.returncode == 0, done.stderr   # its traceback shows the piece


def test_what_the_readme_names_exists() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"`((?:llm|tests)/[\w/.]+)`", README):
        assert (root / name).exists(), name
    targets = re.findall(r"^([a-z]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"`?make ([a-z]+)", README)) <= set(targets)


@pytest.mark.parametrize("line", re.findall(r"^(?:    )?python -m (llm\.tasks\.[^#\n]+)", README, re.MULTILINE))
def test_the_flags_of_the_readme_exist(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in re.findall(r"--model (\w+/\S+)", line):   # some commands look into it before they go on
        llm.save(llm.GPT(GPTConfig(vocab_size=9, num_layers=2, num_heads=1, dim=8)), tmp_path / folder)
    module, *flags = shlex.split(line)
    importlib.import_module(module).parse(flags)   # a flag that does not exist ends the process
