"""Laws of characters and bytes: text comes back as it went in, here and in transformers, and nothing is guessed."""

import json
import random
from pathlib import Path

import pytest

from llm.tokenizers.bpe import CHARACTER_OF_BYTE
from llm.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

TEXTS = [
    "", " ", "\n", "First Citizen:\nBefore we proceed any further, hear me speak.\n",
    "  two  spaces \t\ttabs\r\nCRLF\r\r", "西游记\u3000第一回\u3000灵根育孕源流出，心性修持大道生。", "é e\u0301 ﬁ Å",
    "👩‍👩‍👧‍👦🇨🇳 👍🏽", "a\x00b\x0b\x0c\x1c\x7f\x85\u2028\ufeff", "don't , ' . ! 's",
    "x" * 300,
]
MANY = "".join(sorted(set("".join(TEXTS))))


def random_text(seed: int) -> str:
    generator = random.Random(seed)
    planes = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return "".join(chr(generator.randrange(*generator.choice(planes))) for _ in range(50))


@pytest.fixture(params=["characters", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.character_level(MANY) if request.param == "characters" else Tokenizer.byte_level()


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "".join(tokenizer.stream(tokenizer.encode(text))) == text


@pytest.mark.parametrize("seed", range(20))
def test_any_text_comes_back(seed: int) -> None:
    text = random_text(seed)
    for tokenizer in (Tokenizer.character_level(text), Tokenizer.byte_level()):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_character_is_a_token_and_a_byte_is_a_token() -> None:
    text = TEXTS[5] + TEXTS[7]
    letters = Tokenizer.character_level(text)
    alphabet = sorted(set(text))
    assert letters.encode(text) == [alphabet.index(letter) for letter in text]
    assert (letters.vocab_size, letters.eos_id, letters.special_tokens) == (len(alphabet), None, {})
    assert Tokenizer.byte_level().encode(text) == list(text.encode())
    assert (Tokenizer.byte_level().vocab_size, Tokenizer.byte_level().eos_id) == (257, 256)


def test_the_alphabet_does_not_depend_on_the_order_of_the_text() -> None:
    assert Tokenizer.character_level("cabbage").vocabulary == Tokenizer.character_level("egabc").vocabulary


def test_characters_outside_the_alphabet_are_named() -> None:
    tokenizer = Tokenizer.character_level("abc")
    with pytest.raises(ValueError, match=r"^2 characters of the text .*: 'Z' \(U\+005A\), '猴' \(U\+7334\); use"):
        tokenizer.encode("aZb猴")
    with pytest.raises(ValueError, match=r"'\\ud83d' \(U\+D83D\)"):
        tokenizer.encode("a\ud83d")


@pytest.mark.parametrize(("text", "message"), [("", "the text is empty"), ("a\udc80", "half of a surrogate pair")])
def test_an_alphabet_needs_characters(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokenizer.character_level(text)


def test_text_never_becomes_a_control_token_unless_asked() -> None:
    tokenizer = Tokenizer.byte_level()
    assert tokenizer.encode(f"a{END_OF_TEXT}") == list(f"a{END_OF_TEXT}".encode())
    assert tokenizer.encode(f"a{END_OF_TEXT}", allowed_special=[END_OF_TEXT]) == [97, 256]
    assert tokenizer.decode([97, 256]) == f"a{END_OF_TEXT}"
    assert tokenizer.encode_document("a").tolist() == [97, 256]
    assert Tokenizer.character_level("ab").encode_document("ba").tolist() == [1, 0]


def test_byte_counts_add_up_to_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        counts = tokenizer.byte_counts
        assert sum(counts[token] for token in tokenizer.encode_document(text)) == len(text.encode())
    assert tokenizer.unused_ids == []


@pytest.mark.parametrize("token_id", [-1, 257])
def test_ids_outside_the_vocabulary_are_named(token_id: int) -> None:
    with pytest.raises(ValueError, match=f"id {token_id} is outside the vocabulary of 257"):
        Tokenizer.byte_level().decode([65, token_id])
    with pytest.raises(ValueError, match=f"id {token_id} is outside the vocabulary of 257"):
        list(Tokenizer.byte_level().stream([token_id]))


def test_streaming_holds_a_character_back_until_it_is_whole() -> None:
    tokenizer = Tokenizer.byte_level()
    assert list(tokenizer.stream("n猴é👍".encode())) == ["n", "猴", "é", "👍"]


@pytest.mark.parametrize("data", [b"a\xff\xfeb", "猴".encode()[:2], b"\xf0\x9f\x91", b"\xe7z", b"\x80",
                                  bytes(range(256))])
def test_streaming_bytes_that_are_not_text_gives_what_decoding_gives(data: bytes) -> None:
    tokenizer = Tokenizer.byte_level()
    assert "".join(tokenizer.stream(data)) == tokenizer.decode(data) == data.decode("utf-8", errors="replace")


def test_saving_and_loading_keeps_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for again in (Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "tokenizer.json")):
        ours, theirs = tokenizer.vocabulary, again.vocabulary
        assert (theirs.ranks, theirs.special_tokens, theirs.is_closed) == (
            ours.ranks, ours.special_tokens, ours.is_closed)
        assert again.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(("written", "length"), [("32", 32), ("1000000000000000019884624838656", None), ("1e30", None),
                                                 ("null", None), ("512.0", 512)])
def test_the_length_that_a_folder_names_is_kept_and_transformers_huge_one_is_none(
        written: str, length: int | None, tmp_path: Path) -> None:
    Tokenizer.byte_level().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {written}}}', encoding="utf-8")
    again = Tokenizer.load(tmp_path)
    again.save(tmp_path)
    assert Tokenizer.load(tmp_path).max_length == again.max_length == length
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved.get("model_max_length") == length


@pytest.mark.parametrize("written", ["0", '"long"', "[]", "NaN"])
def test_a_length_that_is_none_is_named(written: str, tmp_path: Path) -> None:
    Tokenizer.byte_level().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(f'{{"model_max_length": {written}}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"model_max_length = .* is no number of tokens from 1 on"):
        Tokenizer.load(tmp_path)


def test_fingerprints_never_change() -> None:
    """They stand in the headers of people's token files and in the records of their runs."""
    assert Tokenizer.byte_level().fingerprint == "85c89347ead9b657e4416a3bc255f3aeaaf974c5772e354b6ae058f9a6be76c4"
    assert Tokenizer.character_level("abc\n猴").fingerprint == (
        "03d040f3072708c3873bde00b7ace1c9b035b420513a21d1b556cc683427c40a")
    trained = Tokenizer.train(["low lower lowest"], 261, pattern="cl100k")
    assert trained.fingerprint == "2154f7a213510354ea48fffa5fa887ba72c919bbc45cb9957c45c19963f54f5c"
    assert Tokenizer.character_level("abc").fingerprint != Tokenizer.character_level("abd").fingerprint


def test_transformers_gives_the_same_ids_and_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.eos_id
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text


def test_transformers_keeps_our_ids_under_every_model_type_we_save(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for kind in ("gpt2", "qwen3", "llama"):
        tokenizer.save(tmp_path / kind)
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)
        assert theirs(TEXTS[5] + " x")["input_ids"] == tokenizer.encode(TEXTS[5] + " x")


def test_the_byte_alphabet_is_printable_and_unambiguous() -> None:
    alphabet = set(CHARACTER_OF_BYTE.values())
    assert len(alphabet) == len(CHARACTER_OF_BYTE) == 256
    assert all(letter.isprintable() and not letter.isspace() for letter in alphabet)


CLOSED = '"decoder": {"type": "Fuse"}}'
BYTE_LEVEL = '"pre_tokenizer": {"type": "ByteLevel", "use_regex": false}}'


@pytest.mark.parametrize(("content", "message"), [
    ("{", "is not JSON"),
    ("\xff", "is not JSON"),
    ("[]", "is damaged"),
    ("{}", "is damaged"),
    ('{"model": {"type": "BPE"}, ' + CLOSED, "is damaged"),
    ('{"model": {"type": "BPE", "vocab": {"a": "x"}}, ' + CLOSED, "is damaged"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": [{"content": "x"}], ' + CLOSED, "is damaged"),
    ('{"model": {"type": "BPE", "vocab": {}}, ' + CLOSED, "0 tokens"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}}, ' + CLOSED, "2 tokens with 1 different ids"),
    ('{"model": {"type": "BPE", "vocab": {"a": 0}}, ' + BYTE_LEVEL, "cannot be reproduced exactly"),
    ('{"model": {"type": "BPE", "vocab": {"\\u3000": 0}}, ' + BYTE_LEVEL, "cannot be reproduced exactly"),
    ('{"model": {"type": "Unigram", "vocab": []}}', "0 tokens"),
    ('{"model": {"type": "Unigram", "vocab": [1]}}', "cannot be reproduced exactly"),
])
def test_a_damaged_or_foreign_file_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    pytest.importorskip("tokenizers")   # what is foreign is shown to it
    (tmp_path / "tokenizer.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.json does not exist; a tokenizer is"):
        Tokenizer.load(tmp_path)
