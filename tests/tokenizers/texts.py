"""Texts made to trip a tokenizer, from seeds, and the comparison with AutoTokenizer."""

import random
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llm.tokenizers.tokenizer import Tokenizer

MANY = 40_000   # strings of the slow comparisons
ALPHABETS = [
    "ab",                                              # ties and overlapping pairs
    " \t\n\r\u00a0\u3000",                             # space of every kind
    "aZé'ſß sStTlLdDmM",                               # contractions in both cases
    "012345 ٣Ⅷ½",                                      # numbers that are not only ASCII
    "的一是了我不人在他有，。！？：“”、",
    ".,;:!?/-_()[]{}<|>'\"",
    "😀👩‍👩‍👧🇨🇳👍🏽❤️",                                # joiners, flags, skin tones, variation selectors
    "ｅ\u0301e\u0308ने한글שלום\u200d\u200b",            # marks and scripts
    "\0\x01\x7f\x85\x1c",
]
CODE = ["def f(x):\n", "    return", "\t\t", "x_1 += 0x1F", "camelCaseName", "#include <a.h>", "\r\n\r\n", "  ",
        "// 100%", "$^~=+<>`|", "1234567", "'ll", "ABC's"]


def random_text(seed: int, size: int = 40, pieces: Iterable[str] = ()) -> str:
    """Runs from a few alphabets, from all of Unicode, and of code; and of the pieces given, such as control tokens.

    Only characters that Unicode had assigned when this Python was made: later ones differ from engine to engine.
    """
    source = random.Random(seed)
    pieces = [*pieces]
    runs: list[str] = []
    while sum(map(len, runs)) < size:
        if pieces and source.random() < 0.15:
            runs.append(source.choice(pieces)[: source.choice([99, 99, 99, 4, -1])])   # some are cut short
        elif source.random() < 0.2:
            drawn = [chr(source.randrange(0x110000)) for _ in range(4)]
            runs.append("".join(c for c in drawn if unicodedata.category(c) not in ("Cn", "Cs")))
        elif pieces and source.random() < 0.2:
            runs.append(source.choice(CODE))
        else:
            runs.append("".join(source.choices(source.choice(ALPHABETS), k=source.randint(1, 6))))
    return "".join(runs)[:size]


def check_ids(folder: Path, ours: Tokenizer, count: int, *, load: Callable[..., Any] | None = None) -> None:
    """Hold the ids of a folder's tokenizer against AutoTokenizer's, with and without control tokens in the text."""
    load = load or pytest.importorskip("transformers").AutoTokenizer.from_pretrained
    plain, split = load(folder), load(folder, split_special_tokens=True)
    added = [*ours.special_tokens, *ours.vocabulary.text_tokens]
    for start in range(0, count, 1000):
        texts = [random_text(seed, 60, added) for seed in range(start, min(start + 1000, count))]
        for text, ids in zip(texts, split(texts, add_special_tokens=False)["input_ids"], strict=True):
            assert ours.encode(text) == ids, repr(text)
        for text, ids in zip(texts, plain(texts, add_special_tokens=False)["input_ids"], strict=True):
            assert ours.encode(text, allowed_special="all") == ids, repr(text)
            assert ours.decode(ids) == plain.decode(ids)
    assert (plain.bos_token_id, plain.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert plain.pad_token_id in (None, ours.pad_id)   # where theirs has none, ours is the end of the text
