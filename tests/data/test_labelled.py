"""What labelled files may look like, and what a bad one is answered: file, line and remedy, or a counted decision."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.data.labelled import Columns, Labelled, read_labelled
from llm.data.labelled_sets import LabelledConfig, load_parts

ROWS = [("ham", 'He said "yes, two",\nthen left'), ("spam", "WIN £100 现在 🎉"), ("ham", "tab\there")]
SHOWN = Columns(text="text", label="label")


def write(name: str, content: str | bytes) -> Path:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return Path(name)


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def as_csv() -> Path:
    import pandas

    pandas.DataFrame(ROWS, columns=["label", "text"]).to_csv("rows.csv", index=False)
    return Path("rows.csv")


def as_quoted_tsv() -> Path:
    import pandas

    pandas.DataFrame(ROWS, columns=["label", "text"]).to_csv("quoted.tsv", index=False, sep="\t")
    return Path("quoted.tsv")


def as_jsonl() -> Path:
    return write("rows.jsonl", "\n\n".join(json.dumps({"text": text, "label": label}) for label, text in ROWS))


def as_parquet() -> Path:
    import pandas

    pandas.DataFrame(ROWS, columns=["label", "text"]).to_parquet("rows.parquet")
    return Path("rows.parquet")


@pytest.mark.parametrize("make", [as_csv, as_quoted_tsv, as_jsonl, as_parquet])
def test_every_format_gives_the_same_rows(make: Callable[[], Path]) -> None:
    rows = read_labelled(make(), Columns(text="Text", label="LABEL", use_quotes=True))
    assert list(zip(rows.labels, rows.texts, strict=True)) == ROWS


def test_lines_are_counted_as_an_editor_does() -> None:
    assert read_labelled(as_csv(), SHOWN).places == ["rows.csv, line 2", "rows.csv, line 4", "rows.csv, line 5"]


def test_a_table_without_header_and_without_quoting_is_read_as_it_stands() -> None:
    """The way of the SMS collection, whose quotes are not in pairs."""
    path = write("sms.tsv", 'ham\t"Hello\nspam\tWin "cash" now\n')
    rows = read_labelled(path, Columns(text="2", label="1"))
    assert (rows.texts, rows.labels) == (['"Hello', 'Win "cash" now'], ["ham", "spam"])


@pytest.mark.parametrize("content", ["label,text\n1,a\n0,b\n", "label,text\n1.0,a\n0,b\n",
                                     '﻿"label","text"\r\n1,a\r\n0,b'])
def test_integers_marks_of_order_and_line_ends_make_no_difference(content: str) -> None:
    rows = read_labelled(write("rows.csv", content), SHOWN)
    labels = [label.removesuffix(".0") for label in rows.labels]
    assert (rows.texts, labels) == (["a", "b"], ["1", "0"])


def test_integers_of_json_and_parquet_with_gaps_are_those_of_a_table() -> None:
    path = write("rows.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0.0}\n{"text": "c", "label": null}\n')
    assert read_labelled(path, SHOWN).labels == ["1", "0"]


def test_a_message_of_five_megabytes_is_a_message() -> None:
    long = "win " * 1_250_000
    rows = read_labelled(write("rows.csv", f"label,text\nspam,{long}\nham,a\n"), SHOWN)
    assert [len(text) for text in rows.texts] == [5_000_000, 1]


def test_rows_without_text_or_label_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    path = write("rows.csv", "label,text\nham,a\n,b\nspam,\nham,   \nspam,c\n")
    with caplog.at_level(logging.WARNING):
        assert read_labelled(path, SHOWN).texts == ["a", "c"]
    assert "1 without a label (the first in line 3); 2 without a text (the first in line 4)" in caplog.text


BAD: list[tuple[str, str | bytes, str]] = [
    ("a.csv", "label,body\nham,a\n", r"a.csv, line 1: no column 'text' among 'label', 'body'"),
    ("a.csv", "text,body\na,b\n", r"no column 'label' among 'text', 'body'"),
    ("a.csv", "label,text,text\nham,a,b\n", r"2 columns called 'text'"),
    ("a.csv", "", r"a.csv: its first line is empty; it must name the columns"),
    ("a.csv", "label,text\n", r"a.csv holds no row to use"),
    ("a.csv", "label,text\n,a\n,b\n", r"no row to use: rows left out: 2 without a label \(the first in line 2\)"),
    ("a.csv", "label,text\nham,a\nham,b,c\n", r"a.csv, line 3: 3 columns instead of 2; a comma inside a text must be"),
    ("a.tsv", "label\ttext\nham\n", r"a.tsv, line 2: 1 column instead of 2; a tab .* quotes, with --use-quotes"),
    ("a.csv", 'label,text\nham,"a\nspam,b\n', r"a.csv, line 3: .*a quote that nobody closes\? --use-quotes False"),
    ("a.csv", 'label,text\nham,"a"b\n', r"a.csv, line 2: .*a quote that nobody closes"),
    ("a.csv", "label,text\nham,a\n".encode("utf-16"), r"a.csv is not UTF-8 text \(byte 0 is 0xff\)"),
    ("a.csv", "label,text\nham,caf\xe9\n".encode("latin-1"), r"a.csv is not UTF-8 text \(byte 18 is 0xe9\)"),
    ("a.csv", b"label,text\nham,a\x00b\n", r"a.csv holds NUL characters"),
    ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": "b"', r"a.jsonl, line 2: not JSON"),
    ("a.jsonl", '["a", "x"]\n', r"a.jsonl, line 1: .* is no object"),
    ("a.jsonl", '{"text": 5, "label": "x"}\n', r"a.jsonl, line 1: the text is 5, no string"),
    ("a.jsonl", '{"text": "a", "label": ["x"]}\n', r"a.jsonl, line 1: the label is \['x'\]; it must be a word or"),
    ("a.jsonl", '{"text": "a", "label": 0.5}\n', r"a.jsonl, line 1: the label is 0.5; it must be a word or an integer"),
    ("a.jsonl", '{"text": "\\ud83d", "label": "x"}\n', r"a.jsonl, line 1: .* is half of a surrogate pair"),
    ("a.parquet", "label,text\nham,a\n", r"a.parquet is not a parquet file"),
    ("a.csv", "label;text\nham;a\n", r"no column 'text' among 'label;text'; is it a table with another separator"),
    ("a.csv", ",".join(f"c{number}" for number in range(50_000)) + "\n", r"^.{0,1200} and 49,940 more .{0,120}$"),
    ("a.jsonl", '{"text": {"body": "a"}, "label": "x"}\n', r"line 1: the text is {'body': 'a'}, no string"),
    ("a.jsonl", json.dumps({"text": ["a"] * 9999, "label": "x"}), r"^.{0,200}\.\.\., no string; write it as one"),
    ("a.txt", "ham a\n", r"labelled texts are read from .csv, .tsv, .jsonl, .parquet, not from .txt"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_file_is_answered_with_file_line_and_remedy(name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labelled(write(name, content), SHOWN)


@pytest.mark.parametrize(("columns", "content"), [
    (Columns(text="text", label="TEXT"), "label,text\nham,a\n"), (Columns(text="2", label="2"), "ham,a\n")])
def test_a_text_is_not_its_own_label(columns: Columns, content: str) -> None:
    with pytest.raises(ValueError, match=r"text and label are both to be read from column .*must name two"):
        read_labelled(write("a.csv", content), columns)


def test_a_parquet_column_of_numbers_with_gaps_gives_integers_and_leaves_rows_out(
    caplog: pytest.LogCaptureFixture
) -> None:
    import pandas

    pandas.DataFrame({"text": ["a", "b", "c"], "label": [1.0, float("nan"), 0.0]}).to_parquet("a.parquet")
    with caplog.at_level(logging.WARNING):
        assert read_labelled(Path("a.parquet"), SHOWN).labels == ["1", "0"]
    assert "1 without a label (the first in line 2)" in caplog.text


def test_line_endings_may_be_mixed_and_blank_lines_count() -> None:
    rows = read_labelled(write("a.csv", "label,text\r\nham,a\n\nspam,b\rham,c\r\n"), SHOWN)
    assert (rows.texts, [place.split()[-1] for place in rows.places]) == (["a", "b", "c"], ["2", "4", "5"])


def test_what_is_not_there_or_has_no_header_says_so() -> None:
    with pytest.raises(ValueError, match=r"gone.csv is no file"):
        read_labelled(Path("gone.csv"), SHOWN)
    with pytest.raises(ValueError, match="numbered from 1"):
        read_labelled(write("a.csv", "ham,a\n"), Columns(text="0", label="1"))
    with pytest.raises(ValueError, match="line 1: there is no column 3, only 2"):
        read_labelled(write("a.csv", "ham,a\n"), Columns(text="3", label="1"))


def table(*rows: tuple[str, str]) -> str:
    return "label,text\n" + "".join(f"{label},{text}\n" for label, text in rows)


@pytest.mark.parametrize(("train", "test", "message"), [
    ([("ham", "a"), ("ham", "b")], [("ham", "c")], "all 2 training rows are labelled 'ham'"),
    ([("ham", "a"), ("spam", "b")], [("ham", "c"), ("Spam", "d")],
     r"test.csv, line 3: label 'Spam' does not occur in the training rows, which have 'ham', 'spam'"),
])
def test_labels_must_be_known_from_training(train: list, test: list, message: str) -> None:
    write("train.csv", table(*train))
    write("val.csv", table(*train))
    write("test.csv", table(*test))
    with pytest.raises(ValueError, match=message):
        load_parts(LabelledConfig(train_file="train.csv", val_file="val.csv", test_file="test.csv"))


def test_files_are_taken_as_they_are_and_what_is_missing_is_split_off() -> None:
    rows = [(("ham", "spam")[number % 2], f"text{'abcdefghij'[number // 4]} {'klmn'[number % 4]}")
            for number in range(40)]
    write("train.csv", table(*rows))
    write("test.csv", table(("ham", "x"), ("spam", "y")))
    sizes = {}
    for name, files in {"all": {}, "test": {"test_file": "test.csv"}, "val": {"val_file": "test.csv"}}.items():
        parts = load_parts(LabelledConfig(train_file="train.csv", **files))
        sizes[name] = [len(part) for part in parts]
        assert {text for _, text in rows} <= {text for part in parts for text in part.texts}
    assert sizes == {"all": [28, 4, 8], "test": [36, 4, 2], "val": [40, 2, 0]}
    assert load_parts(LabelledConfig(data="train.csv")) == load_parts(LabelledConfig(train_file="train.csv"))


def test_undersampling_touches_the_training_rows_only() -> None:
    write("rows.csv", table(*[("ham" if number % 5 else "spam", f"{'abcdefghij'[number % 10]}{'k' * (number // 10)}")
                              for number in range(100)]))
    plain, balanced = (load_parts(LabelledConfig(data="rows.csv", class_balance=how))
                       for how in ("none", "undersample"))
    assert (plain.val, plain.test) == (balanced.val, balanced.test)
    assert balanced.train.labels.count("ham") == balanced.train.labels.count("spam") == plain.train.labels.count("spam")


@pytest.mark.parametrize(("settings", "message"), [
    ({"val_fraction": 0.0}, "val_fraction=0.0 must lie between 0 and 1"),
    ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to learn from"),
    ({"split_seed": -1}, "split_seed=-1 must be at least 0"),
    ({"test_file": "a.csv"}, "--val-file and --test-file go with --train-file"),
    ({"train_file": "a.csv", "data": "b.csv"}, "give one of them"),
])
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelledConfig(**settings)


@pytest.mark.parametrize(("settings", "message"), [
    ({"val_file": "b.csv", "test_file": "b.csv", "test_fraction": 0.3}, "test_fraction=0.3 has no effect, as the rows"),
    ({"test_file": "b.csv", "test_fraction": 0.3}, "test_fraction=0.3 has no effect, as the rows that judge are not"),
    ({"val_file": "b.csv", "test_fraction": 0.3}, "test_fraction=0.3 has no effect, as the rows that judge are not"),
    ({"val_file": "b.csv", "val_fraction": 0.3}, "val_fraction=0.3 has no effect, as the validation rows are not"),
    ({"train_file": None, "data": "sms-spam-balanced", "val_fraction": 0.3}, "val_fraction=0.3 has no effect"),
    ({"train_file": None, "data": "sms-spam", "label_column": "3"}, "label_column=3 has no effect, as --data sms-spam"),
    ({"train_file": None, "text_column": "words"}, "text_column=words has no effect, as --data tinyworld-spam has"),
])
def test_a_setting_that_the_rows_leave_no_room_for_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_parts(LabelledConfig(**{"train_file": "a.csv", **settings}))


def test_classes_are_in_the_order_of_numbers_or_of_the_alphabet() -> None:
    def names(*labels: str) -> list[str]:
        from llm.data.labelled_sets import Parts

        return Parts(Labelled([""] * len(labels), list(labels), [""] * len(labels)), *[Labelled([], [], [])] * 2).names

    assert names("10", "9", "-1") == ["-1", "9", "10"]
    assert names("b", "10", "a") == ["10", "a", "b"]
