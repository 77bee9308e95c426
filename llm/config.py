"""Settings: dataclass defaults <- preset or TOML file <- command line. The only place that parses a command line.

A task describes its settings as nested, frozen dataclasses; the nesting orders the code, the flags are flat
(`--lr`, not `--train.lr`). `--config` names a file of `presets/runs/` or a path; every `run.toml` that a run writes
is such a file. Nothing here imports torch, so that `--help` answers at once.

Read next: `llm/train/config.py` for the settings of a training run.
"""

import dataclasses
import difflib
import json
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

Config = TypeVar("Config", bound="DataclassInstance")

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Value = TypeVar("Value")
    Derived = Annotated[Value, "not a flag"]
else:
    Derived = tyro.conf.Suppress   # marks a field that follows from other settings: in run.toml, but not a flag

PRESETS = Path(__file__).parent / "presets"


def load(
    config_class: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    choose_model: Callable[[str], Mapping[str, Any]] | None = None,
    resume_file: Callable[[str], Path] | None = None,
) -> Config:
    """Read a task's settings from its defaults, a config file and the command line, in this order.

    Args:
        config_class: a dataclass whose docstring is the task's help text.
        argv: the arguments without the program's name; None for those of the process.
        prog: how the help text names the program.
        choose_model: for tasks with `--model`: given its value, the fields that it fixes, such as the
            concrete class of the architecture; called before the command line is parsed, so that the
            flags fit the model.
        resume_file: for tasks with `--resume`: given its value, the run.toml that takes the config file's place.

    Returns:
        The settings. A bad flag or `--help` ends the process, as for any command.

    Raises:
        ValueError: for a config file with unknown keys, wrong types or of an unknown name.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = _flag(argv, "config") or ""
    table: dict[str, Any] = {}
    if resume_file and (run := _flag(argv, "resume")):
        if name:
            raise ValueError(f"--config {name} and --resume {run} exclude each other; a run has its own settings")
        name = str(resume_file(run))
        table = read_toml(Path(name))
    elif name:
        table = read_toml(find_preset("runs", name))
    fixed: Mapping[str, Any] = {}
    if choose_model:
        if model := _flag(argv, "model"):
            table = {key: value for key, value in table.items() if key not in ("model", "architecture")}
            table["model"] = model
        fixed = choose_model(table.get("model", _default(config_class, "model")))
    default = merge(config_class(**fixed), table, where=name)
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.HelptextFromCommentsOff)
    return tyro.cli(config_class, prog=prog, args=argv, default=default, config=options)


def merge(config: Config, table: Mapping[str, Any], *, where: str) -> Config:
    """A copy of `config` with the values of a TOML table in it.

    Args:
        config: a dataclass, possibly nested.
        table: field names to values; a nested dataclass takes a nested table.
        where: the file's name, for errors.

    Raises:
        ValueError: for a key that is no field, with the nearest field named; for a value of another type.

    Example:
        >>> from llm.models.config import GPTConfig
        >>> merge(GPTConfig(), {"dim": 64}, where="my.toml").dim
        64
        >>> merge(GPTConfig(), {"dims": 64}, where="my.toml")
        Traceback (most recent call last):
        ValueError: my.toml: unknown key 'dims'; did you mean 'dim'?
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key {key!r}; {did_you_mean(key, fields)}")
        old = getattr(config, key)
        if dataclasses.is_dataclass(old) and not isinstance(old, type):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {key} = {value!r}, but {key} is a table: [{key}]")
            changes[key] = merge(old, value, where=f"{where} [{key}]")
        else:
            changes[key] = _checked(value, old, str(fields[key].type), f"{where}: {key}")
    return dataclasses.replace(config, **changes)


def find_preset(kind: str, name: str) -> Path:
    """The file of a preset (`kind` is "runs" or "models"), or the path itself if `name` is an existing file.

    Raises:
        ValueError: if there is neither, with the nearest preset names.
    """
    preset = PRESETS / kind / f"{name}.toml"
    if preset.is_file():
        return preset
    if Path(name).is_file():
        return Path(name)
    raise ValueError(f"{name!r} is neither a file nor a preset; {did_you_mean(name, preset_names(kind))}")


def preset_names(kind: str) -> list[str]:
    """The names of all presets of a kind."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary; errors name the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def write_toml(config: "DataclassInstance") -> str:
    """Settings as TOML text that `load` reads back. Fields that are None are left out: None is their default."""
    plain, nested = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            nested.append(f"[{field.name}]\n{write_toml(value)}")
        elif value is not None:
            plain.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}\n")   # TOML takes JSON's scalars
    return "".join(plain) + "".join("\n" + part for part in nested)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest of the valid names, or all of them."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(choices)}"


def _flag(argv: Sequence[str], name: str) -> str | None:
    """The value of `--name value` or `--name=value`, looked up before the real parsing."""
    for place, word in enumerate(argv):
        if word == f"--{name}" and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
    return None


def _default(config_class: type, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(config_class) if field.name == name)


def _checked(value: Any, old: Any, type_name: str, where: str) -> Any:
    """The value, if it has the type of the default that it replaces; an int may stand for a float."""
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if isinstance(old, tuple) and isinstance(value, list):
        return tuple(value)
    if old is not None and type(value) is not type(old):
        raise ValueError(f"{where} = {value!r} must be of type {type(old).__name__}")
    if isinstance(value, Mapping) or (old is None and type(value).__name__ not in type_name):
        raise ValueError(f"{where} = {value!r} must be of type {type_name}")
    return value
