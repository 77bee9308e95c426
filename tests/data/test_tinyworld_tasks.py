"""Laws of the questions, the preferences and the messages."""

import itertools
import re
from collections import Counter

import pytest

from llm.data.tinyworld import check_answer, messages, preferences, questions
from llm.data.tinyworld.language import LANGUAGES, load, load_tasks
from llm.data.tinyworld.questions import facts
from llm.data.tinyworld.stories import stream, write


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_are_right_and_answers_to_other_questions_are_not(language: str) -> None:
    chats = [
        (chat["messages"][0]["content"], chat["messages"][1]["content"]) for chat in questions(1, language, 200)
    ]
    assert all(check_answer(prompt, answer) for prompt, answer in chats)
    shifted = [check_answer(prompt, answer) for (prompt, _), (_, answer) in itertools.pairwise(chats)]
    assert sum(shifted) <= 4   # two stories may have the same answer


def test_short_answers_count_and_hedged_ones_do_not() -> None:
    for chat in questions(2, "en", 60):
        prompt, answer = (turn["content"] for turn in chat["messages"])
        if prompt.endswith("end?") and "Who has" in prompt:
            name = next(word for word in answer.replace(".", "").split() if word[0].isupper() and word != "Now")
            assert check_answer(prompt, name) and check_answer(prompt, f"I think it is {name}!")
            assert not check_answer(prompt, f"{name} or {'Tom' if name != 'Tom' else 'Mia'}")
            assert not check_answer(prompt, "")
            return
    raise AssertionError("no question about a holder was drawn")


def test_a_prompt_that_is_not_a_story_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin with a consistent story"):
        check_answer("Once upon a time.\n\nWho?", "Tom")


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_fact_has_questions_and_answers(language: str) -> None:
    beats, seen = load_tasks(language).beats, Counter[str]()
    rng = stream(1, language, "questions")
    for _ in range(1500):
        seen.update(fact.kind for fact in facts(write(load(language), rng)[1]))
    asked = {beat.removeprefix("ask.") for beat in beats if beat.startswith("ask.")}
    answered = {beat.removeprefix("answer.") for beat in beats if beat.startswith("answer.")}
    assert seen.keys() == asked == answered


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_chosen_answer_is_right_and_the_rejected_one_wrong(language: str) -> None:
    for pair in preferences(1, language, 150):
        assert check_answer(pair["prompt"], pair["chosen"])
        assert not check_answer(pair["prompt"], pair["rejected"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_single_word_tells_spam_from_ham(language: str) -> None:
    rows = list(messages(1, language, 2000))
    spam = [row["text"] for row in rows if row["label"] == "spam"]
    ham = [row["text"] for row in rows if row["label"] == "ham"]
    assert 900 < len(spam) < 1100
    texts = spam + ham
    tokens = {token for text in texts for token in (text.split() if language == "en" else text)}
    best = 0.0
    for token in tokens:
        hits = sum(token in text for text in spam) / len(spam), sum(token in text for text in ham) / len(ham)
        best = max(best, 0.5 + abs(hits[0] - hits[1]) / 2)
    assert best < 0.8


def test_the_rule_of_spam_has_no_exception() -> None:
    tasks = load_tasks("en")

    def has(text: str, beat: str) -> bool:
        patterns = ("".join(re.escape(literal) + ".+?" for literal, _, _ in template.slots) + re.escape(template.tail)
                    for template in tasks.beats[beat])
        return any(re.search(rf"(^|[.!?,] ){pattern}\.", text, re.IGNORECASE) for pattern in patterns)

    for row in messages(3, "en", 1000):
        assert (row["label"] == "spam") == (has(row["text"], "gain") and has(row["text"], "demand"))


@pytest.mark.parametrize("make", [questions, preferences, messages])
def test_the_same_seed_gives_the_same_records(make) -> None:   # type: ignore[no-untyped-def]
    assert list(make(4, "both", 10)) == list(make(4, "both", 10)) != list(make(5, "both", 10))
