"""Settings: dataclass defaults <- preset or TOML file <- command line. The only place that parses a command line.

A task describes its settings as nested, frozen dataclasses; the nesting orders the code, the flags are flat
(`--lr`, not `--train.lr`). `--config` names a file of `presets/runs/` or a path; every `run.toml` that a run writes
is such a file. Nothing here imports torch, so that `--help` answers at once.

Read next: `llm/train/config.py` for the settings of a training run.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import math
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from llm.launch import read_launch

Config = TypeVar("Config", bound="DataclassInstance")

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Value = TypeVar("Value")
    Derived = Annotated[Value, "not a flag"]
    Positional = Annotated[Value, "named by its place"]
else:
    Positional = tyro.conf.Positional   # marks a field that is given without a flag
    Derived = tyro.conf.Suppress   # marks a field that follows from other settings: in run.toml, but not a flag

PRESETS = Path(__file__).parent / "presets"
MOST_CHOICES = 60   # that an error message names


class UsageError(ValueError):
    """A command line that cannot be meant; as is the custom, a command ends with status 2 then."""


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
        The settings. `--help` ends the process, as for any command.

    Raises:
        UsageError: for a bad flag, in one line.
        ValueError: for a config file with unknown keys, wrong types or of an unknown name, and for --resume beside
            --config or --model.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name = _flag(argv, "config") or ""
    table: dict[str, Any] = {}
    if resume_file and (run := _flag(argv, "resume")):
        for other in ("config", "model"):
            if value := _flag(argv, other):
                raise ValueError(f"--{other} {value} and --resume {run} exclude each other; a run has its own settings")
        name = str(resume_file(run))
        table = read_toml(Path(name))
    elif name:
        table = read_toml(find_preset("runs", name))
    fixed: Mapping[str, Any] = {}
    if choose_model:
        if model := _flag(argv, "model"):
            table = {key: value for key, value in table.items() if key not in ("model", "architecture")}
            table["model"] = model
        fixed = choose_model(checked(table.get("model", _default(config_class, "model")), str, f"{name}: model"))
    default = merge(config_class(**fixed), table, where=name)
    options = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.HelptextFromCommentsOff)
    with _complaints_in_one_line():
        config = tyro.cli(config_class, prog=prog, args=argv, default=default, config=options)
    return config


def load_command(
    commands: Mapping[str, type[Config]],
    argv: Sequence[str] | None,
    *,
    prog: str,
    choose_model: Callable[[str], Mapping[str, Any]] | None = None,
) -> Config:
    """Read the settings of a task with several commands, whose name is the first word.

    Args:
        commands: the name of each command to the dataclass of its settings.
        argv, prog, choose_model: as in `load`; the model is chosen for commands with a field `model`.

    Returns:
        The settings; their class says which command it is. `--help` ends the process.

    Raises:
        UsageError: for a missing or unknown command, and as in `load`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in commands:
        with _complaints_in_one_line():
            tyro.extras.subcommand_cli_from_dict(dict(commands), prog=prog, args=argv)   # says what there is, and ends
        raise AssertionError("tyro accepted an unknown command")
    config_class = commands[argv[0]]
    has_model = any(field.name == "model" for field in dataclasses.fields(config_class))
    return load(config_class, argv[1:], prog=f"{prog} {argv[0]}", choose_model=choose_model if has_model else None)


def merge(config: Config, table: Mapping[str, Any], *, where: str) -> Config:
    """A copy of `config` with the values of a TOML table in it.

    Args:
        config: a dataclass, possibly nested.
        table: field names to values; a nested dataclass takes a nested table.
        where: the file's name, for errors.

    Raises:
        ValueError: for a key that is no field, with the nearest field named; for a value of another type, or one that
            the dataclass refuses.

    Example:
        >>> from llm.models.config import GPTConfig
        >>> merge(GPTConfig(), {"dim": 64}, where="my.toml").dim
        64
        >>> merge(GPTConfig(), {"dims": 64}, where="my.toml")
        Traceback (most recent call last):
        ValueError: my.toml: unknown key 'dims'; did you mean 'dim'?
    """
    fields = [field.name for field in dataclasses.fields(config)]
    annotations = typing.get_type_hints(type(config), include_extras=True)
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
            changes[key] = checked(value, annotations[key], f"{where}: {key}")
    try:
        return dataclasses.replace(config, **changes)
    except ValueError as error:   # what the dataclass itself refuses
        raise ValueError(f"{where}: {error}") from error


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
    raise ValueError(f"{name!r} is neither a preset nor an existing path; {did_you_mean(name, preset_names(kind))}")


def preset_names(kind: str) -> list[str]:
    """The names of all presets of a kind."""
    return sorted(path.stem for path in (PRESETS / kind).glob("*.toml"))


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary; errors name the file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def write_toml(config: "DataclassInstance", *, table: str = "") -> str:
    """Settings as TOML text that `load` reads back. None is left out where it is the default, else it is "None".

    `table` is the name of the table that the text will stand in, for the names of those inside.
    """
    plain, nested = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            name = f"{table}.{field.name}" if table else field.name
            nested.append(f"[{name}]\n{write_toml(value, table=name)}")
        elif value is not None or field.default is not None:
            plain.append(f"{field.name} = {_to_toml(value, field.name)}\n")
    return "".join(plain) + "".join("\n" + part for part in nested)


def checked(value: Any, kind: Any, where: str) -> Any:
    """The value, if it fits a field's annotation; an int may stand for a float, a list for a tuple, "None" for None.

    Raises:
        ValueError: naming `where` if it does not.

    Example:
        >>> checked(1, float | None, "my.toml: lr")
        1.0
    """
    options = _options(kind)
    if (value is None or value == "None") and None in options:
        return None
    for option in options:
        if option is float and type(value) is int:
            return float(value)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(value)
        if type(value) is option or (isinstance(option, str) and value == option):
            return value
    choices = [option for option in options if isinstance(option, str)]
    if choices and isinstance(value, str):
        raise ValueError(f"{where} = {value!r}; {did_you_mean(value, choices)}")
    names = [repr(option) if isinstance(option, str) else option.__name__ for option in options if option is not None]
    raise ValueError(f"{where} = {value!r} must be of type {' or '.join(names)}")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest of the valid names, or all of them."""
    choices = list(choices)
    if not choices:
        return "there are none to choose from"
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    more = f" and {len(choices) - MOST_CHOICES:,} more" if len(choices) > MOST_CHOICES else ""
    return f"choose from {', '.join(choices[:MOST_CHOICES])}{more}"


@contextlib.contextmanager
def _complaints_in_one_line() -> Iterator[None]:
    """Around tyro: what it would print before it ends the process becomes a UsageError; the help stays as it is."""
    complaint = io.StringIO()
    help_goes_to = sys.stdout if read_launch().rank == 0 else io.StringIO()   # of several processes one shows it
    try:
        with contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(help_goes_to):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_in_one_line(complaint.getvalue())) from None


def _in_one_line(box: str) -> str:
    """What tyro complains of, without the frame it draws around it and without the help texts."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)   # without colours
    rows = [row.strip("│ ") for row in plain.splitlines()[1:]]   # the first is a title
    sections: list[list[str]] = [[]]
    for row in rows:
        if set(row) and set(row) <= set("─-╰╯"):
            sections.append([])
        else:
            sections[-1].append(row)
    said, *others = [section for section in sections if any(section)]
    message = " ".join(said).split("  Got errors:")[0].strip().removesuffix(".")
    if (complaint := re.match(r"Error parsing (?!-)\S+: (.*)", message)):
        return complaint[1]   # of a dataclass of ours, which says all there is to say
    if (complaint := re.match(r"Error parsing (--\S+): no type matching (\S+) could .* from \['(.*)'\]", message)):
        message = f"{complaint[1]} {complaint[3]} must be {complaint[2].replace('|', ' or ')}"
    near = list(dict.fromkeys(row.split()[0] for section in others for row in section if row.startswith("--")))
    if message.startswith("Unrecognized") and near:
        return f"{message}; did you mean {' or '.join(near[:3])}?"
    return f"{message}; --help lists every flag"


def _flag(argv: Sequence[str], name: str) -> str | None:
    """The value of the last `--name value` or `--name=value`, looked up before the real parsing."""
    found = None
    for place, word in enumerate(argv):
        if word == f"--{name}" and place + 1 < len(argv):
            found = argv[place + 1]
        elif word.startswith(f"--{name}="):
            found = word.split("=", 1)[1]
    return found


def _default(config_class: type, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(config_class) if field.name == name)


def _options(kind: Any) -> list[Any]:
    """What an annotation allows: types, the strings of a Literal, None."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _options(arguments[0])
    if origin is Literal:
        return list(arguments)
    if origin in (typing.Union, types.UnionType):
        return [option for argument in arguments for option in _options(argument)]
    return [None if kind is types.NoneType else kind]


def _to_toml(value: Any, where: str) -> str:
    """A value in TOML's spelling, which is JSON's but for the cases named here."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)   # inf, -inf, nan
    text = json.dumps("None" if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if re.search("[\ud800-\udfff]", text):   # how Python spells a file name that is not UTF-8
        raise ValueError(f"{where} = {value!r} is not UTF-8 and cannot be kept in a TOML file; rename it")
    return text
