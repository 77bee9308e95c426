"""OpenAI's `.tiktoken` files: one token a line, in base64, and its rank. Read next: tokenizer.py."""

import base64
import binascii
import hashlib
from pathlib import Path

from llm.tokenizers.patterns import PATTERNS
from llm.tokenizers.vocabulary import END_OF_TEXT, Vocabulary

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
