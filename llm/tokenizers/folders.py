"""A tokenizer's three files in a folder: tokenizer.json, tokenizer_config.json, and the chat template.

What tokenizer.json means is the affair of `formats.py`; here it is a table. Read next: `tokenizer.py`.
"""

import json
from pathlib import Path
from typing import Any

CONTROL = ("bos_token", "eos_token", "pad_token")
LENGTH = "model_max_length"
NO_LENGTH = 10**20   # from here on a number stands for "none" in transformers, which writes 10**30


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of a tokenizer.json, and the control tokens, chat template and length of the files beside it.

    Raises:
        ValueError: if a file is damaged.
    """
    table = _read_json(path)
    config, template = path.parent / "tokenizer_config.json", path.parent / "chat_template.jinja"
    beside = _read_json(config) if config.is_file() else {}
    settings: dict[str, Any] = {}
    for name in CONTROL:
        token = beside.get(name)
        settings[name] = token.get("content") if isinstance(token, dict) else token
    found = template.read_bytes().decode() if template.is_file() else beside.get("chat_template")
    if isinstance(found, list):   # several, each with a name
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    settings["chat_template"] = found
    if wrong := [name for name, value in settings.items() if not isinstance(value, str | None)]:
        raise ValueError(f"{config} is damaged: {wrong[0]} = {settings[wrong[0]]!r} is no text")
    longest = beside.get(LENGTH)
    if longest is not None and not (isinstance(longest, int | float) and longest >= 1):
        raise ValueError(f"{config} is damaged: {LENGTH} = {longest!r} is no number of tokens from 1 on")
    settings["max_length"] = int(longest) if longest is not None and longest < NO_LENGTH else None
    return table, {name: value for name, value in settings.items() if value is not None}


def write(folder: Path, table: dict[str, Any], settings: dict[str, Any]) -> None:
    """The counterpart of `read`; makes the folder if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        # for any other class, or none, AutoTokenizer replaces our ids for some model types
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    config |= {name: settings[name] for name in CONTROL if settings[name] is not None}
    if settings["max_length"] is not None:
        config[LENGTH] = settings["max_length"]
    _write_json(folder / "tokenizer.json", table)
    _write_json(folder / "tokenizer_config.json", config)
    if (template := settings["chat_template"]) is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} is damaged, or no tokenizer: it holds a {type(table).__name__}, not an object")
    return table


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
