"""The state of a small world: who is where, who has what, who feels how, and what has happened.

Every act checks that the world permits it (one can only hand over what one has, to somebody who is there) and leaves
facts behind, from which `questions.py` makes its questions. An act that is not permitted is a mistake of the program
that tells the story, never of a text: hence assertions.

Left out: words. Read next: `story.py`.
"""

from dataclasses import dataclass, field

from llm.data.tinyworld.grammar import Entry


@dataclass(frozen=True)
class Fact:
    """Something that can be asked about a story.

    Attributes:
        kind: names the question and answer templates, `ask.<kind>` and `answer.<kind>`.
        answer: the entry that answers the question.
        roles: the other entries that the question or the answer mention.
    """

    kind: str
    answer: Entry
    roles: dict[str, Entry] = field(default_factory=dict)


@dataclass
class World:
    """The state after the sentences told so far.

    Attributes:
        where: person -> place, as far as known.
        holder: thing -> the person who has it; None while it lies about somewhere.
        mood: person -> the word for what they feel.
        facts: what can be asked, in the order of events.
    """

    where: dict[Entry, Entry] = field(default_factory=dict)
    holder: dict[Entry, Entry | None] = field(default_factory=dict)
    mood: dict[Entry, Entry] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)

    def note(self, kind: str, answer: Entry, **roles: Entry) -> None:
        self.facts.append(Fact(kind, answer, roles))

    def go(self, place: Entry, *people: Entry) -> None:
        for person in people:
            self.where[person] = place

    def meet(self, *people: Entry) -> None:
        """The people come together somewhere that the story does not name."""
        for person in people:
            self.where.pop(person, None)

    def are_together(self, *people: Entry) -> bool:
        """Whether no two of the people are known to be at different places."""
        return len({self.where[person] for person in people if person in self.where}) <= 1

    def own(self, person: Entry, thing: Entry) -> None:
        """The story begins with a thing in somebody's hands."""
        assert thing not in self.holder, f"{thing} has an owner already"
        self.holder[thing] = person

    def lie(self, thing: Entry) -> None:
        """The story finds a thing lying about."""
        assert thing not in self.holder, f"{thing} has an owner already"
        self.holder[thing] = None

    def lose(self, person: Entry, thing: Entry) -> None:
        assert self.holder[thing] is person, f"{person} cannot lose {thing}"
        self.holder[thing] = None
        self.note("lost", thing, who=person)

    def find(self, person: Entry, thing: Entry, place: Entry) -> None:
        assert self.holder[thing] is None, f"{thing} is not lying about"
        assert self.where[person] is place, f"{person} is not {place}"
        self.holder[thing] = person
        self.note("finder", person, item=thing)
        self.note("found_where", place, who=person, item=thing)

    def take(self, person: Entry, thing: Entry) -> None:
        """What lay about between people becomes the property of one of them."""
        assert self.holder[thing] is None, f"{thing} is not lying about"
        self.holder[thing] = person

    def give(self, giver: Entry, thing: Entry, taker: Entry) -> None:
        assert self.holder[thing] is giver, f"{giver} has no {thing} to give"
        assert self.are_together(giver, taker), f"{giver} and {taker} are apart"
        self.holder[thing] = taker
        self.note("giver", giver, item=thing, taker=taker)

    def feel(self, person: Entry, mood: Entry) -> None:
        self.mood[person] = mood
