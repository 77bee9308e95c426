"""Laws of text that arrives in pieces: a stop string ends it wherever the borders of tokens lie."""

import itertools
from collections.abc import Iterator

import pytest

import llm
from llm.generation import generate
from llm.writing import StopStrings, until, write
from tests.conftest import random_model

TEXT = "一二三 aab aaab 😀."


def cuts(text: str) -> Iterator[list[str]]:
    """Every way to cut a text into two, three or single pieces."""
    yield list(text)
    for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        yield [text[:first], text[first:second], text[second:]]


@pytest.mark.parametrize("stops", [["二"], ["aaab"], ["aab"], ["ab", "三"], ["😀."], ["nothing", "b a"], ["."], [TEXT],
                                   []])
def test_a_text_ends_at_the_first_stop_string_however_it_is_cut(stops: list[str]) -> None:
    expected = TEXT[: min((TEXT.index(stop) for stop in stops if stop in TEXT), default=len(TEXT))]
    for pieces in cuts(TEXT):
        shown = list(until(pieces, stops))
        assert "".join(shown) == expected
        assert all(shown)


def test_nothing_is_held_back_without_need() -> None:
    """A reader sees what is sure at once, and nothing of what may be cut."""
    shown = until(iter(["one, t", "w", "elve"]), ["two"])
    assert [next(shown), next(shown)] == ["one, ", "twelve"]


def test_nothing_is_asked_for_after_the_stop() -> None:
    def pieces() -> Iterator[str]:
        yield "a."
        raise AssertionError("one piece too many")

    assert list(until(pieces(), ["."])) == ["a"]


def test_rows_of_a_batch_end_where_streamed_text_does() -> None:
    """Chinese characters are several tokens of this tokenizer, English words one."""
    tokenizer = llm.Tokenizer.train([TEXT * 9 + "the thing. " * 9], 290)
    config = llm.GPTConfig(vocab_size=tokenizer.vocab_size, context_length=64, num_layers=1, num_heads=1, dim=8)
    model = random_model(config)
    prompt = tokenizer.encode("一")
    plain = generate(model, [prompt] * 8, max_new_tokens=40, seed=1)
    candidates = {tokenizer.decode(row)[3:6] for row in plain} | {"二", "."}
    for stop in sorted(text for text in candidates if "\ufffd" not in text):
        ends = StopStrings(tokenizer, [stop])
        rows = generate(model, [prompt] * 8, max_new_tokens=40, seed=1, stop=ends)
        for row, whole in zip(rows, plain, strict=True):
            assert whole[: len(row)] == row
            assert ends.cut(tokenizer.decode(row)) == "".join(until([tokenizer.decode(whole)], [stop]))
            assert len(row) == 40 or (ends(row) and not ends(row[:-1]))
        streamed = "".join(write(model, tokenizer, prompt, max_new_tokens=40, seed=1, stop_strings=[stop]))
        assert streamed == ends.cut(tokenizer.decode(rows[0]))


def test_the_end_token_is_no_part_of_the_text() -> None:
    tokenizer = llm.Tokenizer.byte_level()
    model = random_model(llm.GPTConfig(vocab_size=257, context_length=64, num_layers=1, num_heads=1, dim=8))
    [row] = generate(model, [[65]], max_new_tokens=40, seed=1)
    assert "".join(write(model, tokenizer, [65], max_new_tokens=40, seed=1, eos_id=[row[9], row[4]])) == (
        tokenizer.decode(row[: min(row.index(row[9]), row.index(row[4]))]))


def test_an_empty_stop_string_is_refused() -> None:
    for make in (lambda: until([], [""]), lambda: StopStrings(llm.Tokenizer.byte_level(), ["a", ""])):
        with pytest.raises(ValueError, match="a stop string is empty"):
            make()
