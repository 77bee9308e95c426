"""Reading labelled texts: .csv, .tsv, .jsonl and .parquet with a column for the text and one for the label.

What cannot be read raises with file and line. What can be read but not used, a row without a label or without a text,
is left out, counted and told. Next: `division.py`, which splits the rows.
"""

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm.config import did_you_mean
from llm.data.records import HALF_CHARACTER, decoded_blocks, open_parquet

log = logging.getLogger(__name__)

LABELLED_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where text and label stand."""

    text: str = "text"
    label: str | None = "label"      # None: there are no labels, as in texts to be judged
    use_quotes: bool | None = None   # whether "..." holds separators and line breaks; None: in .csv, not in .tsv


class Row(NamedTuple):
    """One row as it stands in a file."""

    line: int
    text: Any
    label: Any


@dataclass(frozen=True)
class Labelled:
    """Texts with the names of their classes and the places they come from."""

    texts: list[str]
    labels: list[str]    # "" where none was asked for
    places: list[str]    # "train.csv, line 3"

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, numbers: Sequence[int]) -> "Labelled":
        """The rows of these numbers, in this order."""
        return Labelled(*([column[number] for number in numbers]
                          for column in (self.texts, self.labels, self.places)))

    def __add__(self, other: "Labelled") -> "Labelled":
        return Labelled(self.texts + other.texts, self.labels + other.labels, self.places + other.places)


def read_labelled(path: Path, columns: Columns) -> Labelled:
    """The rows of a file that have a text and, where labels are wanted, a label. Labels may be words or integers.

    Args:
        path: its suffix says what it is.
        columns: names of the columns, in any case where that is clear; or numbers from 1 for a .csv or .tsv file
            without a header line.

    Raises:
        ValueError: for a file that is not what its suffix says, a missing column, or no row to use; names file and
            line.
    """
    suffix = path.suffix.lower()
    if suffix not in LABELLED_SUFFIXES:
        raise ValueError(f"{path}: {'labelled texts' if columns.label else 'texts'} are read from "
                         f"{', '.join(LABELLED_SUFFIXES)}, not from "
                         f"{suffix or 'a file without a suffix'}; rename or convert it")
    if not path.is_file():
        raise ValueError(f"{path} is no file; name one that ends in {' or '.join(LABELLED_SUFFIXES)}")
    rows = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows}.get(suffix, _table_rows)(path, columns)
    found, left_out = Labelled([], [], []), Counter[str]()
    first: dict[str, int] = {}
    for row in rows:
        text, label = _text(path, row), _label(path, row) if columns.label else ""
        reason = "without a text" if not text.strip() else "without a label" if label == "" and columns.label else None
        if reason is not None:
            left_out[reason] += 1
            first.setdefault(reason, row.line)
            continue
        found.texts.append(text)
        found.labels.append(label)
        found.places.append(f"{path.name}, line {row.line}")
    told = "; ".join(f"{count:,} {reason} (the first in line {first[reason]})" for reason, count in left_out.items())
    if not found.texts:
        raise ValueError(f"{path} holds no row to use{f': rows left out: {told}' if told else ''}; each needs a text"
                         f"{' and a label' if columns.label else ''}")
    if told:
        log.warning("%s: rows left out: %s", path, told)
    return found


def _text(path: Path, row: Row) -> str:
    if row.text is None:
        return ""
    if not isinstance(row.text, str):
        raise ValueError(f"{path}, line {row.line}: the text is {shorten(repr(row.text), 80)}, no string; "
                         "write it as one, in quotes")
    if broken := HALF_CHARACTER.search(row.text):
        raise ValueError(f"{path}, line {row.line}: {broken[0]!r} is half of a surrogate pair and no character; "
                         "write the text as UTF-8")
    return row.text


def _label(path: Path, row: Row) -> str:
    """The label's name; "" for none. 1.0 is how a column of integers is written that has gaps."""
    label = row.label
    if label is None or label != label:   # NaN
        return ""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, str | int):
        raise ValueError(f"{path}, line {row.line}: the label is {shorten(repr(label), 80)}; it must be a "
                         "word or an integer")
    return str(label).strip()


def _table_rows(path: Path, columns: Columns) -> Iterator[Row]:
    is_csv = path.suffix.lower() == ".csv"
    use_quotes = is_csv if columns.use_quotes is None else columns.use_quotes
    text = "".join(block for block, _ in decoded_blocks(path))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="," if is_csv else "\t", strict=True,
                        quoting=csv.QUOTE_MINIMAL if use_quotes else csv.QUOTE_NONE)
    before = csv.field_size_limit(max(len(text), csv.field_size_limit()))   # a message may be as long as it likes
    try:
        yield from _rows_of(path, reader, columns)
    except csv.Error as error:
        quotes = "; a quote that nobody closes? --use-quotes False takes quotes as they stand" if use_quotes else ""
        raise ValueError(f"{path}, line {reader.line_num}: {error}{quotes}") from error
    finally:
        csv.field_size_limit(before)


def _rows_of(path: Path, reader: Any, columns: Columns) -> Iterator[Row]:
    wanted = [columns.text] if columns.label is None else [columns.text, columns.label]
    if all(name.isdecimal() for name in wanted):
        places, width = [int(name) - 1 for name in wanted], None
        if min(places) < 0:
            raise ValueError(f"column {min(places) + 1}: columns of a file without a header are numbered from 1")
        if len(set(places)) < len(places):
            raise ValueError(f"text and label are both to be read from column {places[0] + 1}; --text-column and "
                             "--label-column must name two")
    else:
        header: list[str] = next(reader, [])
        places = [header.index(name) for name in find_columns(path, header, wanted)]
        width = len(header)
    line = reader.line_num
    for fields in reader:
        begin, line = line + 1, reader.line_num
        if not fields:
            continue   # an empty line
        width = len(fields) if width is None else width
        separator, quoting = ("comma", "") if path.suffix.lower() == ".csv" else ("tab", ", with --use-quotes True")
        if max(places) >= width:
            raise ValueError(f"{path}, line {begin}: there is no column {max(places) + 1}, only {width}; --text-column "
                             f"and --label-column count from 1, and a {separator} ends a column")
        if len(fields) != width:
            found = f"{len(fields)} column{'s' * (len(fields) != 1)}"
            raise ValueError(f"{path}, line {begin}: {found} instead of {width}; a {separator} inside a text must be "
                             f"in quotes{quoting}")
        yield Row(begin, fields[places[0]], fields[places[1]] if columns.label is not None else None)


def _jsonl_rows(path: Path, columns: Columns) -> Iterator[Row]:
    names: list[str] | None = None
    text = "".join(block for block, _ in decoded_blocks(path))
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: not JSON ({getattr(error, 'msg', error)}); each line must be an "
                             "object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}: {content[:40]!r} is no object; each line must look like "
                             f'{{"{columns.text}": "...", "{columns.label}": "..."}}')
        if names is None:   # the first row says how they are spelled
            names = find_columns(path, list(row), [columns.text] + ([] if columns.label is None else [columns.label]))
        yield Row(line, row.get(names[0]), row.get(names[1]) if columns.label is not None else None)


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    file = open_parquet(path)
    names = find_columns(path, file.schema_arrow.names,
                         [columns.text] + ([] if columns.label is None else [columns.label]))
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=names):
        values = [batch.column(batch.schema.names.index(name)).to_pylist() for name in names]
        for cells in zip(*values, strict=True):
            number += 1
            yield Row(number, cells[0], cells[1] if columns.label is not None else None)


def find_columns(path: Path, header: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names as they are spelled in a file, whose case may differ where only one fits.

    Raises:
        ValueError: for a column that is not there, with those that are.

    Example:
        >>> find_columns(Path("a.csv"), ["Label", "Text"], ["text", "label"])
        ['Text', 'Label']
    """
    found = []
    for name in wanted:
        near = [column for column in header if column.strip().casefold() == name.strip().casefold()]
        exact = [column for column in header if column == name] or near
        if not header:
            raise ValueError(f"{path}: its first line is empty; it must name the columns")
        among = f"among {shorten(', '.join(map(repr, header)), 200)}"
        if len(exact) > 1:
            raise ValueError(f"{path}, line 1: {len(exact)} columns called {name!r} {among}; rename all but one")
        if not exact:
            is_one = len(header) == 1 and re.search(r"[;\t|,]", header[0])
            near_names = did_you_mean(name, [shorten(column, 60) for column in header])
            remedy = ("is it a table with another separator? A .csv file has commas, a .tsv file tabs" if is_one else
                      f"{near_names} (--text-column, --label-column; numbers from 1 where there is no header)")
            raise ValueError(f"{path}, line 1: no column {name!r} {among}; {remedy}")
        if exact[0] in found:
            raise ValueError(f"{path}: text and label are both to be read from column {exact[0]!r}; "
                             "--text-column and --label-column must name two")
        found += exact
    return found


def shorten(text: str, longest: int) -> str:
    """The text, or as much of it as an error message can bear.

    Example:
        >>> shorten("a very long story", 6)
        'a very...'
    """
    return text if len(text) <= longest else f"{text[:longest]}..."
