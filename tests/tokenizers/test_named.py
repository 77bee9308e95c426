"""The vocabularies of OpenAI, which tests use where TIKTOKEN_CACHE_DIR holds them (tests do not download)."""

import os

import pytest
import tiktoken

from llm.tokenizers.tokenizer import NAMED, Tokenizer
from tests.tokenizers.texts import MANY

needs_cache = pytest.mark.skipif(
    "TIKTOKEN_CACHE_DIR" not in os.environ, reason="TIKTOKEN_CACHE_DIR is unset, and tests download nothing"
)


def check_against_tiktoken(name, random_text, count):
    ours, theirs = Tokenizer.named(name), tiktoken.get_encoding(name)
    specials = [*theirs.special_tokens_set]
    for seed in range(count):
        text = random_text(seed, 60)
        assert ours.encode(text) == theirs.encode_ordinary(text)
        text += specials[seed % len(specials)] + text
        assert ours.encode(text, allowed_special="all") == theirs.encode(text, allowed_special="all")
        assert ours.decode(ours.encode(text)) == text


@needs_cache
@pytest.mark.parametrize("name", NAMED)
def test_named_vocabularies_give_the_ids_of_tiktoken(name, random_text):
    check_against_tiktoken(name, random_text, 500)


@needs_cache
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
def test_named_vocabularies_give_the_ids_of_tiktoken_for_many_strings(name, random_text):
    check_against_tiktoken(name, random_text, MANY)


@needs_cache
def test_ids_that_stand_for_nothing_are_known_and_decode_to_nothing():
    tokenizer = Tokenizer.named("cl100k_base")
    assert tokenizer.vocab_size == 100_277 and tokenizer.eos_id == 100_257
    assert tokenizer.unused_ids == [100_256, *range(100_261, 100_276)]
    assert tokenizer.decode(tokenizer.unused_ids) == ""


@needs_cache
@pytest.mark.parametrize("name", ["gpt2", pytest.param("cl100k_base", marks=pytest.mark.slow)])
def test_auto_tokenizer_reads_a_saved_named_vocabulary_with_equal_ids(name, random_text, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.named(name)
    ours.save(tmp_path)
    theirs, again = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    assert again.fingerprint == ours.fingerprint
    for seed in range(500):
        text = random_text(seed, 60)
        assert theirs(text)["input_ids"] == again.encode(text) == ours.encode(text)
    for text, token_id in ours.special_tokens.items():   # behind a gap in the ids
        assert theirs(text)["input_ids"] == [token_id] == again.encode(text, allowed_special="all")


@needs_cache
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cl100k_base", "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
        ("o200k_base", "fb374d419588a4632f3f557e76b4b70aebbca790"),
    ],
)
def test_published_rank_files_are_known_by_their_hash(name, file, tmp_path):
    Tokenizer.named(name)   # the cache now has the file, under the sha1 of its address
    path = tmp_path / f"{name}.tiktoken"
    with open(os.path.join(os.environ["TIKTOKEN_CACHE_DIR"], file), "rb") as cached:
        path.write_bytes(cached.read())
    assert Tokenizer.load(path).fingerprint == Tokenizer.named(name).fingerprint


def test_without_cache_and_network_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")   # a port that nobody serves
    with pytest.raises(OSError, match=r"gpt2 is not in tiktoken's cache.*TIKTOKEN_CACHE_DIR"):
        Tokenizer.named("gpt2")
