"""BPE-dropout: nothing is lost, nothing is left out at rate 0, and chance is that of `tokenizers`."""

import json
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer as TheirTokenizer

from llm.tokenizers.dropout import DropoutTokenizer
from llm.tokenizers.formats import write_json
from llm.tokenizers.tokenizer import Tokenizer
from tests.tokenizers.texts import random_text

TEXT = "the lowest of the low lowered the tower; 低い塔 was lower than the flower, slowly and lowly"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], vocab_size=320)


def varied(tokenizer: Tokenizer, rate: float, seed: int = 1) -> DropoutTokenizer:
    return DropoutTokenizer(tokenizer, rate=rate, rng=np.random.default_rng(seed))


def test_every_way_to_cut_a_text_says_the_same(tokenizer: Tokenizer) -> None:
    for text in map(random_text, range(500)):
        plain = tokenizer.decode(tokenizer.encode(text))
        assert tokenizer.decode(varied(tokenizer, 0.3).encode(text)) == plain
        assert varied(tokenizer, 0.0).encode(text) == tokenizer.encode(text)
        assert len(varied(tokenizer, 1.0).encode(text)) == len(plain.encode())


def test_the_same_chance_cuts_alike_and_another_does_not(tokenizer: Tokenizer) -> None:
    assert varied(tokenizer, 0.5).encode(TEXT) == varied(tokenizer, 0.5).encode(TEXT)
    assert varied(tokenizer, 0.5).encode(TEXT) != varied(tokenizer, 0.5, seed=2).encode(TEXT)


def test_control_tokens_stay_whole_and_text_does_not_become_one(tokenizer: Tokenizer) -> None:
    text = "low<|endoftext|>"
    assert varied(tokenizer, 1.0).encode(text, allowed_special="all")[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in varied(tokenizer, 0.2).encode(text)


def test_words_are_cut_as_often_in_each_way_as_by_the_package_tokenizers(tokenizer: Tokenizer) -> None:
    table = write_json(tokenizer.vocabulary)
    table["model"]["dropout"] = 0.3
    theirs = TheirTokenizer.from_str(json.dumps(table))
    ours, draws = varied(tokenizer, 0.3), 8000
    mine = Counter(tuple(ours.encode("lowest")) for _ in range(draws))
    yours = Counter(tuple(theirs.encode("lowest").ids) for _ in range(draws))
    assert len(mine) > 4
    for way in set(mine) | set(yours):
        share = (mine[way] + yours[way]) / (2 * draws)
        spread = (2 * share * (1 - share) / draws) ** 0.5   # of the difference of two shares
        assert abs(mine[way] - yours[way]) / draws < 5 * spread


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_chance(tokenizer: Tokenizer, rate: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        varied(tokenizer, rate)


@pytest.mark.parametrize("plain", [Tokenizer.byte_level(), Tokenizer.character_level("abc")])
def test_no_merges_to_leave_out(plain: Tokenizer) -> None:
    with pytest.raises(ValueError, match="none to leave out"):
        varied(plain, 0.1)
