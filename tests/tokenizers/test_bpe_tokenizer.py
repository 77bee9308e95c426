import random
import time

import pytest

from llm.tokenizers import patterns
from llm.tokenizers.tokenizer import Tokenizer
from llm.tokenizers.vocabulary import END_OF_TEXT

TEXTS = [
    "The quick brown fox, he said, doesn't jump over 13 lazy dogs.\n\nNor do we; they'll sleep. " * 3,
    "我们在学习语言模型。语言模型很有用，我们喜欢语言！\n" * 3,
    "def f(x):\n    return x + 1\n" * 3,
    "👍🏽 👩‍👩‍👧 naïve café 🇨🇳\r\n" * 3,
]


def trained(pattern="cl100k", vocab_size=600, **options):
    return Tokenizer.train(TEXTS, vocab_size, pattern=pattern, **options)


def any_kind():
    return [trained(), trained(""), Tokenizer.byte_level(), Tokenizer.character_level("".join(TEXTS))]


@pytest.mark.parametrize("pattern", [*patterns.PATTERNS, ""])
def test_every_text_comes_back(pattern, random_text):
    tokenizer = trained(pattern)
    texts = ["", "\0", "\r\n", "\u00a0", *TEXTS, *(random_text(seed) for seed in range(300))]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_training_fills_the_vocabulary_and_shortens_the_text():
    tokenizer = trained(vocab_size=400)
    assert tokenizer.vocab_size == 400 and tokenizer.eos_id == 399 and tokenizer.unused_ids == []
    assert len(tokenizer.encode(TEXTS[1])) < 0.5 * len(TEXTS[1].encode())


@pytest.mark.parametrize("tokenizer", any_kind()[:3])
def test_text_becomes_a_control_token_only_when_allowed(tokenizer):
    text = f"one{END_OF_TEXT}two"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    expected = [*tokenizer.encode("one"), tokenizer.eos_id, *tokenizer.encode("two")]
    assert tokenizer.encode(text, allowed_special=[END_OF_TEXT]) == expected
    assert tokenizer.encode(text, allowed_special="all") == expected


def test_of_two_control_tokens_the_longer_one_is_taken():
    tokenizer = trained(special_tokens=["<tool>", "<tool>s", END_OF_TEXT])
    assert tokenizer.encode("<tool>s", allowed_special="all") == [tokenizer.special_tokens["<tool>s"]]
    assert len(tokenizer.encode("<tool>s", allowed_special=["<tool>"])) == 2


def test_every_prefix_of_streamed_ids_joins_to_the_text_so_far(random_text):
    for tokenizer in (trained(), Tokenizer.byte_level()):
        for text in ["学习语言模型😀👩‍👩‍👧", "héllo wörld", *(random_text(seed) for seed in range(50))]:
            ids = tokenizer.encode(text)
            joined = ""
            for piece in tokenizer.stream(ids):
                joined += piece
                assert text.startswith(joined)   # so that no piece ever holds half a character
            assert joined == text
            assert all("".join(tokenizer.stream(ids[:n])) == tokenizer.decode(ids[:n]) for n in range(len(ids)))


def test_streamed_bytes_that_are_not_text_become_replacement_characters():
    tokenizer = Tokenizer.byte_level()
    for seed in range(300):
        data = random.Random(seed).randbytes(12)
        assert "".join(tokenizer.stream(data)) == tokenizer.decode(data) == data.decode(errors="replace")
    assert list(tokenizer.stream("é".encode()[:1])) == ["\ufffd"]   # an answer cut off inside a character


def test_show_prints_each_token_readably(capsys):
    Tokenizer.byte_level().show([104, 105, 10, 228, 256])
    shown = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert shown == ["'h'", "'i'", r"'\n'", r"b'\xe4'", END_OF_TEXT]


@pytest.mark.parametrize("letters", ["a", " ", "\n", "\r\n ", "'", "A", "ſ", "是", "1", "\u0301", "😀"])
def test_a_megabyte_of_one_character_takes_seconds(letters):
    text = "x" + letters * (1_000_000 // len(letters.encode())) + "x"
    for tokenizer in (trained("cl100k", 300), trained("o200k", 300)):
        start = time.process_time()
        ids = tokenizer.encode(text)
        assert time.process_time() - start < 10   # quadratic would be hours
        assert tokenizer.decode(ids) == text


def test_lone_surrogates_become_replacement_characters_but_no_token():
    assert trained().decode(trained().encode("a\ud800b")) == "a\ufffdb"


def test_impossible_settings_are_refused_with_a_remedy():
    for settings, message in [
        ({"pattern": "gpt-2"}, "gpt2, cl100k"),
        ({"special_tokens": ["<a>", "<a>"]}, "given once"),
        ({"special_tokens": ["x"]}, "two characters"),
        ({"vocab_size": 100}, "at least 257"),
    ]:
        with pytest.raises(ValueError, match=message):
            trained(**settings)
    with pytest.raises(ValueError, match=r"<\|user\|>"):
        trained().encode("text", allowed_special=["<|user|>"])
    with pytest.raises(ValueError, match="cl100k_base"):
        Tokenizer.named("cl100k")


def test_equal_fingerprints_mean_equal_tokenizers():
    others = [trained("gpt2"), trained(special_tokens=["<|end|>"])]
    prints = [tokenizer.fingerprint for tokenizer in [*any_kind(), *others]]
    assert len(set(prints)) == len(prints) and prints[0] == trained().fingerprint


@pytest.mark.parametrize("texts", [[], [""], ["a", "b"]])
def test_texts_without_a_pair_of_characters_teach_nothing_and_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"no two characters side by side.*Tokenizer\.byte_level"):
        Tokenizer.train(texts, vocab_size=300)
    assert Tokenizer.train(texts, vocab_size=257).vocab_size == 257   # no merge was asked for


def test_a_single_string_is_not_taken_for_texts_of_one_character() -> None:
    with pytest.raises(ValueError, match="give a list"):
        Tokenizer.train("low lower lowest", vocab_size=261)
