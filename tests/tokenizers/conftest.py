"""Texts made to trip a tokenizer, from seeds."""

import random
import unicodedata
from collections.abc import Callable

import pytest

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


@pytest.fixture
def random_text() -> Callable[..., str]:
    """random_text(seed, size) -> str: runs from a few alphabets and from all of Unicode.

    Only characters that Unicode had assigned when this Python was made: later ones differ from engine to engine.
    """

    def make(seed: int, size: int = 40) -> str:
        source = random.Random(seed)
        runs = []
        while sum(map(len, runs)) < size:
            if source.random() < 0.2:
                drawn = [chr(source.randrange(0x110000)) for _ in range(4)]
                runs.append("".join(c for c in drawn if unicodedata.category(c) not in ("Cn", "Cs")))
            else:
                runs.append("".join(source.choices(source.choice(ALPHABETS), k=source.randint(1, 6))))
        return "".join(runs)[:size]

    return make
