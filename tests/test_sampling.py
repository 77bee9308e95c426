"""Laws of choosing: chances are those of the softmax, and each rule is that of transformers."""

from typing import Any

import numpy as np
import pytest
import torch

from llm.sampling import (
    Sampling,
    choose,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    ngram_enders,
    penalise_counts,
    penalise_repetition,
    sample,
)


def uniforms(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_logits(rows: int, vocab_size: int, *, seed: int = 1) -> torch.Tensor:
    return 3 * torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"temperature": 1e-300}, {"top_k": 1}, {"top_p": 0.0},
                                      {"min_p": 1.0}])
def test_what_leaves_one_choice_takes_the_likeliest(settings: dict[str, Any]) -> None:
    logits = random_logits(64, 61)
    random = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert torch.equal(sample(logits, random, Sampling(**settings)), logits.argmax(-1))


@pytest.mark.parametrize(("settings", "allowed"), [
    ({}, [0.4, 0.3, 0.2, 0.1]),
    ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]), ({"top_k": 3, "top_p": 0.5}, [4 / 7, 3 / 7, 0, 0]),
    ({"top_p": 0.65}, [4 / 7, 3 / 7, 0, 0]), ({"top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ({"temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]), ({"min_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
    ({"temperature": 0.5, "min_p": 0.2}, [16 / 29, 9 / 29, 4 / 29, 0]),   # what is left after the temperature
])
def test_frequencies_are_those_of_the_softmax(settings: dict[str, Any], allowed: list[float]) -> None:
    count = 20_000
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().expand(count, 4) + 3.0
    random = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = torch.bincount(sample(logits, random, Sampling(**settings)), minlength=4)
    expected = count * torch.tensor(allowed)
    assert not found[expected == 0].any()
    parts = (found - expected)[expected > 0] ** 2 / expected[expected > 0]
    assert parts.sum() < 16.3   # chi-square with 3 degrees of freedom exceeds it once in a thousand; the seed is fixed


def test_an_id_without_probability_is_not_reached_by_rounding() -> None:
    infinite = float("-inf")
    almost_one = uniforms(float(np.nextafter(1.0, 0.0)))
    assert choose(torch.tensor([[1.0, 2.0, infinite]]).double(), almost_one).tolist() == [1]
    assert choose(torch.tensor([[infinite, 2.0, 3.0]]).double(), uniforms(0.0)).tolist() == [1]
    many = torch.zeros(1, 100_000, dtype=torch.float64)   # whose sum is not exactly 1
    many[:, 50_000:] = infinite
    assert choose(many, almost_one).tolist() == [49_999]


@pytest.mark.parametrize("vocab_size", [5, 255, 256, 257, 5000])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.9, 0.999999])
def test_top_p_keeps_the_fewest_that_together_reach_p(vocab_size: int, p: float) -> None:
    """Counted from the definition; flat distributions need more than the first look at the likeliest."""
    logits = torch.cat([random_logits(3, vocab_size), random_logits(1, vocab_size) / 100]).double()
    is_kept = keep_top_p(logits, p).isfinite()
    for row, kept in zip(logits.softmax(-1), is_kept, strict=True):
        falling = row.sort(descending=True).values
        count = int(kept.sum())
        assert set(row.topk(count).indices.tolist()) == set(kept.nonzero()[:, 0].tolist())
        assert falling[:count].sum() >= p - 1e-12
        assert count == 1 or falling[: count - 1].sum() < p


def test_ids_of_equal_logits_are_kept_or_excluded_together() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, 2.0]])
    assert keep_top_k(logits, 1).isfinite().tolist() == [[False, True, False, True, False]]
    assert keep_top_p(logits, 0.1).isfinite().tolist() == [[False, True, False, True, False]]


def test_penalties_worked_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, 0.0]]
    counts = torch.tensor([[3.0, 0.0, 1.0, 0.0]])
    assert penalise_counts(logits, counts, presence=0.5, frequency=0.25).tolist() == [[0.75, -2.0, 1.25, 0.0]]


def test_ngrams_worked_by_hand() -> None:
    text = [1, 2, 3, 1, 2, 4, 1, 2]
    assert ngram_enders(text, 3) == [3, 4]
    assert ngram_enders(text, 2) == [3, 4]
    assert ngram_enders(text, 1) == [1, 2, 3, 4]
    assert ngram_enders(text, 4) == ngram_enders(text, 9) == ngram_enders(text, 0) == []
    assert ngram_enders([7, 7, 7], 2) == [7]


@pytest.mark.parametrize("rule", ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "no_repeat_ngram"])
def test_each_rule_is_that_of_transformers(rule: str) -> None:
    from transformers import generation as theirs

    logits = random_logits(4, 300)
    ids = torch.randint(300, (4, 200), generator=torch.Generator().manual_seed(3)) % 6
    is_seen = torch.zeros(4, 300, dtype=torch.bool).scatter(1, ids, True)
    if rule == "temperature":
        ours, processor = logits.double() / 0.7, theirs.TemperatureLogitsWarper(0.7)
    elif rule == "top_k":
        ours, processor = keep_top_k(logits, 7), theirs.TopKLogitsWarper(7)
    elif rule == "top_p":
        ours, processor = keep_top_p(logits, 0.8), theirs.TopPLogitsWarper(0.8)
    elif rule == "min_p":
        ours, processor = keep_min_p(logits, 0.05), theirs.MinPLogitsWarper(0.05)
    elif rule == "repetition_penalty":
        ours, processor = (penalise_repetition(logits, is_seen, 1.3),
                           theirs.RepetitionPenaltyLogitsProcessor(1.3))
    else:
        ours, processor = logits.clone(), theirs.NoRepeatNGramLogitsProcessor(3)
        for row in range(4):
            ours[row, ngram_enders(ids[row].tolist(), 3)] = float("-inf")
    expected = processor(ids, logits.clone())
    assert torch.equal(ours.isfinite(), expected.isfinite())
    assert torch.allclose(ours.float(), expected)
    assert not torch.equal(expected, logits)   # the rule had something to do


@pytest.mark.parametrize(("logits", "message"), [
    ([1.0, float("nan"), 2.0], "NaN"), ([float("nan")] * 3, "NaN"), ([1.0, float("inf"), 0.0], "NaN"),
    ([float("-inf")] * 3, "every token is excluded"),
])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_without_a_choice_are_refused(logits: list[float], message: str, temperature: float) -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], logits])
    with pytest.raises(ValueError, match=message):
        sample(rows, uniforms(0.5, 0.5), Sampling(temperature=temperature))


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": -0.1}, "temperature=-0.1"), ({"temperature": float("nan")}, "temperature=nan"),
    ({"top_k": -1}, "top_k=-1"), ({"top_p": 1.5}, "top_p=1.5"), ({"min_p": -0.1}, "min_p=-0.1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"), ({"presence_penalty": float("inf")}, "presence_penalty"),
    ({"frequency_penalty": float("nan")}, "frequency_penalty"), ({"no_repeat_ngram": -1}, "no_repeat_ngram=-1"),
    ({"top_p": 2.0, "top_k": -2}, "top_k=-2 must be at least 0; 0 means all; top_p=2.0 must lie between 0 and 1"),
])
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
