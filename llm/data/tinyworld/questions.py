"""Questions about stories with answers that can be checked, and pairs of a right and a wrong answer.

The facts come from the world of the story (`world.py`), so an answer is right because of what happened, not because
of how it is said; `check_answer` reads the story again and accepts any wording that names the right thing and no wrong
one.

Left out: questions whose answer is not in the story. Read next: `messages.py`.
"""

import random
import re
from collections.abc import Iterator
from typing import TypedDict

from llm.data.tinyworld.grammar import Entry, Language, Pool, Template
from llm.data.tinyworld.judge import language_of, read
from llm.data.tinyworld.language import load, load_tasks
from llm.data.tinyworld.stories import languages, stream, write
from llm.data.tinyworld.story import Story
from llm.data.tinyworld.world import Fact


class Message(TypedDict):
    role: str
    content: str


class Chat(TypedDict):
    messages: list[Message]


class Preference(TypedDict):
    prompt: str
    chosen: str
    rejected: str


def render(template: Template, fact: Fact, answer: Entry) -> str:
    """The question or answer about a fact, with `answer` in the place of the answer."""
    cast = {**fact.roles, "answer": answer}
    return "".join(literal + cast[role].forms[form] for literal, role, form in template.slots) + template.tail


def facts(story: Story) -> list[Fact]:
    """What can be asked about a story: its events, and who has what at the end."""
    world = story.world
    holders = [Fact("holder", person, {"item": thing}) for thing, person in world.holder.items() if person is not None]
    return [*world.facts, *holders]


def _asked(tasks: Language, story: Story) -> dict[str, Fact]:
    """Every question about a story with its fact; questions with two different answers are left out."""
    asked: dict[str, Fact] = {}
    doubtful: set[str] = set()
    for fact in facts(story):
        for template in tasks.beats[f"ask.{fact.kind}"]:
            question = render(template, fact, fact.answer)
            if question in asked and asked[question].answer is not fact.answer:
                doubtful.add(question)
            asked[question] = fact
    return {question: fact for question, fact in asked.items() if question not in doubtful}


def _drawn(rng: random.Random, name: str) -> tuple[str, str, Fact, Story, Template]:
    """A story, a question about it, the fact behind it, and a wording of the answer."""
    tasks = load_tasks(name)
    writer, story = write(load(name), rng)
    question, fact = rng.choice(list(_asked(tasks, story).items()))
    return writer.text, question, fact, story, rng.choice(tasks.beats[f"answer.{fact.kind}"])


def questions(seed: int, language: str, count: int) -> Iterator[Chat]:
    """Chats of two turns: a story and a question about it, and the answer.

    Args:
        seed: 0 or more.
        language: "en", "zh" or "both" (in turn).
        count: how many.

    Returns:
        Records in the messages format; the user's turn is the story, an empty line, and the question.

    Raises:
        ValueError: for an unknown language or a negative seed.

    Example:
        >>> chat = next(questions(seed=1, language="en", count=1))
        >>> [turn["role"] for turn in chat["messages"]]
        ['user', 'assistant']
        >>> check_answer(chat["messages"][0]["content"], chat["messages"][1]["content"])
        True
    """
    sources = [(name, stream(seed, name, "questions")) for name in languages(language)]
    for turn in range(count):
        name, rng = sources[turn % len(sources)]
        text, question, fact, _, wording = _drawn(rng, name)
        answer = render(wording, fact, fact.answer)
        yield {
            "messages": [
                {"role": "user", "content": f"{text}\n\n{question}"},
                {"role": "assistant", "content": answer},
            ]
        }


def preferences(seed: int, language: str, count: int) -> Iterator[Preference]:
    """Pairs of a right and a wrong answer to a question about a story, in the same words.

    Two thirds of the wrong answers name something else from the same story where there is something of the kind; the
    rest name anything of the kind.

    Args:
        seed: 0 or more.
        language: "en", "zh" or "both" (in turn).
        count: how many.

    Raises:
        ValueError: for an unknown language or a negative seed.

    Example:
        >>> pair = next(preferences(seed=1, language="en", count=1))
        >>> check_answer(pair["prompt"], pair["chosen"]), check_answer(pair["prompt"], pair["rejected"])
        (True, False)
    """
    sources = [(name, stream(seed, name, "preferences")) for name in languages(language)]
    for turn in range(count):
        name, rng = sources[turn % len(sources)]
        text, question, fact, story, wording = _drawn(rng, name)
        pool = _pool_of(load(name), fact.answer)
        cast = dict.fromkeys([*story.teller.cast.values(), *(entry for entry in fact.roles.values())])
        near = [entry for entry in cast if entry in pool.weights and entry is not fact.answer]
        chosen = render(wording, fact, fact.answer)
        rejected = chosen
        while rejected == chosen or _is_right(load_tasks(name), question, fact, rejected):
            other = rng.choice(near) if near and rng.random() < 2 / 3 else pool.without(fact.answer).draw(rng)
            rejected = render(wording, fact, other)
        yield {"prompt": f"{text}\n\n{question}", "chosen": chosen, "rejected": rejected}


def _pool_of(language: Language, entry: Entry) -> Pool:
    """The pool an entry comes from; for a feeling all feelings, of which only one word is the true one."""
    if entry in language.pools["mood"].weights:
        return language.pools["mood"]
    return next(pool for pool in language.pools.values() if entry in pool.weights)


def _plain(text: str) -> str:
    """Lower case, without punctuation, one blank between words and at both ends."""
    return " " + " ".join(re.findall(r"[\w'-]+", text.lower())) + " "


def _names(text: str, entry: Entry, language: str) -> bool:
    """Whether a plain text names an entry in one of its forms; a bare pronoun names nobody."""
    forms = [form for key, form in entry.forms.items() if key in ("", "a", "at", "to")]
    # English words end at blanks; in Chinese a word may stand anywhere.
    return any((_plain(form) if language == "en" else _plain(form).strip()) in text for form in forms)


def _is_right(tasks: Language, question: str, fact: Fact, answer: str) -> bool:
    said = _plain(answer)
    if any(said == _plain(render(template, fact, fact.answer)) for template in tasks.beats[f"answer.{fact.kind}"]):
        return True
    if not _names(said, fact.answer, tasks.name):
        return False
    # What the question names itself may be repeated, and so may parts of the true answer ("pie" in "apple pie").
    allowed = _plain(question) + " ".join(_plain(form) for form in fact.answer.forms.values())
    others = (entry for entry in _pool_of(tasks, fact.answer).entries if entry is not fact.answer)
    return not any(_names(said, entry, tasks.name) and not _names(allowed, entry, tasks.name) for entry in others)


def check_answer(prompt: str, answer: str) -> bool:
    """Whether an answer to a question about a story is right.

    Args:
        prompt: a story, an empty line, and one of the questions that can be asked about it: the user's turn of
            `questions` or the prompt of `preferences`.
        answer: any wording, short or long, that names the right thing and nothing else of its kind.

    Raises:
        ValueError: if the prompt is not made in this way.
    """
    text, _, question = prompt.rpartition("\n\n")
    story = read(text)
    if story is None:
        raise ValueError(f"prompt={prompt[:40]!r}... does not begin with a consistent story and an empty line")
    tasks = load_tasks(language_of(text).name)
    fact = _asked(tasks, story).get(question)
    if fact is None:
        raise ValueError(f"{question!r} is not a question about this story; use one that `questions` makes")
    return _is_right(tasks, question, fact, answer)
