"""The files in which tokenizers come: Hugging Face's `tokenizer.json` and OpenAI's `.tiktoken`.

A byte-level BPE is a table of tokens with their ranks, a pattern and some control tokens: a `Vocabulary`. A
`tokenizer.json` can say far more (normalizers, fallbacks, dropout, flags), so reading one is passing a gate:
`read_json` returns a Vocabulary that gives the very same ids, or raises `NotExact` with the reason. What passes:

- model: BPE without byte fallback, unknown token, dropout, prefix or suffix; missing bytes are dropped, as there;
- merges: none makes a lower id than the one before it, and they come to the same as ranks (see `_check_token`); a token
  that no merge makes is decoded but never encoded;
- pre-tokenizer: one that patterns.py knows; normalizer: none or NFC; added tokens without flags.

GPT-2, Llama 3, Qwen 2 and 3, SmolLM2 and gpt-oss pass; SentencePiece models (Llama 2, Gemma) do not. Left out: running
those (foreign.py), chat templates (chat.py). Read next: tokenizer.py.
"""

import base64
import binascii
import hashlib
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.tokenizers.bpe import CHARACTER_OF_BYTE, Merge, spell
from llm.tokenizers.patterns import PATTERNS

END_OF_TEXT = "<|endoftext|>"
ONE_CHARACTER = r"(?s:.)"   # every character is a word
WHOLE_TEXT = r"(?s:.+)"     # the text is one word: `pattern=""` in bpe.train

# The patterns as tokenizer.json files in the world spell them; `gpt2` and `digits` are built from named parts instead.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUBLISHED_CL100K = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PUBLISHED: dict[str, str] = {
    "cl100k": _PUBLISHED_CL100K,
    "qwen2": _PUBLISHED_CL100K.replace("{1,3}", ""),
    "o200k": PATTERNS["o200k"],
}

# sha256 of the published .tiktoken files -> pattern and control tokens, which the files themselves do not hold.
_KNOWN_FILES: dict[str, tuple[str, dict[str, int]]] = {
    "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930": ("gpt2", {END_OF_TEXT: 50256}),   # r50k_base
    "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069": ("gpt2", {END_OF_TEXT: 50256}),   # p50k_base
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": (
        "cl100k",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": (
        "o200k",
        {END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
    ),
}

# Characters that stand for no byte are sent where Latin-1 cannot follow.
_LATIN_1 = dict.fromkeys(range(256), 0xFFFF) | {ord(text): byte for byte, text in CHARACTER_OF_BYTE.items()}


class NotExact(ValueError):
    """A tokenizer that tiktoken cannot reproduce id by id; the message says why."""


@dataclass(frozen=True)
class Vocabulary:
    """Everything that decides which ids a text becomes.

    Args:
        ranks: the bytes of each ordinary token -> its id; of two merges the one with the lower id comes first.
        pattern: the regular expression that finds the words; tokens never cross them.
        special_tokens: control tokens, text -> id.
        is_closed: whole characters only: a text with any other character cannot be written.
        is_nfc: text is brought to Unicode's composed form first.
        unreachable: tokens that have an id and bytes but never come out of a text.
        source: the tokenizer.json this was read from, to be written back as it was.

    Raises:
        ValueError: if two tokens have the same id, or an id is no whole number.
    """

    ranks: dict[bytes, int]
    pattern: str
    special_tokens: dict[str, int] = field(default_factory=dict)
    is_closed: bool = False
    is_nfc: bool = False
    unreachable: dict[bytes, int] = field(default_factory=dict)
    source: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        ids = [*self.ranks.values(), *self.unreachable.values(), *self.special_tokens.values()]
        if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
            raise ValueError("ids must be whole numbers from 0 on")
        if len(set(ids)) < len(ids):   # tiktoken would panic, which is no Exception
            raise ValueError(f"{len(ids)} tokens with {len(set(ids))} different ids; each token needs an id of its own")


def unspell(text: str) -> bytes:
    """The bytes behind GPT-2's visible characters; the inverse of `bpe.spell`.

    Raises:
        ValueError: if a character of the text stands for no byte.
    """
    try:
        return text.translate(_LATIN_1).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r}: {text[error.start]!r} is not in the byte alphabet") from None


def splits(ranks: dict[bytes, int], ways: dict[bytes, list[Merge]] | None = None) -> dict[bytes, Merge]:
    """The two parts that each token was merged from, found again from the ranks alone.

    A token "abcd" was merged from "ab" + "cd" if BPE, given just these bytes, arrives at those two. It does unless some
    earlier merge reaches across the border: if "bc" is a token too, and comes before "ab" and "cd", "ab" is never made.
    What can meet at the border are the tokens along the right edge of "ab" (itself, its right part, that one's right
    part, ...) and along the left edge of "cd", each from its own making until it is merged away.

    Args:
        ranks: token -> id, lower ids merged first.
        ways: the parts to look at, for each token; None looks at all.

    Returns:
        Token -> (left, right), in the order of the ids, for every token that BPE makes of its own bytes. A token
        that is missing here has none: BPE ends elsewhere before it gets there.

    Example:
        >>> splits({b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5})[b"abc"]
        (b'a', b'bc')
    """
    found: dict[bytes, Merge] = {}
    made = {token for token in ranks if len(token) == 1}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        for left, right in _halves(token, made) if ways is None else ways.get(token, []):
            if left in made and right in made and not _is_crossed(left, right, rank, ranks, found):
                found[token] = (left, right)
                made.add(token)
                break
    return found


def _halves(token: bytes, tokens: Container[bytes]) -> list[Merge]:
    """Every way to cut a token into two others."""
    cuts = ((token[:border], token[border:]) for border in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in tokens and right in tokens]


def _is_crossed(left: bytes, right: bytes, rank: int, ranks: dict[bytes, int], found: dict[bytes, Merge]) -> bool:
    """Whether two tokens meet at the border of left and right, and are one token, before left and right are made."""
    before, before_ends = left, rank
    while True:
        after, after_ends = right, rank
        while True:
            if (crossing := ranks.get(before + after)) is not None:
                made = [ranks[token] for token in (before, after) if token in found]
                meet = max(crossing, *made) if made else crossing
                # Of equal pairs the leftmost is merged first: hence < on the left side and <= on the right.
                if meet < before_ends and meet <= after_ends:
                    return True
            if after not in found:
                break
            after, after_ends = found[after][0], ranks[after]
        if before not in found:
            return False
        before, before_ends = found[before][1], ranks[before]


# --- tokenizer.json -------------------------------------------------------------------------------------------------


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
    special_tokens = {token["content"]: token["id"] for token in added}
    is_closed = table.get("pre_tokenizer") is None and (table.get("decoder") or {}).get("type") == "Fuse"
    _check_model(model)
    for token in added:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise NotExact(f"the added token {token['content']!r} takes the space around it, or whole words only")
    if is_closed:
        if model.get("merges") or table.get("normalizer"):
            raise NotExact("it merges characters rather than bytes")
        ranks = {text.encode(): token_id for text, token_id in model["vocab"].items() if text not in special_tokens}
        return Vocabulary(ranks, ONE_CHARACTER, special_tokens, is_closed=True, source=table)
    if (table.get("decoder") or {}).get("type") != "ByteLevel":
        raise NotExact("its decoder is not ByteLevel")
    ranks, unreachable = _check_merges(model, special_tokens)
    return Vocabulary(
        ranks,
        _read_pattern(table.get("pre_tokenizer"), has_merges=bool(model.get("merges"))),
        special_tokens,
        is_nfc=_read_normalizer(table.get("normalizer")),
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
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    merges: list[list[str]] = []
    has_lost = False
    if vocabulary.is_closed:
        tokens = {token.decode(): token_id for token, token_id in vocabulary.ranks.items()}
    else:
        tokens = {spell(token): token_id for token, token_id in (vocabulary.ranks | vocabulary.unreachable).items()}
        merges, has_lost = _write_merges(vocabulary.ranks)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token_id, "content": text, **flags, "special": True}
            for text, token_id in vocabulary.special_tokens.items()
        ],
        "normalizer": {"type": "NFC"} if vocabulary.is_nfc else None,
        "pre_tokenizer": None if vocabulary.is_closed else _write_pattern(vocabulary.pattern, byte_level),
        "post_processor": None,
        "decoder": {"type": "Fuse"} if vocabulary.is_closed else byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": has_lost,
            # Control tokens too: `tokenizers` numbers those it does not find here as it likes.
            "vocab": tokens | vocabulary.special_tokens,
            "merges": merges,
        },
    }


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise NotExact(f"its model is {model.get('type')}, not BPE")
    for setting in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise NotExact(f"its model has {setting}={model[setting]!r}")


def _check_merges(model: dict[str, Any], special_tokens: dict[str, int]) -> tuple[dict[bytes, int], dict[bytes, int]]:
    """The ranks, and the tokens that no text becomes."""
    vocab: dict[str, int] = model["vocab"]
    ranks, unreachable, bytes_of = {}, {}, {}
    for text, token_id in vocab.items():
        try:
            bytes_of[text] = unspell(text)
        except ValueError:   # a control token, or a stray one, which the decoder of `tokenizers` writes as it stands
            bytes_of[text] = text.encode()
        if text not in special_tokens:
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
            _check_token(token, ranks, listed, is_whole_word_taken=bool(model.get("ignore_merges")))
    return ranks, unreachable


def _check_token(
    token: bytes, ranks: dict[bytes, int], listed: dict[Merge, int], *, is_whole_word_taken: bool
) -> None:
    """Make sure that the merges of a token that BPE does not make of its own bytes still come to the same as its rank.

    tiktoken glues any two neighbours that together are a token, of equal ones the leftmost first, and takes a whole
    word that is a token as it is. `tokenizers` glues the pairs listed, in their order. For a token that BPE makes of
    its own bytes this is all one: while its two ends are borders, what lies between them changes as if it stood alone,
    and ends in the two parts found by `splits`; so it is enough that these are listed. For other tokens (Llama 3 has
    695) every way to cut them must be listed, and where two ways can overlap in a text, as in a|ba|ab, the left one
    must come first. They can if BPE, given these bytes, ever has just these three side by side.
    """
    halves = _halves(token, ranks)
    if not is_whole_word_taken or any(half not in listed for half in halves):
        raise NotExact(f"its merges do not make the token {token!r} of its bytes alone")
    for left, middle in halves:
        for other, right in halves:
            is_late = middle == other and listed[left, middle] > listed[middle, right]
            if is_late and _glue(left + middle + right, ranks, ranks[token]) == [left, middle, right]:
                raise NotExact(f"its merges make {token!r} of {middle!r} + {right!r} before {left!r} + {middle!r}")


def _glue(word: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """BPE in its plainest form: the tokens of a word after all merges of a lower rank than `limit`."""
    tokens = [word[place : place + 1] for place in range(len(word))]
    while len(tokens) > 1:
        rank, place = min((ranks.get(tokens[i] + tokens[i + 1], limit), i) for i in range(len(tokens) - 1))
        if rank >= limit:
            break
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
    return tokens


def _write_merges(ranks: dict[bytes, int]) -> tuple[list[list[str]], bool]:
    """The merges in order, and whether some token is not what BPE makes of its bytes."""
    parts = splits(ranks)
    merges: dict[Merge, int] = {}
    has_lost = False
    for token in sorted(ranks, key=ranks.__getitem__):
        is_lost = len(token) > 1 and token not in parts
        for half in _halves(token, ranks) if is_lost else [parts[token]] if token in parts else []:
            merges[half] = len(merges)
        if is_lost:
            _check_token(token, ranks, merges, is_whole_word_taken=True)
            has_lost = True
    return [[spell(left), spell(right)] for left, right in merges], has_lost


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


# --- .tiktoken ------------------------------------------------------------------------------------------------------


def read_tiktoken(
    path: Path,
    *,
    pattern: str | None = None,
    special_tokens: dict[str, int] | None = None,
    sha256: str | None = None,
) -> Vocabulary:
    """The vocabulary of a `.tiktoken` file: one token a line, in base64, and its rank.

    Args:
        path: the file.
        pattern: a name of `patterns.PATTERNS`; may be left out for OpenAI's own files, which are known by their hash.
        special_tokens: control tokens, text -> id; likewise.
        sha256: what the file's hash must be; None accepts any.

    Raises:
        ValueError: if the hash is another, a line is damaged, or the pattern is needed and missing.
    """
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise ValueError(f"{path} has sha256 {digest}, expected {sha256}; it is damaged or another file: fetch it anew")
    known_pattern, known_tokens = _KNOWN_FILES.get(digest, (None, {}))
    pattern = pattern or known_pattern
    if pattern not in PATTERNS:
        raise ValueError(
            f"{path} (sha256 {digest}) is none of OpenAI's files, so pattern={pattern!r} must name its pattern: "
            f"one of {', '.join(PATTERNS)}"
        )
    ranks = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path}, line {number}: expected `<base64> <rank>`, found {line[:60]!r}") from error
    return Vocabulary(ranks, PATTERNS[pattern], known_tokens if special_tokens is None else special_tokens)
