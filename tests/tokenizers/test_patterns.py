import pytest
import regex

from llm.tokenizers import patterns
from llm.tokenizers.formats import PUBLISHED as PUBLISHED_ELSEWHERE

PUBLISHED = PUBLISHED_ELSEWHERE | {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}



@pytest.mark.parametrize("name", PUBLISHED)
def test_patterns_split_like_their_published_forms(name, random_text):
    for seed in range(1_000):
        text = random_text(seed)
        assert patterns.split(text, name) == regex.findall(PUBLISHED[name], text)


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_patterns_split_like_the_pre_tokenizers_of_hugging_face(name, random_text):
    pre = pytest.importorskip("tokenizers").pre_tokenizers
    from tokenizers import Regex

    split = pre.Split(Regex(patterns.PATTERNS[name]), "isolated")
    if name == "gpt2":
        split = pre.ByteLevel(add_prefix_space=False)
    elif name == "digits":
        split = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    for seed in range(1_000):
        text = random_text(seed)
        ends = [end for _, (_, end) in split.pre_tokenize_str(text)]
        words = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        assert patterns.split(text, name) == words


@pytest.mark.parametrize("name", patterns.PATTERNS)
def test_cutting_a_text_into_pieces_changes_no_word(name, random_text, monkeypatch, tmp_path):
    monkeypatch.setattr(patterns, "PIECE_CHARACTERS", 10)
    for seed in range(100):
        text = random_text(seed, 200)
        (tmp_path / "text.txt").write_bytes(text.encode())
        for pieces in (list(patterns.pieces(text)), list(patterns.read_pieces(tmp_path / "text.txt"))):
            assert "".join(pieces) == text
            assert [w for piece in pieces for w in patterns.split(piece, name)] == patterns.split(text, name)


def test_long_texts_are_cut_into_pieces_of_about_the_size_asked_for(monkeypatch):
    monkeypatch.setattr(patterns, "PIECE_CHARACTERS", 100)
    assert max(map(len, patterns.pieces("a few words, 说了几句话。\n" * 100))) < 130


def test_wrong_patterns_are_refused_with_a_remedy():
    for pattern, message in [
        ("gpt-2", "not one of gpt2, cl100k"),
        (r"(\s+)|\S+", "capturing"),
        (r"[a-", "no regular expression"),
    ]:
        with pytest.raises(ValueError, match=message):
            patterns.resolve(pattern)
    with pytest.raises(ValueError, match="does not match every character"):
        patterns.split("some words", r"\w+")


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("café ".encode("latin-1") * 3)
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 \(bytes e9\)"):
        list(patterns.read_pieces(tmp_path / "latin.txt"))
