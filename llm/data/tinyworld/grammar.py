"""The machine that writes a text by choices, and reads the choices back out of a text.

A story is told by a program that calls `say(beat, ...)` again and again. Each call picks one template of the beat and
one word for each open slot of the template, and nothing else in a program is left to chance. So a text is written by
a `Writer`, which draws the choices, and read by a `Reader`, which looks for the choices that would have written exactly
this text. Both run the same program: what the one can write the other can read, and the probability of a text is
the sum over its readings of the product of the choices' probabilities.

Left out: what a story is about (`plots.py`), which words there are (`lexicon.toml`, `en.toml`, `zh.toml`).
Read next: `world.py`, then `story.py`.
"""

import bisect
import itertools
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?\}")


@dataclass(frozen=True, eq=False)
class Entry:
    """One word of the lexicon, or one phrase that is used like a word.

    Attributes:
        key: the name of the entry, the same in all languages where it stands for the same thing.
        forms: what is written for it, by the name of the form; "" is the plain form.
    """

    key: str
    forms: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Entry({self.key!r})"


class Pool:
    """Entries with probabilities, from which one is drawn or recognised at a place in a text.

    Args:
        entries: in the order of their frequency, the most frequent first.
        weights: their relative frequencies; by default Zipf-like, 1 / (rank + 16), so that a small model meets the
            first two dozen words often and still all of them sometimes.
    """

    def __init__(self, entries: Iterable[Entry], weights: Sequence[float] | None = None) -> None:
        self.entries = tuple(entries)
        if not self.entries:
            raise ValueError("a pool needs at least one entry")
        raw = [1 / (rank + 16) for rank in range(len(self.entries))] if weights is None else weights
        total = math.fsum(raw)
        self.weights = {entry: weight / total for entry, weight in zip(self.entries, raw, strict=True)}
        self.cumulative = list(itertools.accumulate(self.weights.values()))
        self.cumulative[-1] = 1.0   # a sum of rounded shares may end below 1, and a draw may land above it
        self._by_surface: dict[str, tuple[list[int], dict[str, list[Entry]]]] = {}

    def draw(self, rng: random.Random) -> Entry:
        return self.entries[bisect.bisect_right(self.cumulative, rng.random())]

    def log_weight(self, entry: Entry) -> float:
        return math.log(self.weights[entry])

    def without(self, *excluded: Entry | None) -> "Pool | Rest":
        """The same pool with some entries ruled out and the rest scaled up; foreign entries are ignored."""
        inside = tuple(entry for entry in dict.fromkeys(excluded) if entry in self.weights)
        return Rest(self, inside) if inside else self

    def starts(self, form: str, text: str, position: int) -> Iterator[Entry]:
        """The entries whose `form` stands in `text` at `position`."""
        if form not in self._by_surface:
            surfaces: dict[str, list[Entry]] = {}
            for entry in self.entries:
                surfaces.setdefault(entry.forms[form], []).append(entry)
            self._by_surface[form] = sorted({len(surface) for surface in surfaces}), surfaces
        lengths, surfaces = self._by_surface[form]
        for length in lengths:
            yield from surfaces.get(text[position : position + length], ())


class Rest:
    """What `Pool.without` returns: a pool in which some entries have probability zero."""

    def __init__(self, pool: Pool, excluded: tuple[Entry, ...]) -> None:
        self.pool = pool
        self.excluded = excluded
        if len(excluded) >= len(pool.entries):
            raise ValueError(f"nothing is left of a pool of {len(pool.entries)} entries without {excluded}")

    def draw(self, rng: random.Random) -> Entry:
        while (entry := self.pool.draw(rng)) in self.excluded:
            pass
        return entry

    def log_weight(self, entry: Entry) -> float:
        kept = 1 - math.fsum(self.pool.weights[other] for other in self.excluded)
        return math.log(self.pool.weights[entry] / kept)

    def without(self, *excluded: Entry | None) -> "Pool | Rest":
        return self.pool.without(*self.excluded, *excluded)

    def starts(self, form: str, text: str, position: int) -> Iterator[Entry]:
        return (entry for entry in self.pool.starts(form, text, position) if entry not in self.excluded)


AnyPool = Pool | Rest


@dataclass(frozen=True, eq=False)
class Template:
    """A sentence or two with slots: `"{hero} found {thing.a}."` has the slots (hero, "") and (thing, "a").

    Attributes:
        beat: the name of the beat it belongs to.
        slots: (text before the slot, role, form), in the order of the text.
        tail: the text after the last slot.
    """

    beat: str
    source: str
    slots: tuple[tuple[str, str, str], ...]
    tail: str

    @classmethod
    def parse(cls, beat: str, source: str) -> "Template":
        pieces = SLOT.split(source)
        slots = tuple((pieces[i], pieces[i + 1], pieces[i + 2] or "") for i in range(0, len(pieces) - 1, 3))
        return cls(beat, source, slots, pieces[-1])


def category(role: str) -> str:
    """The pool a role draws from by default: `spot2` is another spot."""
    return role.rstrip("0123456789")


@dataclass
class Language:
    """Words and sentences of one language.

    Attributes:
        name: "en" or "zh".
        joint: what stands between two sentences of a paragraph.
        pools: category -> entries.
        beats: beat -> its templates, equally probable.
    """

    name: str
    joint: str
    pools: dict[str, Pool]
    beats: dict[str, list[Template]]
    _options: dict[tuple[str, ...], tuple[list[Template], float]] = field(default_factory=dict, repr=False)

    def options(self, beats: tuple[str, ...]) -> tuple[list[Template], float]:
        """The templates of several beats together, and the log-probability of each.

        A template is as probable as any other, so a beat with more templates is taken more often.
        """
        if beats not in self._options:
            templates = [template for beat in beats for template in self.beats[beat]]
            self._options[beats] = templates, -math.log(len(templates))
        return self._options[beats]


class Stuck(Exception):
    """No choice of the program writes what the text says at this position.

    Attributes:
        position: where in the text.
        expected: the templates that could have stood there; empty if the text should have ended.
        roles: what the roles stood for that were not to be chosen anew.
    """

    def __init__(self, position: int, expected: Sequence[Template], roles: Mapping[str, Entry]) -> None:
        super().__init__(f"no reading from character {position} on")
        self.position = position
        self.expected = expected
        self.roles = dict(roles)


class Teller(ABC):
    """What a program sees: `say` writes or reads a sentence and tells which words it has.

    Attributes:
        cast: role -> the entry that stands for it from now on. Roles that no one binds (a colour, a smell) are drawn
            afresh in each sentence and forgotten after it.
        log_prob: natural logarithm of the probability of all choices so far.
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.cast: dict[str, Entry] = {}
        self.log_prob = 0.0
        self._break = ""

    def say(self, *beats: str, **new: AnyPool) -> str:
        """Tell one sentence (or two) of one of the beats.

        Args:
            beats: names of beats; one template of all of them is chosen.
            new: roles that this sentence introduces, each with the pool it is drawn from. A template takes the ones
                it mentions; all templates of a beat mention the same ones.

        Returns:
            The beat that was chosen.
        """
        template, values, log_prob = self._choose(beats, new)
        for role in new:
            if role in values:
                self.cast[role] = values[role]
        self.log_prob += log_prob
        self._break = self.language.joint
        return template.beat

    def _pool(self, role: str, values: Mapping[str, Entry]) -> AnyPool:
        """Where a role that nobody has bound is drawn from: `hobby2` is any hobby but the ones named already."""
        pool = self.language.pools[category(role)]
        return pool if role[-1].isalpha() else pool.without(*values.values(), *self.cast.values())

    @abstractmethod
    def _choose(
        self, beats: tuple[str, ...], new: Mapping[str, AnyPool]
    ) -> tuple[Template, dict[str, Entry], float]:
        """A template of the beats, a word for each role that it mentions, and the log-probability of the choice."""


class Writer(Teller):
    """Tells by drawing every choice from `rng`."""

    def __init__(self, language: Language, rng: random.Random) -> None:
        super().__init__(language)
        self.rng = rng
        self.parts: list[str] = []
        self.sentences: list[Template] = []

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def _choose(
        self, beats: tuple[str, ...], new: Mapping[str, AnyPool]
    ) -> tuple[Template, dict[str, Entry], float]:
        options, log_prob = self.language.options(beats)
        template = options[int(self.rng.random() * len(options))]
        self.parts.append(self._break)
        values: dict[str, Entry] = {}
        for literal, role, form in template.slots:
            entry = values.get(role)
            if entry is None:
                pool = new.get(role)
                if pool is None:
                    entry = self.cast.get(role)
                    pool = self._pool(role, values) if entry is None else None
                if pool is not None:
                    entry = pool.draw(self.rng)
                    log_prob += pool.log_weight(entry)
                assert entry is not None
                values[role] = entry
            self.parts.append(literal)
            self.parts.append(entry.forms[form])
        self.parts.append(template.tail)
        self.sentences.append(template)
        return template, values, log_prob


@dataclass(frozen=True)
class Match:
    """One way to read a sentence: the template, its words, where it ends, and the log-probability of the choices."""

    template: Template
    values: dict[str, Entry]
    end: int
    log_prob: float


class Reader(Teller):
    """Tells by following a text.

    Where several choices fit the text, the first is taken and the others are kept in `forks`, so that a caller can
    read again along each of them.

    Args:
        text: the whole text.
        script: numbers of the readings to take at the sentences so far; beyond its end always the first.
    """

    def __init__(self, language: Language, text: str, script: tuple[int, ...] = ()) -> None:
        super().__init__(language)
        self.text = text
        self.position = 0
        self.script = script
        self.taken: list[int] = []
        self.starts: list[int] = []
        self.forks: list[tuple[int, ...]] = []

    def _choose(
        self, beats: tuple[str, ...], new: Mapping[str, AnyPool]
    ) -> tuple[Template, dict[str, Entry], float]:
        options, log_prob = self.language.options(beats)
        start = self.position + len(self._break)
        matches: list[Match] = []
        if self.text.startswith(self._break, self.position):
            for template in options:
                matches.extend(self._matches(template, new, 0, start, {}, log_prob))
        if not matches:
            raise Stuck(start, options, {role: entry for role, entry in self.cast.items() if role not in new})
        turn = len(self.taken)
        number = self.script[turn] if turn < len(self.script) else 0
        if turn >= len(self.script):
            self.forks.extend((*self.taken, other) for other in range(1, len(matches)))
        self.taken.append(number)
        self.starts.append(start)
        match = matches[number]
        self.position = match.end
        return match.template, match.values, match.log_prob

    def _matches(
        self,
        template: Template,
        new: Mapping[str, AnyPool],
        slot: int,
        position: int,
        values: dict[str, Entry],
        log_prob: float,
    ) -> Iterator[Match]:
        if slot == len(template.slots):
            if self.text.startswith(template.tail, position):
                yield Match(template, values, position + len(template.tail), log_prob)
            return
        literal, role, form = template.slots[slot]
        if not self.text.startswith(literal, position):
            return
        position += len(literal)
        entry = values.get(role)
        if entry is None and role not in new:
            entry = self.cast.get(role)
        if entry is not None:
            surface = entry.forms[form]
            if self.text.startswith(surface, position):
                values = {**values, role: entry}
                yield from self._matches(template, new, slot + 1, position + len(surface), values, log_prob)
            return
        pool = new[role] if role in new else self._pool(role, values)
        for entry in pool.starts(form, self.text, position):
            yield from self._matches(
                template,
                new,
                slot + 1,
                position + len(entry.forms[form]),
                {**values, role: entry},
                log_prob + pool.log_weight(entry),
            )

    def finish(self) -> None:
        """Check that the text ends where the program ends.

        Raises:
            Stuck: if it goes on.
        """
        if self.position != len(self.text):
            raise Stuck(self.position, (), self.cast)


def readings(
    language: Language, text: str, tell: Callable[[Teller], object]
) -> tuple[list[tuple[Reader, object]], Stuck | None]:
    """All ways in which the program `tell` can write `text`.

    Returns:
        The readers that came to the end, each with what the program returned; and, if there are none, the failure that
        got furthest into the text.
    """
    complete: list[tuple[Reader, object]] = []
    furthest: Stuck | None = None
    scripts: list[tuple[int, ...]] = [()]
    while scripts:
        reader = Reader(language, text, scripts.pop())
        try:
            result = tell(reader)
            reader.finish()
            complete.append((reader, result))
        except Stuck as stuck:
            if furthest is None or stuck.position > furthest.position:
                furthest = stuck
        scripts.extend(reader.forks)
    return complete, None if complete else furthest
