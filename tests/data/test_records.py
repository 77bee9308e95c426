"""Laws of reading text: nothing is changed, nothing is lost without a word, and a bad file is named."""

import itertools
import json
from pathlib import Path

import pytest

from llm.data.records import read_documents, split_documents

SEPARATOR = "<|endoftext|>"


def read(path: Path, content: str | bytes | None = None, *, separator: str = SEPARATOR) -> list[str]:
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_documents(path, separator=separator)


@pytest.mark.parametrize("text", [
    "one\ntwo\n", "\r\nCRLF\r\n", "  indented, trailing  \n\n\n", "第一回\u3000灵根育孕\n", "\x0b\x0c\u2028x",
    f"inline {SEPARATOR} stays text", f"{SEPARATOR} with more on the line",
])
def test_a_text_without_separator_lines_is_one_document_to_the_character(tmp_path: Path, text: str) -> None:
    assert read(tmp_path / "a.txt", text) == [text]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("end", ["", "{n}", "{n}{s}", "{n}{s}{n}", "{n}{s}{n}{n}{s}{n}{n}"])
def test_separator_lines_end_documents_with_every_kind_of_line_break(tmp_path: Path, newline: str, end: str) -> None:
    text = f"one{newline}more{newline}{SEPARATOR}{newline}two" + end.format(n=newline, s=SEPARATOR)
    assert read(tmp_path / "a.txt", text) == [f"one{newline}more", "two"]


def test_only_one_line_break_belongs_to_the_separator(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", f"one\n\n{SEPARATOR}\n\ntwo\n\n") == ["one\n", "\ntwo\n"]


@pytest.mark.parametrize("separator", ["---", " * * * ", "第", ""])
def test_the_separator_may_be_any_line(tmp_path: Path, separator: str) -> None:
    assert read(tmp_path / "a.txt", f"one\n{separator}\ntwo", separator=separator) == ["one", "two"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read(tmp_path / "a.txt", b"\xef\xbb\xbfhello") == ["hello"]
    assert read(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "hello"}') == ["hello"]


def test_rows_keep_their_order_and_every_character(tmp_path: Path) -> None:
    texts = ["one\ntwo", "第一回", "\u2028 \x85 😀 \\ \"", f"a\n{SEPARATOR}\nb"]   # Unicode's line breaks end no row
    rows = [json.dumps({"text": text, "other": 1}, ensure_ascii=False) for text in texts]
    assert read(tmp_path / "a.jsonl", "\r\n".join(rows) + "\r\n\r\n") == texts
    assert read(tmp_path / "b.JSONL", "\n".join(rows)) == texts


@pytest.mark.parametrize(("row", "message"), [
    ("{", "line 2: not JSON"),
    ("[1]", 'line 2: no "text"; each line must look like {"text": "..."}'),
    ('"text"', 'line 2: no "text"'),
    ('{"txt": "a"}', 'line 2: no "text"'),
    ('{"text": 3}', 'line 2: no "text"'),
    ('{"text": "\\ud83d"}', "line 2: '\\ud83d' is half of a surrogate pair"),
    ('{"text": ' + "9" * 5000 + "}", "line 2: not JSON"),
    ("[" * 100_000, "line 2: not JSON"),
])
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "a.jsonl", '{"text": "good"}\n' + row)
    assert str(caught.value).startswith(f"{tmp_path / 'a.jsonl'}, {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", b"caf\xe9", "is not UTF-8 text .byte 3 is 0xe9.; convert it"),
    ("a.txt", "第一回".encode("gb18030"), "is not UTF-8"),
    ("a.txt", "abc".encode("utf-16"), "is not UTF-8"),
    ("a.txt", b"a\0b", "NUL characters"),
    ("a.txt", b"", "holds no text"),
    ("a.txt", b" \r\n\t\n", "holds no text"),
    ("a.txt", b"\n<|endoftext|>\n \n<|endoftext|>\n", "holds no text"),
    ("a.jsonl", b'{"text": ""}', "holds no text"),
])
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} .*{message}|{name} {message}"):
        read(tmp_path / name, content)


def test_a_folder_is_read_to_its_depth_in_the_order_of_names(tmp_path: Path) -> None:
    names = ["b.txt", "a/2 two.txt", "a/1.jsonl", "西游 记/第一回.txt", "c/d/e.TXT", ".z.txt"]
    for name in names:
        read(tmp_path / name, json.dumps({"text": name}) if name.endswith("l") else name)
    assert read(tmp_path) == [".z.txt", "a/1.jsonl", "a/2 two.txt", "b.txt", "c/d/e.TXT", "西游 记/第一回.txt"]


def test_what_is_left_out_is_counted_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "image.png").write_bytes(b"\0")
    with caplog.at_level("INFO", logger="llm"):
        read(tmp_path / "a.txt", f"one\n{SEPARATOR}\n \n{SEPARATOR}\ntwo\n{SEPARATOR}\n")
        read(tmp_path)
    assert "blank documents left out: 1" in caplog.text
    assert "other files left out: 1" in caplog.text


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text", encoding="utf-8")
    with pytest.raises(ValueError, match=f"{tmp_path.name} holds no file that ends in .txt or .jsonl"):
        read(tmp_path)


@pytest.mark.parametrize(("length", "fraction", "held_out"), [(10, 0.1, 1), (1000, 0.1, 100), (1115394, 0.1, 111540),
                                                              (7, 0.5, 4), (2, 0.1, 1)])
def test_a_single_document_gives_its_end(length: int, fraction: float, held_out: int) -> None:
    text = ("0123456789" * (length // 10 + 1))[:length]
    [train], [val] = split_documents([text], fraction=fraction)
    assert train + val == text
    assert len(val) == held_out


def test_the_cut_counts_characters_not_bytes() -> None:
    assert split_documents(["猴" * 9 + "王"], fraction=0.1) == (["猴" * 9], ["王"])


def test_a_document_too_short_to_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="of length 1, is too short to hold out 10% of it; give more text or --val"):
        split_documents(["a"], fraction=0.1)


@pytest.mark.parametrize("count", [2, 3, 5, 40])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.9, 0.999])
def test_whole_documents_are_held_out_and_both_sides_have_some(count: int, fraction: float) -> None:
    documents = [f"document {number}" for number in range(count)]
    train, val = split_documents(documents, fraction=fraction)
    assert train and val
    assert sorted(train + val) == sorted(documents)


def test_the_share_of_documents_is_about_the_fraction() -> None:
    train, val = split_documents([f"document {number}" for number in range(2000)], fraction=0.1)
    assert 150 < len(val) < 250   # 200, with a standard deviation of 13
    assert len(train) + len(val) == 2000


def test_the_choice_does_not_depend_on_the_order_of_the_documents() -> None:
    documents = ["a", "b", "c", "d"]
    choices = {frozenset(split_documents(list(order), fraction=0.3)[1]) for order in itertools.permutations(documents)}
    assert len(choices) == 1


def test_a_document_added_moves_no_other_across() -> None:
    documents = [f"document {number}" for number in range(200)]
    before, after = (set(split_documents(part, fraction=0.1)[1]) for part in (documents[:-1], documents))
    assert before == after - {documents[-1]}


def test_equal_documents_stay_on_one_side() -> None:
    documents = [f"document {number % 30}" for number in range(90)]
    train, val = split_documents(documents, fraction=0.3)
    assert not set(train) & set(val)
    assert len(train) + len(val) == 90


def test_documents_that_are_all_the_same_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"all 3 documents are the same.*--val"):
        split_documents(["a"] * 3, fraction=0.1)
