"""Laws of the audit: it finds the texts that stand on two sides, and only those."""

import logging

import pytest

from llm.classification.audit import contradictions, copies, overlaps, repeated, tell
from llm.data.labelled import Labelled


def rows(*pairs: tuple[str, str]) -> Labelled:
    return Labelled([text for text, _ in pairs], [label for _, label in pairs], ["here"] * len(pairs))


TRAIN = rows(("Call 0800 123 now!", "spam"), ("see you at the old mill tonight my dear friend", "ham"), ("ok", "ham"))
TEST = rows(("Call 0800 123 now! ", "spam"), ("call 0900 456, NOW", "ham"), ("ok then", "ham"), ("ok", "spam"),
            ("see you at the old mill tonight my dear fellow", "ham"), ("see you at another mill", "ham"))


def test_exact_and_near_copies_are_told_apart_with_their_contradictions() -> None:
    assert copies(TEST, TRAIN).tolist() == [2, -1, 0, -2, 1, 0]


def test_near_copies_are_those_of_the_definition() -> None:
    """Against a search of all pairs, on texts of random words."""
    import numpy as np

    rng = np.random.default_rng(0)
    vocabulary = [f"word{letter}" for letter in "abcdefghijkl"]
    texts = [" ".join(rng.permutation(vocabulary)[: rng.integers(3, 11)]) for _ in range(150)]
    some, others = rows(*[(text, "x") for text in texts[:50]]), rows(*[(text, "x") for text in texts[50:]])

    def is_near(one: str, other: str) -> bool:
        first, second = set(one.split()), set(other.split())
        alike = min(len(first), len(second)) >= 5 and len(first & second) >= 0.8 * len(first | second)
        return one == other or alike

    expected = [any(is_near(text, other) for other in others.texts) for text in some.texts]
    assert (copies(some, others) != 0).tolist() == expected and 5 < sum(expected) < 45


def test_the_audit_tells_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    parts = {"train": TRAIN, "val": rows(("new", "ham")), "test": TEST}
    assert [(found.earlier, found.later, found.exact, found.near, found.contradictions) for found in overlaps(parts)] \
        == [("train", "val", 0, 0, 0), ("train", "test", 2, 2, 2), ("val", "test", 0, 0, 0)]
    with caplog.at_level(logging.WARNING):
        text = tell(parts, {name: [3] * len(part) for name, part in parts.items()}, dict.fromkeys(parts, 1))
    assert "texts of test that also stand in train: 2, and 2 more nearly do" in caplog.text
    assert "| train | test | 2 | 2 | 2 |" in text and "3 / 3 / 3" in text
    assert (repeated(TRAIN + TRAIN), contradictions(TRAIN + TEST)) == (3, 1)
