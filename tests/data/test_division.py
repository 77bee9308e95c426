"""Laws of splitting: duplicates together, classes in proportion, nothing lost, the same for the same seed."""

import numpy as np
import pytest

from llm.data.division import divide, skeleton, undersample
from llm.data.labelled_sets import book_split


def rows(count: int = 400) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    words = ["tea", "sun", "dog", "car", "tree", "moon", "ball", "fish"]
    texts = [" ".join(rng.choice(words, 4)) + str(rng.integers(100)) for _ in range(count)]
    return texts, [str(label) for label in rng.choice(["ham", "spam", "other"], count, p=[0.6, 0.3, 0.1])]


@pytest.mark.parametrize("shares", [[0.7, 0.1, 0.2], [1.0] * 5])
def test_parts_hold_every_row_once_in_proportion_with_duplicates_together(shares: list[float]) -> None:
    texts, labels = rows()
    parts = divide(texts, labels, shares, seed=3)
    assert sorted(number for part in parts for number in part) == list(range(len(texts)))
    homes = [{skeleton(texts[number]) for number in part} for part in parts]
    assert sum(map(len, homes)) == len(set(map(skeleton, texts)))
    for part, share in zip(parts, shares, strict=True):
        for label in set(labels):
            count = sum(labels[number] == label for number in part)
            assert count == pytest.approx(labels.count(label) * share / sum(shares), abs=4)   # groups are not cut


def test_a_split_depends_on_its_seed_alone() -> None:
    texts, labels = rows()
    assert divide(texts, labels, [1, 1], seed=1) == divide(texts, labels, [1, 1], seed=1)
    assert divide(texts, labels, [1, 1], seed=1) != divide(texts, labels, [1, 1], seed=2)


def test_too_few_different_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="part 2 of the split would be empty: 1 different texts are too few"):
        divide(["win 1", "WIN 2!"], ["a", "b"], [1, 1], seed=1)


@pytest.mark.parametrize(("one", "other", "is_same"), [
    ("Call 0800 123 now!!", "call 0900 456, NOW", True), ("Ｆｕｌｌ", "full", True), ("中奖 了", "中奖了", False),
    ("🎉🎉", "🎉", False), ("see you", "see me", False)])
def test_skeletons_of_texts(one: str, other: str, is_same: bool) -> None:
    assert (skeleton(one) == skeleton(other)) is is_same
    assert skeleton(one)


def test_undersampling_keeps_as_many_of_each_class_as_the_rarest_has() -> None:
    _, labels = rows()
    kept = undersample(labels, seed=1)
    assert kept == sorted(set(kept)) and kept != undersample(labels, seed=2)
    assert {label: [labels[number] for number in kept].count(label) for label in set(labels)} == dict.fromkeys(
        set(labels), min(map(labels.count, set(labels))))


def test_the_books_split_is_balanced_and_cut_as_the_book_cuts(tmp_path) -> None:   # type: ignore[no-untyped-def]
    path = tmp_path / "sms.tsv"
    path.write_text("".join(f"{'ham' if number % 8 else 'spam'}\tmessage {number}\n" for number in range(800)), "utf-8")
    parts = book_split(path)
    assert [len(part) for part in parts] == [140, 20, 40]
    labels = [label for part in parts for label in part.labels]
    assert labels.count("ham") == labels.count("spam") == 100
    assert len({text for part in parts for text in part.texts}) == 200
