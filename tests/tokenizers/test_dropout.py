"""BPE-dropout: nothing is lost, nothing is left out at rate 0, and chance is that of `tokenizers`."""

import json
import time
from collections import Counter
from dataclasses import replace

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


def ways(tokenizer: Tokenizer, parts: tuple[bytes, ...], rate: float) -> Counter[tuple[int, ...]]:
    """How probable each way to cut a word is: algorithm 1 of the paper, all that chance may do."""
    ranks = tokenizer.vocabulary.ranks
    pairs = sorted((ranks[parts[place] + parts[place + 1]], place) for place in range(len(parts) - 1)
                   if parts[place] + parts[place + 1] in ranks)
    found: Counter[tuple[int, ...]] = Counter({tuple(ranks[part] for part in parts): rate ** len(pairs)})
    for older, (_, place) in enumerate(pairs):   # which are left out, and this one is not
        glued = (*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :])
        for way, chance in ways(tokenizer, glued, rate).items():
            found[way] += rate**older * (1 - rate) * chance
    return found


@pytest.mark.parametrize("word", ["lowest", "aaaaaa", "ababab"])
def test_each_way_to_cut_a_word_is_as_probable_as_in_the_paper(word: str) -> None:
    tokenizer = Tokenizer.train([TEXT, "aaaaaaaa aaaa ababab abab"], vocab_size=330)
    ours, draws = varied(tokenizer, 0.3), 8000
    mine = Counter(tuple(ours.encode(word)) for _ in range(draws))
    law = ways(tokenizer, tuple(bytes([byte]) for byte in word.encode()), 0.3)
    assert sum(law.values()) == pytest.approx(1) and set(mine) <= set(law) and len(law) > 4
    for way, chance in law.items():
        assert abs(mine[way] / draws - chance) < 5 * (chance * (1 - chance) / draws) ** 0.5 + 1 / draws


def test_the_first_ids_are_those_of_the_whole_text(tokenizer: Tokenizer) -> None:
    bytewise, qwen = Tokenizer.byte_level(), Tokenizer.train([TEXT], vocab_size=300, pattern="qwen2")
    table = qwen.vocabulary
    thinking = Tokenizer(replace(table, text_tokens={"<think>": 300, "e, e": 301}))
    for seed in range(100):
        text = random_text(seed, 150, ["<think>", "e, e", "<|endoftext|>"])
        for one in (tokenizer, bytewise, qwen, thinking, varied(tokenizer, 0.0)):
            for count in (1, 7, 20, 999):
                assert one.first_ids(text, count) == one.encode(text)[:count]


def test_what_is_cut_at_random_is_the_beginning_of_the_text(tokenizer: Tokenizer) -> None:
    for seed in range(100):
        text = tokenizer.decode(tokenizer.encode(random_text(seed, 300)))
        found = varied(tokenizer, 0.4, seed).first_ids(text, 20)
        assert len(found) == 20 or tokenizer.decode(found) == text
        assert text.encode().startswith(b"".join(tokenizer.token_bytes[token_id] for token_id in found))


@pytest.mark.parametrize("text", ["lowest" * 100_000, "the lowest tower " * 100_000, "低い塔" * 100_000],
                         ids=["one word", "short words", "no spaces"])
def test_a_long_text_costs_what_is_read_of_it(tokenizer: Tokenizer, text: str) -> None:
    ours, started = varied(tokenizer, 0.2), time.process_time()
    assert len(ours.first_ids(text, 500)) == 500
    assert len(tokenizer.first_ids(text, 500)) == 500
    assert time.process_time() - started < 5   # 0.1 to 0.6 s; whole, and pair by pair, it would be hours


def test_a_long_word_costs_little_more_than_its_length(tokenizer: Tokenizer) -> None:
    started = time.process_time()
    assert len(varied(tokenizer, 0.2).encode("lowest" * 2000)) > 2000
    assert time.process_time() - started < 5   # 0.1 s; it was 100


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_chance(tokenizer: Tokenizer, rate: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        varied(tokenizer, rate)


@pytest.mark.parametrize("plain", [Tokenizer.byte_level(), Tokenizer.character_level("abc")])
def test_no_merges_to_leave_out(plain: Tokenizer) -> None:
    with pytest.raises(ValueError, match="none to leave out"):
        varied(plain, 0.1)
