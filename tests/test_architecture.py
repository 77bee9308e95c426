"""The house rules, read from the source: imports go down, every verb has one home, every example runs."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import llm

ROOT = Path(llm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FLOORS = {
    "parallel": 0, "launch": 0,
    "config": 1, "runtime": 1, "losses": 1, "nn": 1, "tokenizers": 1, "sampling": 1,
    "models": 2, "data": 2, "objectives": 2,
    "interop": 3, "generation": 3,
    "checkpoint": 4, "evaluate": 4, "writing": 4,
    "train": 5, "conversation": 5,
    "classification": 6,
    "bench": 7,
    "tasks": 8,
}
MODULES = [".".join(("llm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
           for path in FILES if path.name != "__main__.py"]

def room(path: Path) -> str:
    """The package or module below llm/ that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")

@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))

def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names

def calls(path: Path) -> set[str]:
    """The last part of every called name: `x.backward()` gives ".backward", `eval(...)` gives "eval"."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                found.add(f".{node.func.attr}")
            elif isinstance(node.func, ast.Name):
                found.add(node.func.id)
    return found

@pytest.mark.parametrize("path", [path for path in FILES if path.parent != ROOT or path.name[0] != "_"], ids=str)
def test_imports_go_down_the_floors_or_stay_in_the_room(path: Path) -> None:
    here = room(path)
    for name in imported(path):
        if name.startswith("llm."):
            there = name.split(".")[1]
            assert there == here or FLOORS[there] < FLOORS[here], f"{path} imports {name}"

@pytest.mark.parametrize(("words", "homes"), [
    ({".backward", ".step"}, {"train"}),
    ({".save_file", ".load_file", ".save_model", ".load_model", ".safe_open"}, {"checkpoint", "interop"}),
    ({"eval", "exec", "compile", "__import__"}, set()),

])
def test_each_verb_has_one_home(words: set[str], homes: set[str]) -> None:
    for path in FILES:
        assert room(path) in homes or not calls(path) & words, f"{path}: {calls(path) & words}"

@pytest.mark.parametrize(("modules", "homes"), [
    ({"pickle", "marshal", "shelve", "dill", "joblib"}, set()),
    ({"tyro", "argparse", "click", "optparse"}, {"config"}),
    ({"torch.distributed"}, {"runtime", "checkpoint"}),
    ({"safetensors"}, {"checkpoint", "interop"}),
    ({"transformers"}, {"bench"}),   # to be measured against; nothing else may need it
    ({"peft", "trl"}, set()),
])
def test_each_library_has_one_home(modules: set[str], homes: set[str]) -> None:
    for path in FILES:
        met = {name for name in imported(path) for module in modules if f"{name}.".startswith(f"{module}.")}
        assert room(path) in homes or not met, f"{path}: {met}"

def test_the_environment_is_read_in_one_place() -> None:
    for path in FILES:
        names = {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)}
        assert room(path) == "launch" or not names & {"environ", "getenv", "putenv"}, path

def test_no_module_is_called_utils_or_common() -> None:
    assert not {path.stem for path in FILES} & {"utils", "util", "common", "helpers", "misc"}

@pytest.mark.parametrize("module", MODULES)
def test_every_example_in_a_docstring_runs(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0

@pytest.mark.parametrize("module", MODULES)
def test_every_module_and_public_name_is_explained(module: str) -> None:
    loaded = importlib.import_module(module)
    assert loaded.__doc__, module
    for name, thing in vars(loaded).items():
        if name.startswith("_") or getattr(thing, "__module__", None) != module:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            is_task_main = module.startswith("llm.tasks.") and name == "main"
            assert inspect.getdoc(thing) or is_task_main, f"{module}.{name}"

def test_every_public_name_is_there() -> None:
    for name in llm.__all__:
        assert getattr(llm, name) is not None
    assert callable(llm.generate)   # not a module of the same name


@pytest.mark.slow   # a process that imports torch
def test_the_parts_are_there_after_a_bare_import() -> None:
    code = "import llm; llm.nn.Attention(dim=64, num_heads=4, num_kv_heads=2)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)
