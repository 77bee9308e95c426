"""An endless supply of stories: a fresh world for each, the same ones for the same seed on every machine.

Read next: `judge.py`.
"""

import random
from collections.abc import Iterator

from llm.data.tinyworld.grammar import Language, Writer
from llm.data.tinyworld.language import LANGUAGES, corner, load
from llm.data.tinyworld.plots import tell
from llm.data.tinyworld.story import Story

PURPOSES = ("stories", "questions", "preferences", "messages")


def stream(seed: int, language: str, purpose: str) -> random.Random:
    """A random stream of its own for each seed, language and purpose; `random.Random` is the same on all platforms.

    Raises:
        ValueError: if the seed is negative (its stream would repeat that of a positive one).
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is negative; choose 0 or more")
    number = LANGUAGES.index(language) * len(PURPOSES) + PURPOSES.index(purpose)
    return random.Random(seed * len(LANGUAGES) * len(PURPOSES) + number)


def languages(name: str) -> tuple[str, ...]:
    """The languages that `name` stands for; "both" are English and Chinese in turn.

    Raises:
        ValueError: if the name is unknown.
    """
    if name == "both":
        return LANGUAGES
    if name not in LANGUAGES:
        raise ValueError(f"language={name!r} is not known; choose from {(*LANGUAGES, 'both')}")
    return (name,)


def write(language: Language, rng: random.Random) -> tuple[Writer, Story]:
    """Write one story; the writer has its text and log-probability, the story its world."""
    writer = Writer(language, rng)
    return writer, tell(writer)


def stories(seed: int, language: str, characters: int, *, is_corner: bool = False) -> Iterator[str]:
    """Stories until they have `characters` characters in all.

    Args:
        seed: 0 or more; two seeds give two independent corpora.
        language: "en", "zh" or "both" (in turn).
        characters: the least total length; the last story is given whole.
        is_corner: only stories of a small corner of the world, with fewer plots, sentences and words.

    Raises:
        ValueError: for an unknown language or a negative seed.

    Example:
        >>> len(list(stories(seed=1, language="both", characters=1000))) > 1
        True
    """
    read = corner if is_corner else load
    sources = [(read(name), stream(seed, name, "stories")) for name in languages(language)]
    written = turn = 0
    while written < characters:
        words, rng = sources[turn % len(sources)]
        text = write(words, rng)[0].text
        written += len(text)
        turn += 1
        yield text
