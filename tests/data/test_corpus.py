"""Laws of `--data`: which part is held out, whose ids they are, and that nothing contradictory is read in silence."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.data.config import DataConfig
from llm.data.corpus import Corpus, load_corpus
from llm.data.tokenfile import write_token_file
from llm.tokenizers.tokenizer import Tokenizer

BYTES = Tokenizer.byte_level()
TEXT = "0123456789" * 20


def corpus(data: Path, *, model_tokenizer: Tokenizer | None = None, **settings: Any) -> Corpus:
    settings = {"tokenizer": None if model_tokenizer or Path(data).suffix == ".bin" else "byte", **settings}
    return load_corpus(DataConfig(data=str(data), **settings), tokenizer=model_tokenizer)


def text_file(path: Path, text: str = TEXT) -> Path:
    path.write_bytes(text.encode())
    return path


def token_file(path: Path, ids: list[int], *, tokenizer: Tokenizer = BYTES) -> Path:
    write_token_file(path, [np.array(ids)], vocab_size=tokenizer.vocab_size, fingerprint=tokenizer.fingerprint)
    return path


def test_the_last_tenth_of_a_text_is_validation_cut_before_tokenizing(tmp_path: Path) -> None:
    text = "猴王" * 50
    found = corpus(text_file(tmp_path / "a.txt", text))
    assert BYTES.decode(found.train) == "猴王" * 45 + "<|endoftext|>"   # no character is torn
    assert BYTES.decode(found.val) == "猴王" * 5 + "<|endoftext|>"
    assert found.train.dtype == found.val.dtype == np.uint16


def test_characters_take_their_alphabet_from_the_validation_text_too(tmp_path: Path) -> None:
    found = corpus(text_file(tmp_path / "a.txt", "a" * 99 + "b"), tokenizer="char")
    assert found.tokenizer is not None and (found.vocab_size, found.tokenizer.vocab_size) == (2, 2)
    assert found.val.tolist() == [0] * 9 + [1]
    named = corpus(tmp_path / "a.txt", tokenizer="char", val=str(text_file(tmp_path / "b.txt", "abc")))
    assert named.vocab_size == 3


def test_a_named_validation_file_leaves_the_data_whole(tmp_path: Path) -> None:
    found = corpus(text_file(tmp_path / "a.txt"), val=str(text_file(tmp_path / "b 验证.txt", "held out")))
    assert BYTES.decode(found.train[:-1]) == TEXT
    assert BYTES.decode(found.val[:-1]) == "held out"


def test_each_document_ends_with_the_end_of_text_token(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.txt", "\n<|endoftext|>\n".join(f"text {number}" for number in range(30)))
    found = corpus(path)
    assert sum((part == BYTES.eos_id).sum() for part in (found.train, found.val)) == 30
    assert found.train[-1] == found.val[-1] == BYTES.eos_id


def test_limit_takes_the_first_documents(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.jsonl", "\n".join(f'{{"text": "row {number}"}}' for number in range(9)))
    found = corpus(path, limit=3)
    texts = "".join(BYTES.decode(part) for part in (found.train, found.val)).split("<|endoftext|>")
    assert sorted(texts) == ["", "row 0", "row 1", "row 2"]


def test_limit_on_a_single_document_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--limit 3 counts .* single one; separate documents by lines of '<\|endof"):
        corpus(text_file(tmp_path / "a.txt"), limit=3)
    with pytest.raises(ValueError, match=r"--limit counts documents; .* is a token file: cut it when it is made"):
        corpus(token_file(tmp_path / "a.bin", [1, 2, 3]), limit=3)


def test_the_last_tenth_of_a_token_file_is_validation(tmp_path: Path) -> None:
    found = corpus(token_file(tmp_path / "a.bin", list(range(100))))
    assert (found.train.tolist(), found.val.tolist()) == (list(range(90)), list(range(90, 100)))
    assert (found.vocab_size, found.tokenizer) == (257, None)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_the_last_tenth_of_a_raw_stream_is_validation(tmp_path: Path, dtype: Any) -> None:
    np.arange(0, 200, 2, dtype=dtype).tofile(tmp_path / "a.bin")
    found = corpus(tmp_path / "a.bin", raw_dtype=dtype)
    assert found.val.tolist() == list(range(180, 200, 2))
    assert (found.vocab_size, found.tokenizer) == (199, None)


def test_the_vocabulary_of_a_raw_stream_covers_its_validation_file(tmp_path: Path) -> None:
    np.array([1, 2, 3], dtype=np.uint16).tofile(tmp_path / "a.bin")
    np.array([1, 9], dtype=np.uint16).tofile(tmp_path / "b.bin")
    assert corpus(tmp_path / "a.bin", val=str(tmp_path / "b.bin"), raw_dtype="uint16").vocab_size == 10


def test_a_token_file_brings_the_tokenizer_beside_it(tmp_path: Path) -> None:
    path = token_file(tmp_path / "a.bin", list(range(40)))
    BYTES.save(tmp_path)
    tokenizer = corpus(path).tokenizer
    assert tokenizer is not None and tokenizer.fingerprint == BYTES.fingerprint
    assert corpus(path, tokenizer="byte").tokenizer is not None


@pytest.mark.parametrize("how", ["beside", "named", "of the model"])
def test_a_token_file_of_another_tokenizer_is_refused(tmp_path: Path, how: str) -> None:
    path, letters = token_file(tmp_path / "a.bin", [1, 2, 3, 4]), Tokenizer.character_level("abcdefgh")
    letters.save(tmp_path if how == "beside" else tmp_path / "letters")
    settings = {"tokenizer": str(tmp_path / "letters")} if how == "named" else {}
    with pytest.raises(ValueError, match=r"a.bin was written with another tokenizer"):
        corpus(path, model_tokenizer=letters if how == "of the model" else None, **settings)


@pytest.mark.parametrize("settings", [{}, {"raw_dtype": "uint16", "tokenizer": "byte"}])
def test_ids_beyond_the_vocabulary_are_refused_before_training(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = token_file(tmp_path / "a.bin", [1, 2, 3, 4])
    path.write_bytes(path.read_bytes()[64 if settings else 0 : -2] + b"\x01\x01")   # 257
    with pytest.raises(ValueError, match=r"a.bin holds id 257, but the vocabulary has only 257 ids; check --tokenizer"):
        corpus(path, **settings)


def test_the_model_s_tokenizer_may_not_be_contradicted(tmp_path: Path) -> None:
    path = text_file(tmp_path / "a.txt")
    assert corpus(path, model_tokenizer=BYTES, tokenizer="byte").tokenizer is BYTES
    with pytest.raises(ValueError, match=r"--tokenizer char is not the tokenizer .*; leave --tokenizer out"):
        corpus(path, model_tokenizer=BYTES, tokenizer="char")


def test_characters_that_the_model_has_never_seen_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("'Ω' (U+03A9)")):
        corpus(text_file(tmp_path / "a.txt", TEXT + "Ω"), model_tokenizer=Tokenizer.character_level(TEXT))


@pytest.mark.parametrize(("settings", "message"), [
    ({"data": ""}, "--data is missing; name a text file, a folder of them or a token file"),
    ({"data": "nowhere.txt"}, "--data nowhere.txt: there is no such file or folder"),
    ({"val": "nowhere.txt"}, "--val nowhere.txt: there is no such file or folder"),
    ({"val": "tokens.bin"}, "--data text.txt and --val tokens.bin: one is a token file"),
    ({"data": "tokens.bin", "val": "text.txt"}, "one is a token file, the other is text; give both as"),
    ({"data": "tokens.bin", "tokenizer": "char"}, "--tokenizer char is learned from a text"),
    ({"raw_dtype": "uint16"}, "--raw-dtype uint16 is for streams of ids, files that end in .bin; text.txt is"),
    ({"val": "text.txt", "val_fraction": 0.2}, "--val-fraction 0.2 has no effect, since text.txt is the validation"),
    ({"tokenizer": "chra"}, "--tokenizer chra is none of char, byte, bpe:SIZE"),
    ({"data": "short.txt", "tokenizer": "char"}, "short.txt gives 1 token for validation"),
    ({"data": "one.bin"}, "one.bin gives 0 tokens for training"),
])
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    text_file(Path("text.txt"))
    text_file(Path("short.txt"), "abc")
    token_file(Path("tokens.bin"), list(range(40)))
    token_file(Path("one.bin"), [1])
    with pytest.raises(ValueError) as caught:
        load_corpus(DataConfig(**{"data": "text.txt", **settings}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"context": 0}, {"limit": 0},
                                      {"val_fraction": float("nan")}])
def test_numbers_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    [(name, value)] = settings.items()
    with pytest.raises(ValueError, match=f"{name}={value} must"):
        DataConfig(**settings)


def test_the_fingerprint_sees_every_token_and_where_the_cut_is(tmp_path: Path) -> None:
    path = token_file(tmp_path / "a.bin", list(range(40)))
    same, other_cut = corpus(path).fingerprint, corpus(path, val_fraction=0.2).fingerprint
    assert corpus(token_file(tmp_path / "b.bin", list(range(40)))).fingerprint == same
    changed = corpus(token_file(tmp_path / "b.bin", [*range(39), 41])).fingerprint
    assert len({same, other_cut, changed}) == 3
