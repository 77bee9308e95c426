"""The tokenizer inside a GGUF file.

Tokens and merges stand in the file; the pattern that cuts text into words does not, only its name in llama.cpp
(`tokenizer.ggml.pre`), so that a table of those names stands here. From all this a tokenizer.json is made and read as
any other. Files that we write also hold that tokenizer.json itself, under the key that the GGUF specification has for
it, so that what llama.cpp has no words for (characters, NFC) comes back too.

SentencePiece models (`llama`) come as scores instead of merges: of two pairs the one that makes the token of the higher
score is glued first. Left out: writing those; WordPiece and Unigram. Read next: `llm/tokenizers/formats.py`.
"""

import json
import logging
from typing import Any, NamedTuple

import numpy as np

from llm.interop.gguf.container import GGUFFile, shown
from llm.tokenizers import formats
from llm.tokenizers.patterns import PATTERNS
from llm.tokenizers.tokenizer import Tokenizer
from llm.tokenizers.vocabulary import ONE_CHARACTER

log = logging.getLogger(__name__)

NORMAL, UNKNOWN, CONTROL, TEXT, UNUSED, BYTE = 1, 2, 3, 4, 5, 6   # kinds of tokens
WHOLE_JSON = "tokenizer.huggingface.json"


class PreTokenizer(NamedTuple):
    """What hangs on a name of `tokenizer.ggml.pre`."""

    pattern: str
    ignore_merges: bool = False
    is_nfc: bool = False       # of the models' own tokenizers; llama.cpp does not normalize
    adds_bos: bool = False     # where the file does not say


PRE_TOKENIZERS = {   # of names with the same meaning, the first is the one that is written
    "gpt-2": PreTokenizer("gpt2"),
    "llama-bpe": PreTokenizer("cl100k", ignore_merges=True, adds_bos=True),
    "llama3": PreTokenizer("cl100k", ignore_merges=True, adds_bos=True),
    "llama-v3": PreTokenizer("cl100k", ignore_merges=True, adds_bos=True),
    "qwen2": PreTokenizer("qwen2", is_nfc=True),
    "smollm": PreTokenizer("digits"),
    "gpt-4o": PreTokenizer("o200k", ignore_merges=True),
    "tekken": PreTokenizer("tekken", ignore_merges=True, adds_bos=True),
    "default": PreTokenizer("llamacpp"),
}


def read_tokenizer(file: GGUFFile) -> Tokenizer | None:
    """The tokenizer of a file, with its control tokens and chat template; None if it has none.

    Raises:
        ValueError: if it is damaged, or of a kind or with a pre-tokenizer that is not known.
        ImportError: if it needs the package `tokenizers` and that is not installed.
    """
    model = file.value("tokenizer.ggml.model", str, "none")
    settings = {}
    if (template := file.value("tokenizer.chat_template", str, "")):
        settings["chat_template"] = template
    if WHOLE_JSON in file.metadata:
        table, words = _parse(file)
        for part, token_id in _control_ids(file).items():
            if token_id not in words:
                raise file.error(f"its {part} has the id {token_id}, which is no added token; it is damaged")
            settings[part] = words[token_id]
        return Tokenizer.from_json(table, where=f"{file.path}: {WHOLE_JSON}", **settings)
    if model == "none":
        return None
    if model not in ("gpt2", "llama"):
        raise file.error(f"its tokenizer is of the kind {shown(model)}, which is not supported; only gpt2 (byte-level "
                         "BPE) and llama (SentencePiece) are: load the original model folder")
    tokens = file.value("tokenizer.ggml.tokens", list)
    kinds = file.value("tokenizer.ggml.token_type", np.ndarray, np.full(len(tokens), NORMAL))
    if len(kinds) != len(tokens) or not np.isin(kinds, range(NORMAL, BYTE + 1)).all():
        raise file.error(f"its {len(tokens)} tokens have {len(kinds)} types of which each must be from 1 to 6; "
                         "it is damaged")
    kinds = kinds.astype(np.int32)
    ids = _control_ids(file)
    for part, token_id in ids.items():
        if not 0 <= token_id < len(tokens):
            raise file.error(f"its {part} has the id {token_id}, and it has {len(tokens)} tokens; it is damaged")
        settings[part] = tokens[token_id]
        kinds[token_id] = CONTROL
    used = [token for token, kind in zip(tokens, kinds, strict=True) if kind != UNUSED]
    if len(set(used)) < len(used):
        raise file.error(f"{len(used) - len(set(used))} of its {len(tokens)} tokens stand in it twice; it is damaged")
    make = _byte_level_json if model == "gpt2" else _sentencepiece_json
    table = make(file, tokens, kinds)
    if "bos_token" in ids and _adds_bos(file, model):
        table["post_processor"] = _bos_processor(settings["bos_token"], ids["bos_token"])
    return Tokenizer.from_json(table, where=f"{file.path}: its tokenizer", **settings)


def _parse(file: GGUFFile) -> tuple[dict[str, Any], dict[int, str]]:
    """The tokenizer.json in a file, and its added tokens by id."""
    try:
        table = json.loads(file.value(WHOLE_JSON, str))
    except (json.JSONDecodeError, RecursionError) as error:
        raise file.error(f"{WHOLE_JSON!r} is not JSON: {error}") from error
    try:
        return table, {int(token["id"]): str(token["content"]) for token in table["added_tokens"]}
    except (KeyError, TypeError, ValueError) as error:
        raise file.error(f"{WHOLE_JSON!r} has no list of added tokens; it is damaged") from error


def _control_ids(file: GGUFFile) -> dict[str, int]:
    keys = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    names = {part: f"tokenizer.ggml.{key}_token_id" for part, key in keys.items()}
    return {part: file.value(name, int) for part, name in names.items() if name in file.metadata}


def _pre_tokenizer(file: GGUFFile) -> PreTokenizer:
    if "tokenizer.ggml.pre" not in file.metadata:
        log.warning("%s does not say how its tokenizer cuts text into words; doing as llama.cpp does, whose ids may "
                    "not be those the model was trained on", file.path)
    name = file.value("tokenizer.ggml.pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise file.error(f"'tokenizer.ggml.pre' = {shown(name)} is not known; it must be one of "
                         f"{', '.join(PRE_TOKENIZERS)}: load the original model folder")
    return PRE_TOKENIZERS[name]


def _adds_bos(file: GGUFFile, model: str) -> bool:
    default = True if model == "llama" else _pre_tokenizer(file).adds_bos
    found: bool = file.value("tokenizer.ggml.add_bos_token", bool, default)
    return found


def _by_kind(tokens: list[str], kinds: np.ndarray) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Ordinary tokens, control tokens and text tokens, each text -> id; unused ones are left out."""
    tables: dict[int, dict[str, int]] = {NORMAL: {}, CONTROL: {}, TEXT: {}}
    for token_id, (token, kind) in enumerate(zip(tokens, kinds.tolist(), strict=True)):
        if kind != UNUSED:
            tables[CONTROL if kind == UNKNOWN else NORMAL if kind == BYTE else kind][token] = token_id
    return tables[NORMAL], tables[CONTROL], tables[TEXT]


def _byte_level_json(file: GGUFFile, tokens: list[str], kinds: np.ndarray) -> dict[str, Any]:
    pre = _pre_tokenizer(file)
    normal, control, text = _by_kind(tokens, kinds)
    merges = [merge.split(" ") for merge in file.value("tokenizer.ggml.merges", list)]
    if wrong := [merge for merge in merges if len(merge) != 2]:
        raise file.error(f"its merge {shown(' '.join(wrong[0]))} is not of two tokens; it is damaged")
    return formats.bpe_json(normal, merges, pattern=PATTERNS[pre.pattern], special_tokens=control, text_tokens=text,
                            is_nfc=pre.is_nfc, ignore_merges=pre.ignore_merges)


def _sentencepiece_json(file: GGUFFile, tokens: list[str], kinds: np.ndarray) -> dict[str, Any]:
    """A SentencePiece BPE in the words of `tokenizers`: spaces as "▁", unknown characters as bytes."""
    normal, control, text = _by_kind(tokens, kinds)
    scores = file.value("tokenizer.ggml.scores", np.ndarray)
    if len(scores) != len(tokens):
        raise file.error(f"its {len(tokens)} tokens have {len(scores)} scores; it is damaged")
    unknown = tokens[int(np.argmax(kinds == UNKNOWN))] if (kinds == UNKNOWN).any() else None
    ways = []
    for token, token_id in normal.items():
        if kinds[token_id] == NORMAL:
            ways += [(-float(scores[token_id]), normal[token[:cut]], normal[token[cut:]], token[:cut], token[cut:])
                     for cut in range(1, len(token)) if token[:cut] in normal and token[cut:] in normal]
    begins_with_space = file.value("tokenizer.ggml.add_space_prefix", bool, True)
    table = formats.bpe_json(normal, [[left, right] for *_, left, right in sorted(ways)], pattern=ONE_CHARACTER,
                             special_tokens=control, text_tokens=text)
    table["model"] |= {"unk_token": unknown, "byte_fallback": True, "fuse_unk": True}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prefix = [{"type": "Prepend", "prepend": "▁"}] if begins_with_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if begins_with_space else []
    return table | {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            *strip,
        ]},
    }


def _bos_processor(bos: str, token_id: int) -> dict[str, Any]:
    """What puts the beginning-of-text token before a text, where transformers is asked for control tokens."""
    first, text, second = {"SpecialToken": {"id": bos, "type_id": 0}}, "Sequence", "SpecialToken"
    pair = [first, {text: {"id": "A", "type_id": 0}}, {second: {"id": bos, "type_id": 1}},
            {text: {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": pair[:2], "pair": pair,
            "special_tokens": {bos: {"id": bos, "ids": [token_id], "tokens": [bos]}}}


def tokenizer_values(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The values that describe a tokenizer, for a model of so many ids.

    Raises:
        ValueError: if the tokenizer has more ids than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, and the model knows {vocab_size}; "
                         "give the tokenizer that it was trained with")
    table = formats.write_json(tokenizer.vocabulary)
    values: dict[str, Any] = {}
    for key, token_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("padding", tokenizer.pad_id)):
        if token_id is not None:
            values[f"tokenizer.ggml.{key}_token_id"] = token_id
    if tokenizer.chat_template is not None:
        values["tokenizer.chat_template"] = tokenizer.chat_template
    pre = _pre_name(tokenizer)
    if pre is None:
        log.warning("llama.cpp cannot express this tokenizer: in its eyes the file has none")
        values["tokenizer.ggml.model"] = "none"
    else:
        vocabulary = tokenizer.vocabulary
        tokens, kinds = [f"[PAD{token_id}]" for token_id in range(vocab_size)], np.full(vocab_size, UNUSED, np.int32)
        for token, token_id in (table["model"]["vocab"] | vocabulary.special_tokens | vocabulary.text_tokens).items():
            tokens[token_id] = token
            kinds[token_id] = (CONTROL if token in vocabulary.special_tokens else
                               TEXT if token in vocabulary.text_tokens else NORMAL)
        values |= {
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge)
                                      for merge in table["model"].get("merges") or []],
            "tokenizer.ggml.add_bos_token": _is_bos_added(table, tokenizer.bos_token),
        }
    return values | {WHOLE_JSON: json.dumps(table, ensure_ascii=False)}


def _pre_name(tokenizer: Tokenizer) -> str | None:
    """What llama.cpp calls the way in which a tokenizer cuts text into words; None if it has no name for it."""
    vocabulary = tokenizer.vocabulary
    if vocabulary.pattern == ONE_CHARACTER and not vocabulary.is_closed:
        return "gpt-2"   # bytes: without merges it is all one where the words end
    return next((name for name, pre in PRE_TOKENIZERS.items() if vocabulary.pattern == PATTERNS[pre.pattern]), None)


def _is_bos_added(table: dict[str, Any], bos: str | None) -> bool:
    processor = table.get("post_processor") or {}
    steps = processor.get("processors", [processor])
    starts = [step["single"][0] for step in steps if step.get("type") == "TemplateProcessing" and step.get("single")]
    return any(start.get("SpecialToken", {}).get("id") == bos for start in starts if bos is not None)
