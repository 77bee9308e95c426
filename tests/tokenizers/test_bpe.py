import itertools
import json
import random
import tracemalloc
from collections import Counter

import pytest

from llm.tokenizers import bpe, patterns


def naive_merges(words, num_merges, avoid=()):
    """Algorithm 1 of Sennrich et al., counting everything anew for each merge."""
    id_of = bpe.ranks([])
    spelled = {word: [bytes([byte]) for byte in word] for word in words}
    merges, skipped = [], set()
    while len(merges) < num_merges:
        counts = Counter()
        for word, tokens in spelled.items():
            for pair in itertools.pairwise(tokens):
                counts[pair] += words[word]
        pairs = [pair for pair in counts if pair not in skipped]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-counts[pair], id_of[pair[0]], id_of[pair[1]]))
        if bpe.spell(best[0] + best[1]) in avoid:
            skipped.add(best)
            continue
        merges.append(best)
        id_of[best[0] + best[1]] = len(id_of)
        for word, tokens in spelled.items():
            glued = []
            while tokens:
                size = 2 if tuple(tokens[:2]) == best else 1
                glued.append(b"".join(tokens[:size]))
                tokens = tokens[size:]
            spelled[word] = glued
    return merges


def english():
    from pydoc_data import topics

    return list(topics.topics.values())


def chinese():
    """Sentences of characters drawn by Zipf's law, so that some pairs are common and many are rare."""
    source = random.Random(7)
    characters = [chr(0x4E00 + 7 * rank) for rank in range(2_000)]
    weights = [1 / (rank + 1) for rank in range(2_000)]
    return ["".join(source.choices(characters, weights, k=source.randint(3, 30))) + "。\n" for _ in range(2_000)]


def code():
    import argparse
    import inspect
    import typing

    return [inspect.getsource(module) for module in (argparse, inspect, random, typing)]


def noise():
    return [random.Random(5).randbytes(60_000).decode("latin-1")]


def tokenizers_merges(texts, vocab_size, pattern, special_tokens=()):
    pytest.importorskip("tokenizers")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(patterns.PATTERNS[pattern]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, special_tokens=list(special_tokens)
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k"])
@pytest.mark.parametrize("texts", [english, chinese, code, noise])
def test_merges_are_those_of_tokenizers(texts, pattern):
    specials = ["<|endoftext|>", "<pad>"]
    ours = bpe.train(texts(), 1_500, pattern=pattern, special_tokens=specials)
    spelled = [(bpe.spell(left), bpe.spell(right)) for left, right in ours]
    assert len(ours) == 1_500 - 256 - 2
    assert spelled == tokenizers_merges(texts(), 1_500, pattern, specials)


def test_merges_are_those_of_counting_anew_each_time():
    for seed in range(60):
        source = random.Random(seed)
        alphabet = b"abcde"[: source.randint(1, 5)]   # few letters: ties, runs and words within words
        drawn = [bytes(source.choices(alphabet, k=source.randint(1, 9))) for _ in range(source.randint(1, 12))]
        words = {word: source.randint(1, 4) for word in drawn}
        merges = bpe.learn_merges(words, 25)
        assert merges == naive_merges(words, 25)
        assert len(bpe.ranks(merges)) == 256 + len(merges)   # no token is made twice
        assert bpe.learn_merges(words, 25, avoid=["ab", "aab"]) == naive_merges(words, 25, avoid=["ab", "aab"])


def test_the_example_of_wikipedia():
    assert bpe.learn_merges({b"aaabdaaabac": 1}, 3) == [(b"a", b"a"), (b"a", b"b"), (b"aa", b"ab")]


def test_no_merge_spells_a_special_token():
    texts = ["the theme of the thesis " * 5]
    assert b"the" in bpe.ranks(bpe.train(texts, 300))
    assert b"the" not in bpe.ranks(bpe.train(texts, 300, special_tokens=["the"]))


def test_byte_ids_follow_the_visible_alphabet():
    spelled = [bpe.spell(token) for token in bpe.ranks([])]
    assert spelled == sorted(spelled) and spelled[0] == "!" and len(set(spelled)) == 256


def test_counting_is_the_same_for_any_number_of_workers(random_text, monkeypatch):
    monkeypatch.setattr(patterns, "PIECE_CHARACTERS", 500)
    texts = [random_text(seed, 2_000) for seed in range(10)]
    assert bpe.count_words(iter(texts), "cl100k", workers=2) == bpe.count_words(texts, "cl100k")


def test_memory_of_counting_is_bounded_by_the_distinct_words():
    def peak(repeats):
        tracemalloc.start()
        bpe.count_words(("\n".join(english()) for _ in range(repeats)), "gpt2")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    english()   # imports the texts, which whoever calls it first pays for
    assert peak(4) < 1.1 * peak(1)


@pytest.mark.parametrize("letters", ["a", "ab", "abcdefghijklmnopqrstuvwxyz", " ", "\0"])
def test_one_word_of_a_million_letters_takes_seconds(letters):
    text = "".join(random.Random(0).choices(letters, k=1_000_000))
    merges = bpe.train([text], 1_000)
    assert len(merges) == len(set(merges)) > 10


def test_texts_without_pairs_give_no_merges():
    assert bpe.train([], 300) == bpe.train([""], 300) == bpe.train(["a b"], 256) == bpe.train(["a"], 300) == []


def test_impossible_input_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"vocab_size=256 is too small.*at least 257"):
        bpe.train(["text"], 256, special_tokens=["<|endoftext|>"])
    with pytest.raises(ValueError, match=r"lone surrogate, U\+D800.*errors='replace'"):
        bpe.train(["broken \ud800 text"], 300)
