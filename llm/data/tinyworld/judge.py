"""Reading a text back: its exact probability, whether it is well formed, and whether it is true of its world.

A text is consistent if the generator can write it: then every word of it was permitted by the world at that
moment. It is grammatical if it is made of sentences of the language from an opening to an ending, whatever they say:
in each slot any word of the right kind, in any order. So a story with two names swapped is grammatical and
inconsistent, a story with a misspelt word is neither.

Left out: taste. Read next: `questions.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llm.data.tinyworld.grammar import Language, Stuck, Template, category, readings
from llm.data.tinyworld.language import corner, load
from llm.data.tinyworld.plots import tell
from llm.data.tinyworld.story import ROLE_POOLS, Story

Words = tuple[tuple[str, str, str], ...]   # (role, form, what the text says) of each slot


@dataclass(frozen=True)
class Verdict:
    """What the judge finds.

    Attributes:
        is_grammatical: the text consists of sentences of the language, from an opening to an ending.
        is_consistent: each of them was possible at its place in the story; implies is_grammatical.
        reason: in words, what is wrong and where; empty if nothing is.
    """

    is_grammatical: bool
    is_consistent: bool
    reason: str


def language_of(text: str, *, is_corner: bool = False) -> Language:
    """Chinese if any Chinese character stands in the text, else English."""
    return (corner if is_corner else load)("zh" if any("一" <= character <= "鿿" for character in text) else "en")


def log_prob(text: str, *, is_corner: bool = False) -> float:
    """Natural logarithm of the exact probability that the generator writes this text, given its language.

    Args:
        text: any text.
        is_corner: under the generator of the corner, see `stories`.

    Returns:
        A negative number; `-inf` for a text that the generator cannot write.

    Example:
        >>> log_prob("Once upon a time.")
        -inf
    """
    language = language_of(text, is_corner=is_corner)
    complete, _ = readings(language, text, tell)
    scores = [reader.log_prob for reader, _ in complete]
    if not scores:
        return -math.inf
    # No story is known that can be read in two ways; if there is one, both count.
    best = max(scores)
    return best + math.log(math.fsum(math.exp(score - best) for score in scores))


def read(text: str) -> Story | None:
    """The story as the generator told it, with its world; None for a text that it cannot write."""
    complete, _ = readings(language_of(text), text, tell)
    if not complete:
        return None
    story = complete[0][1]
    assert isinstance(story, Story)
    return story


class Surface:
    """A text against the sentences of its language, with no regard to the story."""

    def __init__(self, language: Language, text: str) -> None:
        self.language = language
        self.text = text
        self._ends: dict[tuple[int, str, str], tuple[int, ...]] = {}

    def _slot(self, position: int, role: str, form: str) -> tuple[int, ...]:
        """Where a word of the role's kind that starts at `position` may end."""
        pool = ROLE_POOLS.get(category(role), category(role))
        key = position, pool, form
        if key not in self._ends:
            entries = self.language.pools[pool].starts(form, self.text, position)
            self._ends[key] = tuple(dict.fromkeys(position + len(entry.forms[form]) for entry in entries))
        return self._ends[key]

    def matches(self, template: Template, position: int, slot: int = 0) -> Iterator[tuple[int, Words]]:
        """The ways to read the template at `position`: where it ends, and what stands in its slots."""
        if slot == len(template.slots):
            if self.text.startswith(template.tail, position):
                yield position + len(template.tail), ()
            return
        literal, role, form = template.slots[slot]
        if not self.text.startswith(literal, position):
            return
        start = position + len(literal)
        for end in self._slot(start, role, form):
            for final, words in self.matches(template, end, slot + 1):
                yield final, ((role, form, self.text[start:end]), *words)

    def is_grammatical(self) -> bool:
        beats = self.language.beats
        begun = {end for template in beats["open"] for end, _ in self.matches(template, 0)}
        waiting, seen = list(begun), set(begun)
        while waiting:
            position = waiting.pop()
            if not self.text.startswith(self.language.joint, position):
                continue
            start = position + len(self.language.joint)
            for template in (template for templates in beats.values() for template in templates):
                for end, _ in self.matches(template, start):
                    if end == len(self.text) and template.beat == "end":
                        return True
                    if end not in seen:
                        seen.add(end)
                        waiting.append(end)
        return False

    def complain(self, stuck: Stuck) -> str:
        """Why the story cannot go on as the text does."""
        start = stuck.position
        place = f"at character {start} (\"{self.text[start : start + 40]}\")"
        if not stuck.expected:
            return f"the story goes on after its end {place}"
        if start >= len(self.text):
            return "the story stops before its end"
        for template in stuck.expected:
            for _, words in self.matches(template, start):
                for role, form, word in words:
                    entry = stuck.roles.get(role)
                    if entry is not None and entry.forms[form] != word:
                        return f"{place}: {word!r} stands where only {entry.forms[form]!r} is true ({role})"
                said = ", ".join(word for _, _, word in words)
                return f"{place}: a sentence of its kind, but its words ({said}) do not fit together or were ruled out"
        for templates in self.language.beats.values():
            for template in templates:
                if any(self.matches(template, start)):
                    return f"{place}: a sentence about {template.beat!r} does not follow here; {self._hope(stuck)}"
        return f"{place}: no sentence of the language stands here; {self._hope(stuck)}"

    @staticmethod
    def _hope(stuck: Stuck) -> str:
        beats = ", ".join(dict.fromkeys(repr(template.beat) for template in stuck.expected[:12]))
        return f"the story was to go on with {beats}"


def judge(text: str) -> Verdict:
    """Whether a text is well formed, and whether it is true of its own world.

    Example:
        >>> judge("Once upon a time.").is_grammatical
        False
    """
    language = language_of(text)
    complete, stuck = readings(language, text, tell)
    if complete:
        return Verdict(True, True, "")
    assert stuck is not None
    surface = Surface(language, text)
    return Verdict(surface.is_grammatical(), False, surface.complain(stuck))
