"""Hugging Face's `tokenizer.json`, the file in which most tokenizers come.

A byte-level BPE is a table of tokens with their ranks, a pattern and some control tokens: a `Vocabulary`. A
`tokenizer.json` can say far more (normalizers, fallbacks, dropout, flags), so reading one is passing a gate:
`read_json` returns a Vocabulary that gives the very same ids, or raises `NotExact` with the reason. What passes:

- model: BPE without byte fallback, unknown token, dropout, prefix or suffix; missing bytes are dropped, as there;
- merges: none makes a lower id than the one before it, and they come to the same as ranks (see `check_token`); a token
  that no merge makes is decoded but never encoded;
- pre-tokenizer: one that patterns.py knows; normalizer: none or NFC;
- added tokens: control tokens (`special`) and text tokens, which take no space around them.

GPT-2, Llama 3, Qwen 2 and 3, SmolLM2, gpt-oss and Mistral's Tekken pass; SentencePiece models (Llama 2, Gemma) do not.
Left out: running those (foreign.py), chat templates (chat.py). Read next: tokenizer.py.
"""

import itertools
from typing import Any

from llm.tokenizers.bpe import Merge, spell
from llm.tokenizers.merges import check_token, splits, unspell, write_merges
from llm.tokenizers.patterns import PATTERNS
from llm.tokenizers.vocabulary import ONE_CHARACTER, WHOLE_TEXT, NotExact, Vocabulary

# The patterns as tokenizer.json files in the world spell them; `gpt2` and `digits` are built from named parts instead.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUBLISHED_CL100K = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PUBLISHED: dict[str, str] = {
    "cl100k": _PUBLISHED_CL100K,
    "qwen2": _PUBLISHED_CL100K.replace("{1,3}", ""),
    **{name: PATTERNS[name] for name in ("o200k", "tekken", "llamacpp")},
}


def read_json(table: dict[str, Any]) -> Vocabulary:
    """The vocabulary of a `tokenizer.json`, if it can be reproduced exactly.

    Args:
        table: the parsed file.

    Raises:
        NotExact: with the reason, if it cannot.
        ValueError: if the table is no tokenizer at all.
    """
    model = table.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise ValueError("it has no model with a vocabulary")
    if not model["vocab"]:
        raise ValueError("0 tokens: its vocabulary is empty")
    added = table.get("added_tokens") or []
    special_tokens = {token["content"]: token["id"] for token in added if token.get("special")}
    text_tokens = {token["content"]: token["id"] for token in added if not token.get("special")}
    is_added = special_tokens | text_tokens
    is_closed = table.get("pre_tokenizer") is None and (table.get("decoder") or {}).get("type") == "Fuse"
    _check_model(model)
    is_nfc = _read_normalizer(table.get("normalizer"))
    _check_added(added, is_nfc=is_nfc)
    if is_closed:
        if model.get("merges") or is_nfc:
            raise NotExact("it merges characters rather than bytes")
        ranks = {text.encode(): token_id for text, token_id in model["vocab"].items() if text not in is_added}
        return Vocabulary(ranks, ONE_CHARACTER, special_tokens, text_tokens, is_closed=True, source=table)
    if (table.get("decoder") or {}).get("type") != "ByteLevel":
        raise NotExact("its decoder is not ByteLevel")
    ranks, unreachable = _check_merges(model, is_added)
    return Vocabulary(
        ranks,
        _read_pattern(table.get("pre_tokenizer"), has_merges=bool(model.get("merges"))),
        special_tokens,
        text_tokens,
        is_nfc=is_nfc,
        unreachable=unreachable,
        source=table,
    )


def write_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizer.json` of a vocabulary: the one it was read from, or else a new one.

    Raises:
        NotExact: if no list of merges gives the same ids.
    """
    if vocabulary.source is not None:
        return vocabulary.source
    merges: list[list[str]] = []
    has_lost = False
    if vocabulary.is_closed:
        tokens = {token.decode(): token_id for token, token_id in vocabulary.ranks.items()}
    else:
        tokens = {spell(token): token_id for token, token_id in (vocabulary.ranks | vocabulary.unreachable).items()}
        merges, has_lost = write_merges(vocabulary.ranks)
    return bpe_json(tokens, merges, pattern=vocabulary.pattern, special_tokens=vocabulary.special_tokens,
                    text_tokens=vocabulary.text_tokens, is_closed=vocabulary.is_closed, is_nfc=vocabulary.is_nfc,
                    ignore_merges=has_lost)


def bpe_json(
    tokens: dict[str, int],
    merges: list[list[str]],
    *,
    pattern: str,
    special_tokens: dict[str, int],
    text_tokens: dict[str, int],
    is_closed: bool = False,
    is_nfc: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """A `tokenizer.json` from its parts.

    Args:
        tokens: each ordinary token, in GPT-2's visible characters -> its id.
        merges: pairs of them, in order.
        pattern: an expression of `patterns.PATTERNS`, or one of those in `vocabulary.py`.
        special_tokens, text_tokens, is_closed, is_nfc: as in `Vocabulary`.
        ignore_merges: whether a word that is a token is taken whole.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": text, **flags, "special": is_special}
            for table, is_special in ((special_tokens, True), (text_tokens, False))
            for text, token_id in table.items()
        ],
        "normalizer": {"type": "NFC"} if is_nfc else None,
        "pre_tokenizer": None if is_closed else _write_pattern(pattern, byte_level),
        "post_processor": None,
        "decoder": {"type": "Fuse"} if is_closed else byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            # Added tokens too: `tokenizers` numbers those it does not find here as it likes.
            "vocab": tokens | special_tokens | text_tokens,
            "merges": merges,
        },
    }


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise NotExact(f"its model is {model.get('type')}, not BPE")
    for setting in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise NotExact(f"its model has {setting}={model[setting]!r}")


def _check_added(added: list[dict[str, Any]], *, is_nfc: bool) -> None:
    """Make sure that it is enough to look for the added tokens in the text as it came, the longest first."""
    for token in added:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise NotExact(f"the added token {token['content']!r} takes the space around it, or whole words only")
        if is_nfc and token.get("normalized"):
            raise NotExact(f"the added token {token['content']!r} is looked for in normalized text")
    # `tokenizers` looks for those without the flag first, then between them for the others; and a control token that is
    # not wanted hides what it overlaps
    early, late = (_contents(added, "normalized", value) for value in (False, True))
    text, control = (_contents(added, "special", value) for value in (False, True))
    for one, other in [*itertools.product(early, late), *itertools.product(text, control)]:
        if one in other or other in one or _overlap(one, other) or _overlap(other, one):
            raise NotExact(f"the added tokens {one!r} and {other!r} can overlap in a text, and are of two kinds")


def _contents(added: list[dict[str, Any]], flag: str, value: bool) -> list[str]:
    return [token["content"] for token in added if bool(token.get(flag)) == value]


def _overlap(left: str, right: str) -> bool:
    """Whether the end of one text is the beginning of the other."""
    return any(left.endswith(right[:size]) for size in range(1, min(len(left), len(right))))


def _check_merges(model: dict[str, Any], added: dict[str, int]) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """The ranks, and the tokens that no text becomes."""
    vocab: dict[str, int] = model["vocab"]
    ranks, unreachable, bytes_of = {}, {}, {}
    for text, token_id in vocab.items():
        try:
            bytes_of[text] = unspell(text)
        except ValueError:   # a control token, or a stray one, which the decoder of `tokenizers` writes as it stands
            bytes_of[text] = text.encode()
        if text not in added:
            unreachable[bytes_of[text]] = token_id
    listed: dict[Merge, int] = {}
    ways: dict[bytes, list[Merge]] = {}
    made_last = -1
    for merge in model.get("merges") or []:
        left, right = merge.split(" ") if isinstance(merge, str) else merge   # a string until tokenizers 0.20
        made = vocab.get(left + right)
        if made is None or left not in vocab or right not in vocab:
            raise ValueError(f"its merge {merge!r} uses tokens that its vocabulary does not have")
        if made < made_last:
            raise NotExact(f"its merge {merge!r} makes id {made}, after one that makes {made_last}")
        made_last = made
        half = (bytes_of[left], bytes_of[right])
        listed[half] = len(listed)
        ways.setdefault(half[0] + half[1], []).append(half)
    for token in [*ways, *(bytes([byte]) for byte in range(256))]:
        if token in unreachable:
            ranks[token] = unreachable.pop(token)
    if unreachable and model.get("ignore_merges"):
        raise NotExact(f"its token {next(iter(unreachable))!r} is made by no merge, but taken where it is a whole word")
    parts = splits(ranks, ways)
    for token in ranks:
        if len(token) > 1 and token not in parts:
            check_token(token, ranks, listed, is_whole_word_taken=bool(model.get("ignore_merges")))
    return ranks, unreachable


def _read_normalizer(normalizer: dict[str, Any] | None) -> bool:
    """Whether it is NFC."""
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer or None]
    for step in filter(None, steps):
        if step["type"] != "NFC":
            raise NotExact(f"its normalizer is {step['type']}, not NFC")
    return any(steps)


def _read_pattern(pre_tokenizer: dict[str, Any] | None, *, has_merges: bool) -> str:
    steps = [pre_tokenizer or {"type": "none"}]
    if steps[0]["type"] == "Sequence":
        steps = steps[0]["pretokenizers"]
    *first, last = steps
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        raise NotExact(f"its pre-tokenizer ends in {last}, not in ByteLevel without a prefix space")
    uses_regex = last.get("use_regex", True)
    if not first:
        return PATTERNS["gpt2"] if uses_regex else WHOLE_TEXT if has_merges else ONE_CHARACTER
    step = first[0]
    if len(first) == 1 and uses_regex and step["type"] == "Digits" and step["individual_digits"]:
        return PATTERNS["digits"]
    if len(first) == 1 and not uses_regex and step["type"] == "Split":
        keeps_words = (step["behavior"], step["invert"]) in [("Isolated", False), ("Removed", True)]
        for name, pattern in PUBLISHED.items():
            if keeps_words and step["pattern"].get("Regex") in (pattern, PATTERNS[name]):
                return PATTERNS[name]
    raise NotExact(f"its pre-tokenizer is none that patterns.py knows: {first}")


def _write_pattern(pattern: str, byte_level: dict[str, Any]) -> dict[str, Any]:
    if pattern in (ONE_CHARACTER, WHOLE_TEXT):
        return byte_level
    if pattern == PATTERNS["gpt2"]:
        return byte_level | {"use_regex": True}
    if pattern == PATTERNS["digits"]:
        return {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level | {"use_regex": True}],
        }
    name = next(name for name in PUBLISHED if PATTERNS[name] == pattern)
    split = {"type": "Split", "pattern": {"Regex": PUBLISHED[name]}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}
