"""Tokenizers in GGUF: ids, control tokens and templates come back, also from files that hold only llama.cpp's part."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llm
from llm.interop import gguf
from llm.interop.gguf.vocabulary import PRE_TOKENIZERS, WHOLE_JSON
from llm.tokenizers import patterns
from llm.tokenizers.tokenizer import Tokenizer
from llm.tokenizers.vocabulary import WHOLE_TEXT
from tests.conftest import TINY, random_model
from tests.interop.test_gguf import refusal, rewritten
from tests.tokenizers.test_bpe_tokenizer import TEXTS, any_kind, trained
from tests.tokenizers.test_families import FAMILIES, write_family
from tests.tokenizers.texts import check_ids, random_text


def written(tokenizer: Tokenizer, folder: Path, spare: int = 3) -> Path:
    """A file with a tiny model and this tokenizer."""
    config = dataclasses.replace(TINY["llama"], vocab_size=tokenizer.vocab_size + spare, num_layers=1)
    gguf.save(random_model(config), folder / "model.gguf", kind="f32", tokenizer=tokenizer)
    return folder / "model.gguf"


def read(path: Path) -> Tokenizer:
    tokenizer = gguf.vocabulary.read_tokenizer(gguf.GGUFFile(path))
    assert tokenizer is not None
    return tokenizer


def parts(tokenizer: Tokenizer) -> tuple[Any, ...]:
    return (tokenizer.fingerprint, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token,
            tokenizer.chat_template)


@pytest.mark.parametrize("pattern", patterns.PATTERNS)
def test_a_tokenizer_comes_back(pattern: str, tmp_path: Path) -> None:
    vocabulary = trained(pattern, special_tokens=["<|im_start|>", "<|im_end|>"]).vocabulary
    tokenizer = Tokenizer(vocabulary, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template="{{ 学 }}\r\n")
    assert parts(read(written(tokenizer, tmp_path))) == parts(tokenizer)


def test_a_tokenizer_that_llama_cpp_has_no_words_for_comes_back_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for tokenizer in any_kind():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            path = written(tokenizer, tmp_path)
        again = read(path)
        assert parts(again) == parts(tokenizer)
        vocabulary = tokenizer.vocabulary
        has_words = not vocabulary.is_closed and vocabulary.pattern != WHOLE_TEXT
        assert (gguf.GGUFFile(path).metadata["tokenizer.ggml.model"] == "gpt2") == (not caplog.text) == has_words


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_come_back_from_what_llama_cpp_reads(name: str, tmp_path: Path) -> None:
    """Without the copy of tokenizer.json, as its own converters write their files."""
    ours = Tokenizer.load(write_family(name, tmp_path / "family"))
    path = rewritten(written(ours, tmp_path), drop=WHOLE_JSON)
    again = read(path)
    assert type(again) is Tokenizer
    assert parts(again) == parts(ours)
    again.save(tmp_path / "again")
    check_ids(tmp_path / "again", again, 200)


def test_ids_beyond_the_tokenizer_are_marked_as_unused(tmp_path: Path) -> None:
    tokenizer = trained("gpt2", vocab_size=300)
    metadata = gguf.GGUFFile(written(tokenizer, tmp_path, spare=2)).metadata
    assert metadata["tokenizer.ggml.tokens"][-2:] == ["[PAD300]", "[PAD301]"]
    assert metadata["tokenizer.ggml.token_type"].tolist()[-3:] == [3, 5, 5]
    assert read(rewritten(tmp_path / "model.gguf", drop=WHOLE_JSON)).vocab_size == 300
    with pytest.raises(ValueError, match="the tokenizer has 300 ids, and the model knows 299; give the tokenizer"):
        written(tokenizer, tmp_path, spare=-1)


def test_a_file_says_whether_texts_begin_with_a_token(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, adds_bos in (("llama3", True), ("smollm2", False)):
        path = written(Tokenizer.load(write_family(name, tmp_path / name)), tmp_path)
        assert gguf.GGUFFile(path).metadata["tokenizer.ggml.add_bos_token"] is adds_bos
        tokenizer = read(rewritten(path, drop=WHOLE_JSON))
        tokenizer.save(tmp_path / "again")
        ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")("hi")["input_ids"]
        assert ids == [*[tokenizer.bos_id] * adds_bos, *tokenizer.encode("hi")]


def test_where_the_pre_tokenizer_is_not_said_it_is_llama_cpps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(trained("llamacpp"), tmp_path)
    plain = gguf.GGUFFile(rewritten(path, drop=WHOLE_JSON))
    assert plain.metadata["tokenizer.ggml.pre"] == "default"
    del plain.metadata["tokenizer.ggml.pre"]
    with caplog.at_level(logging.WARNING):
        tokenizer = gguf.vocabulary.read_tokenizer(plain)
    assert "does not say how its tokenizer cuts text into words" in caplog.text
    assert tokenizer is not None and tokenizer.vocabulary.pattern == patterns.PATTERNS["llamacpp"]


SPM = {"tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "e", "l", "o", "a",
                  "▁h", "he", "ll", "el", "lo", "▁he", "llo", "▁hello", "▁▁", "hell"]}


@pytest.fixture
def sentencepiece(tmp_path: Path) -> Path:
    """A file with a SentencePiece vocabulary, as TinyLlama's and Mistral's."""
    path = written(Tokenizer.byte_level(), tmp_path, spare=len(SPM["tokens"]) - 257)
    count = len(SPM["tokens"])
    values = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": SPM["tokens"],
        "tokenizer.ggml.scores": np.array([0.0] * 265 + [-float(place) for place in range(count - 265)], dtype="<f4"),
        "tokenizer.ggml.token_type": np.array([2, 3, 3, *[6] * 256, *[1] * (count - 259)], dtype="<i4"),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.pre": "default", "tokenizer.ggml.merges": None,
    }
    return rewritten(path, values=values, drop=WHOLE_JSON)


def test_a_sentencepiece_vocabulary_gives_the_ids_of_transformers(sentencepiece: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = read(sentencepiece)
    theirs = transformers.AutoTokenizer.from_pretrained(sentencepiece.parent, gguf_file=sentencepiece.name,
                                                        add_bos_token=False, add_eos_token=False)
    assert (ours.bos_id, ours.eos_id) == (1, 2)
    for text in ["hello", "hell hello  he  llo", "学 hello", "o", "a" * 9,
                 *("".join(c for c in random_text(seed) if c not in "<>") for seed in range(300))]:
        if not text.startswith(" "):   # before which theirs adds no space, unlike SentencePiece, Llama 2 and llama.cpp
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], repr(text)
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(("values", "message"), [
    ({"tokenizer.ggml.pre": "mystery"}, "'tokenizer.ggml.pre' = 'mystery' is not known; it must be one of gpt-2, "),
    ({"tokenizer.ggml.model": "bert"}, "its tokenizer is of the kind 'bert', which is not supported; only gpt2"),
    ({"tokenizer.ggml.tokens": ["a"] * 303}, "its 303 tokens have 300 types of which each must be from 1 to 6"),
    ({"tokenizer.ggml.token_type": np.full(300, 9, dtype="<i4")}, "must be from 1 to 6; it is damaged"),
    ({"tokenizer.ggml.tokens": ["a"] * 300}, "299 of its 300 tokens stand in it twice"),
    ({"tokenizer.ggml.tokens": np.zeros(300, dtype="<f4")}, "'tokenizer.ggml.tokens' is an array of 300, not of type"),
    ({"tokenizer.ggml.merges": ["a b c"]}, "its merge 'a b c' is not of two tokens"),
    ({"tokenizer.ggml.merges": ["a ŷŷ"]}, "its tokenizer is damaged, or no tokenizer (ValueError: its merge"),
    ({"tokenizer.ggml.eos_token_id": 300}, "its eos_token has the id 300, and it has 300 tokens; it is damaged"),
    ({"tokenizer.ggml.add_bos_token": 1, "tokenizer.ggml.bos_token_id": 1}, "'tokenizer.ggml.add_bos_token' is 1, not"),
    ({"tokenizer.chat_template": 3}, "'tokenizer.chat_template' is 3, not of type str"),
    ({"tokenizer.ggml.model": "llama"}, "it has no 'tokenizer.ggml.scores'"),
    ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": np.zeros(2, dtype="<f4")}, "tokens have 2 scores"),
])
def test_a_damaged_vocabulary_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(trained("gpt2", vocab_size=300), tmp_path, spare=0)
    assert message in refusal(rewritten(path, values=values, drop=WHOLE_JSON))


@pytest.mark.parametrize(("content", "message"), [
    ("{", f"'{WHOLE_JSON}' is not JSON"), ("[" * 100_000, "is not JSON"), ("[]", "has no list of added tokens"),
    (json.dumps({"added_tokens": [{"id": [], "content": "a"}]}), "has no list of added tokens"),
    (json.dumps({"added_tokens": []}), "its eos_token has the id 299, which is no added token"),
    (json.dumps({"added_tokens": [{"id": 299, "content": "a"}]}), "is damaged, or no tokenizer (ValueError: it has no"),
])
def test_a_damaged_copy_of_tokenizer_json_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = written(trained("gpt2", vocab_size=300), tmp_path, spare=0)
    assert message in refusal(rewritten(path, values={WHOLE_JSON: content}))


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    path = written(trained("gpt2", vocab_size=300), tmp_path, spare=0)
    table = json.loads(gguf.GGUFFile(path).metadata[WHOLE_JSON])
    table["added_tokens"].append(table["added_tokens"][0] | {"id": 900, "content": "<|more|>"})
    message = refusal(rewritten(path, values={WHOLE_JSON: json.dumps(table)}))
    assert "its tokenizer has 901 ids, and its model 300; it is damaged" in message


def test_the_table_of_names_knows_the_patterns() -> None:
    assert {pre.pattern for pre in PRE_TOKENIZERS.values()} == set(patterns.PATTERNS)
    for name, pre in PRE_TOKENIZERS.items():
        tokenizer = llm.Tokenizer.train(TEXTS, 400, pattern=pre.pattern)
        first = gguf.vocabulary._pre_name(tokenizer)
        assert first is not None and PRE_TOKENIZERS[first].pattern == pre.pattern, name
