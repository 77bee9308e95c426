"""From the word lists to two languages: entries with their written forms, and the templates of all beats.

A form is what is written for an entry in a certain place. English has the plain form, `a` (with its article), `Cap` and
`A` (the same with a capital), for places `at` and `to`, for people the pronouns. Chinese has the plain form, `a`
(with 一 and the measure word), `m` (the measure word), and for people the pronoun `he`, whose characters differ.

Left out: any choice. Read next: `grammar.py`.
"""

import re
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Any

from llm.data.tinyworld.grammar import Entry, Language, Pool, Template, category
from llm.data.tinyworld.story import MOODS

LANGUAGES = ("en", "zh")
COMMON_BEATS = ("open", "detail", "around", "feel.hero", "feel.friend", "end")
CORNER_PLOTS, CORNER_WORDS, CORNER_MOODS = 2, 6, 4   # of each kind, and of each feeling
CORNER_TEMPLATES = 2   # of beats that every story has; of those that belong to a plot there is one
SILENT_H = ("hour", "honest", "honour")
PRONOUNS = {
    ("en", "girl"): {"he": "she", "his": "her", "him": "her", "hers": "hers", "girl": "girl", "a_girl": "a girl"},
    ("en", "boy"): {"he": "he", "his": "his", "him": "him", "hers": "his", "girl": "boy", "a_girl": "a boy"},
    ("zh", "girl"): {"he": "她", "girl": "小姑娘"},
    ("zh", "boy"): {"he": "他", "girl": "小男孩"},
}


def capital(text: str) -> str:
    """The text with its first letter as a capital; `str.capitalize` would lower the others."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """The noun phrase after "a" or "an", as it sounds."""
    return ("an " if noun[0] in "aeiou" or noun.startswith(SILENT_H) else "a ") + noun


def _english(key: str, name: str) -> dict[str, str]:
    if name == "place":
        at = key
        bare = key.split(" ", 1)[1]   # "in the garden" -> "the garden"
        return {"": bare, "Cap": capital(bare), "at": at, "At": capital(at), "to": f"to {bare}", "To": f"To {bare}"}
    article = with_article(key)
    return {"": key, "Cap": capital(key), "a": article, "A": capital(article)}


def _chinese(word: str, name: str) -> dict[str, str]:
    noun, _, suffix = word.partition("/")
    if name == "place":
        return {"": noun, "at": noun + suffix}
    return {"": noun, "a": f"一{suffix}{noun}", "m": suffix}


def _person(name: str, language: str, gender: str) -> Entry:
    forms = {"": name, **PRONOUNS[language, gender]}
    forms |= {capital(form): capital(text) for form, text in forms.items() if form and language == "en"}
    return Entry(name, forms)


def _items(text: str) -> Iterator[str]:
    return (item for item in (re.sub(r"\s+", " ", item).strip() for item in text.split(";")) if item)


def _alternate(first: list[Entry], second: list[Entry]) -> list[Entry]:
    """Both lists as one, in turn, so that girls and boys are equally frequent."""
    shorter = min(len(first), len(second))
    return [entry for pair in zip(first, second, strict=False) for entry in pair] + first[shorter:] + second[shorter:]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


@lru_cache
def load(name: str) -> Language:
    """One of the languages "en" and "zh".

    Raises:
        ValueError: for any other name.
    """
    if name not in LANGUAGES:
        raise ValueError(f"language={name!r} is not known; choose from {LANGUAGES}")
    own = _read(f"{name}.toml")
    pools = _pools(name, own["pools"])
    return Language(name, " " if name == "en" else "", pools, _beats(name, own["beats"]))


@lru_cache
def corner(name: str) -> Language:
    """A corner of the world: the same sentences and words, but only the first few of each kind, and few plots.

    Its stories are stories of the whole world too; a model of a few million parameters learns it in minutes.
    """
    whole = load(name)
    plots = [beat.split(".")[0] for beat in whole.beats if beat.endswith(".wish")][:CORNER_PLOTS]
    common = {beat: list(filter(_is_plain, whole.beats[beat]))[:CORNER_TEMPLATES] for beat in COMMON_BEATS}
    told = {beat: templates[:1] for beat, templates in whole.beats.items() if beat.split(".")[0] in plots}
    pools = {pool: Pool(words.entries[:CORNER_WORDS]) for pool, words in whole.pools.items()}
    for mood in MOODS:
        pools[mood] = Pool(whole.pools[mood].entries[:CORNER_MOODS])
    pools["mood"] = Pool(entry for mood in MOODS for entry in pools[mood].entries)
    return Language(name, whole.joint, pools, common | told)


def _is_plain(template: Template) -> bool:
    """Whether a sentence names no two words of a kind, which must differ, and no thing that has no part in the plot."""
    kinds = [category(role) for role in dict.fromkeys(role for _, role, _ in template.slots)]
    return len(set(kinds)) == len(kinds) and "thing" not in kinds


@lru_cache
def load_tasks(name: str) -> Language:
    """The same words with other sentences: questions, answers and messages."""
    stories = load(name)
    pools = stories.pools | {"name": stories.pools["person"]}
    return Language(name, stories.joint, pools, _beats(name, _read(f"{name}_tasks.toml")["beats"]))


def _beats(name: str, beats: dict[str, list[str]]) -> dict[str, list[Template]]:
    # Chinese templates are written with spaces between words, for their readers and for the count of words.
    return {
        beat: [Template.parse(beat, source if name == "en" else source.replace(" ", "")) for source in sources]
        for beat, sources in beats.items()
    }


def _pools(name: str, own: dict[str, str]) -> dict[str, Pool]:
    entries: dict[str, list[Entry]] = {}
    for pool, text in _read("lexicon.toml").items():
        pairs = [item.split("=") for item in _items(text)]
        entries[pool] = [
            Entry(english, _english(english, pool) if name == "en" else _chinese(chinese, pool))
            for english, chinese in pairs
        ]
    for pool, text in own.items():
        entries[pool] = [Entry(item, _english(item, pool) if name == "en" else {"": item}) for item in _items(text)]
    names = _read("people.toml")[name]
    genders = [[_person(word, name, gender) for word in names[gender].split()] for gender in ("girl", "boy")]
    people = _alternate(*genders)
    # Each role has names of its own, four heroes to three friends and one other: the reader of one story never
    # confuses them, and neither does a small model, which learns to look a name up by its kind.
    entries["hero"] = [person for place, person in enumerate(people) if place % 16 < 8]
    for gender, persons in zip(("girl", "boy"), genders, strict=True):   # friends; see `Story.partner`
        entries[gender] = [person for place, person in enumerate(people) if 8 <= place % 16 < 14 and person in persons]
    entries["other"] = [person for place, person in enumerate(people) if place % 16 >= 14]
    pools = {"person": Pool(people)} | {pool: Pool(words) for pool, words in entries.items()}
    pools["mood"] = Pool(entry for mood in MOODS for entry in entries[mood])
    return pools


def vocabulary(name: str) -> set[str]:
    """The words of a language: those of its pools and of its templates, without punctuation.

    English phrases are taken apart at the spaces and lowered; Chinese entries are kept as they are.
    """
    language = load(name)
    own = _read(f"{name}.toml")
    texts = [re.sub(r"\{[^}]*\}", " ", source) for sources in own["beats"].values() for source in sources]
    texts += [form for pool in language.pools.values() for entry in pool.entries for form in entry.forms.values()]
    pattern = r"[A-Za-z][A-Za-z'-]*" if name == "en" else r"[一-鿿]+"
    return {word.lower() for text in texts for word in re.findall(pattern, text)}
