"""Reading what people have: text files, rows with a text, folders of both. Labelled rows: `labelled.py`.

Everything is read piece by piece (`stream_documents`), so that a file of any size can be tokenized; `read_documents`
joins the pieces for whoever has the memory.
"""

import codecs
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm.tokenizers.patterns import last_cut

log = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
BLOCK_BYTES = 1 << 20
HALF_CHARACTER = re.compile("[\ud800-\udfff]")   # JSON can escape what UTF-8 cannot hold


class Piece(NamedTuple):
    """Part of a document, cut where no pre-tokenizing pattern of ours could tell."""

    text: str
    ends_document: bool


def list_text_files(path: Path) -> list[Path]:
    """The file itself, or every text file below a folder, in the order of their names; others are counted in the log.

    Raises:
        ValueError: if a folder holds none.
    """
    if not path.is_dir():
        return [path]
    # names in "._" are what macOS puts beside files on foreign disks
    found = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("._"))
    files = [file for file in found if file.suffix.lower() in TEXT_SUFFIXES]
    if not files:
        raise ValueError(f"{path} holds no file that ends in {' or '.join(TEXT_SUFFIXES)}; put the text there")
    if len(found) > len(files):
        log.info("%s: other files left out: %d", path, len(found) - len(files))
    return files


def stream_documents(path: Path, *, separator: str, text_key: str = "text") -> Iterator[Piece]:
    """The documents of one file, piece by piece; a piece is about a megabyte at most, unless it is a row or one word.

    Args:
        path: a .jsonl or .parquet file of rows, or a text file (any other suffix).
        separator: a line of a text file that equals it ends a document; without such a line the file is one document.
        text_key: the column of a row that holds the text.

    Raises:
        ValueError: if the text is not UTF-8, or a row has no text; names file and line.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from (Piece(text, True) for text in _jsonl_texts(path, text_key))
    elif suffix == ".parquet":
        yield from (Piece(text, True) for text in _parquet_texts(path, text_key))
    else:
        yield from _stream_text(path, separator.strip())


def read_documents(path: Path, *, separator: str, text_key: str = "text") -> list[str]:
    """All documents of a file, or of every text file below a folder, in the order of their names.

    What is left out, blank documents and a folder's other files, is counted in the log.

    Args:
        path: a file, or a folder of them.
        separator, text_key: as in `stream_documents`.

    Returns:
        The documents, none of them blank.

    Raises:
        ValueError: if there is no text, or as in `stream_documents`.
    """
    documents: list[str] = []
    num_blank = 0
    for file in list_text_files(path):
        parts: list[str] = []
        for piece in stream_documents(file, separator=separator, text_key=text_key):
            parts.append(piece.text)
            if piece.ends_document:
                document, parts = "".join(parts), []
                if document.strip():
                    documents.append(document)
                else:
                    num_blank += 1
    if not documents:
        raise ValueError(f"{path} holds no text; give a file or folder with some")
    if num_blank:
        log.info("%s: blank documents left out: %d", path, num_blank)
    return documents


def split_documents(documents: list[str], *, fraction: float) -> tuple[list[str], list[str]]:
    """Hold out validation text, the same for the same documents whatever their order.

    One document gives its last part, cut by characters. Several give whole documents, chosen by the hash of their
    text, so that equal documents never stand on both sides.

    Returns:
        The training and the validation documents, neither empty.

    Raises:
        ValueError: if the only document is too short to be cut, or all documents are the same.

    Example:
        >>> split_documents(["abcdefghij"], fraction=0.1)
        (['abcdefghi'], ['j'])
    """
    if len(documents) == 1:
        text = documents[0]
        cut = int(len(text) * (1 - fraction))
        if not 0 < cut < len(text):
            raise ValueError(f"the text, of length {len(text)}, is too short to hold out {fraction:.0%} of it; "
                             "give more text or --val FILE")
        return [text[:cut]], [text[cut:]]
    is_val = held_out([unit_hash(hashlib.sha256(document.encode())) for document in documents], fraction=fraction)
    train = [document for document, is_held_out in zip(documents, is_val, strict=True) if not is_held_out]
    return train, [document for document, is_held_out in zip(documents, is_val, strict=True) if is_held_out]


def held_out(keys: Sequence[float], *, fraction: float) -> list[bool]:
    """Which of several documents are for validation, by the hashes of their texts.

    Raises:
        ValueError: if all documents are the same.
    """
    lowest, highest = min(keys), max(keys)
    if lowest == highest:
        raise ValueError(f"all {len(keys)} documents are the same, so none can be held out; give --val FILE")
    # with few documents none, or all, may fall below the fraction: the ends of the order always stay apart
    return [key == lowest or key < min(fraction, highest) for key in keys]


def unit_hash(digest: "hashlib._Hash") -> float:
    """A sha256 of a document's UTF-8 as a number in [0, 1)."""
    return int.from_bytes(digest.digest()[:8], "big") / 2**64


def _stream_text(path: Path, separator: str) -> Iterator[Piece]:
    # a line begins after \n, or after a \r that is no half of \r\n
    line = re.compile(rf"(?:\A|(?<=\n)|(?<=\r)(?!\n))[^\S\r\n]*{re.escape(separator)}[^\S\r\n]*(?:\r\n|\r|\n|\Z)")
    rest, has_separators, begins_line = "", False, True
    for block, is_last in decoded_blocks(path):
        text = rest + block
        start = 0
        for border in line.finditer(text) if separator in text else ():
            if border.start() == 0 and not begins_line:
                continue   # the buffer begins in the middle of a line
            if border.end() == len(text) and not is_last:
                break   # the line may go on in the next block
            has_separators = begins_line = True
            yield Piece(_without_line_break(text[start : border.start()]), True)
            start = border.end()
        rest = text[start:]
        if len(rest) > BLOCK_BYTES and (cut := last_cut(rest)):
            yield Piece(rest[:cut], False)
            rest, begins_line = rest[cut:], False
    if rest or not has_separators:
        yield Piece(_without_line_break(rest) if has_separators else rest, True)


def _without_line_break(text: str) -> str:
    """The line break before a separator, or at the end of a file that has separators, is not the document's."""
    return text.removesuffix("\n").removesuffix("\r")


def decoded_blocks(path: Path) -> Iterator[tuple[str, bool]]:
    """The text of a file block by block, and whether each is the last. Line breaks stay as they are."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    num_read = 0
    with open(path, "rb") as file:
        block = file.read(BLOCK_BYTES)
        while True:
            following = file.read(BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not following)
            except UnicodeDecodeError as error:
                place = num_read + error.start - (len(error.object) - len(block))
                raise ValueError(f"{path} is not UTF-8 text (byte {place} is {error.object[error.start]:#04x}); "
                                 "convert it: iconv -f ENCODING -t utf-8") from error
            if "\x00" in text:
                raise ValueError(f"{path} holds NUL characters and looks like a binary file; give UTF-8 text")
            yield text, not following
            if not following:
                return
            num_read += len(block)
            block = following


def _jsonl_texts(path: Path, text_key: str) -> Iterator[str]:
    rest, number = "", 0
    for block, is_last in decoded_blocks(path):
        *lines, rest = (rest + block).split("\n")
        for line in [*lines, rest] if is_last else lines:
            number += 1
            if line.strip():
                yield _row_text(path, number, line, text_key)


def _row_text(path: Path, number: int, line: str, text_key: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:   # besides bad syntax: numbers too long, nesting too deep
        reason = getattr(error, "msg", error)
        raise ValueError(f"{path}, line {number}: not JSON ({reason}); each line must be an object") from error
    if not isinstance(row, dict) or not isinstance(row.get(text_key), str):
        raise ValueError(f'{path}, line {number}: no "{text_key}"; each line must look like {{"{text_key}": "..."}}')
    if broken := HALF_CHARACTER.search(row[text_key]):
        raise ValueError(f"{path}, line {number}: {broken[0]!r} is half of a surrogate pair and no character; "
                         "write the text as UTF-8")
    return row[text_key]


def open_parquet(path: Path) -> Any:
    """A parquet file, through pyarrow.

    Raises:
        ValueError: if pyarrow is not installed, or the file is no parquet file.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{path}: reading parquet needs the package pyarrow; pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error


def _parquet_texts(path: Path, text_key: str) -> Iterator[str]:
    file = open_parquet(path)
    if text_key not in file.schema_arrow.names:
        raise ValueError(f"{path} has no column {text_key!r}, only {', '.join(file.schema_arrow.names)}")
    number = 0
    for batch in file.iter_batches(batch_size=1024, columns=[text_key]):
        for text in batch.column(0).to_pylist():
            number += 1
            if not isinstance(text, str):
                raise ValueError(f"{path}, row {number}: {text_key} = {text!r} is no text")
            yield text
