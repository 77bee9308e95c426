"""Reading what people have: text files, rows with a text, folders of both. Later also labelled rows and chats."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

TEXT_SUFFIXES = (".txt", ".jsonl")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")   # JSON can escape what UTF-8 cannot hold


def read_documents(path: Path, *, separator: str) -> list[str]:
    """All documents of a file, or of every text file below a folder, in the order of their names.

    What is left out, blank documents and a folder's other files, is counted in the log.

    Args:
        path: a .txt file (any other suffix is read as one too), a .jsonl file with {"text"} rows, or a folder.
        separator: a line of a .txt file that equals it ends a document; without such a line the file is one document.

    Returns:
        The documents, none of them blank.

    Raises:
        ValueError: if there is no text, it is not UTF-8, or a row has no "text"; names file and line.
    """
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file())
        files = [file for file in found if file.suffix.lower() in TEXT_SUFFIXES]
        if not files:
            raise ValueError(f"{path} holds no file that ends in {' or '.join(TEXT_SUFFIXES)}; put the text there")
        if len(found) > len(files):
            log.info("%s: other files left out: %d", path, len(found) - len(files))
    else:
        files = [path]
    read = [document for file in files for document in _read_file(file, separator)]
    documents = [document for document in read if document.strip()]
    if not documents:
        raise ValueError(f"{path} holds no text; give a file or folder with some")
    if len(read) > len(documents):
        log.info("%s: blank documents left out: %d", path, len(read) - len(documents))
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
            raise ValueError(f"the text has only {len(text)} characters, too short to hold out {fraction:.0%} of it; "
                             "give more text or --val FILE")
        return [text[:cut]], [text[cut:]]
    keys = [_unit_hash(document) for document in documents]
    lowest, highest = min(keys), max(keys)
    if lowest == highest:
        raise ValueError(f"all {len(documents)} documents are the same, so none can be held out; give --val FILE")
    # with few documents none, or all, may fall below the fraction: the ends of the order always stay apart
    is_val = [key == lowest or key < min(fraction, highest) for key in keys]
    train = [document for document, held_out in zip(documents, is_val, strict=True) if not held_out]
    return train, [document for document, held_out in zip(documents, is_val, strict=True) if held_out]


def _read_file(path: Path, separator: str) -> Iterator[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")   # not read_text, which would turn CRLF into LF
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
                         "convert it, or give a token file that ends in .bin") from error
    if "\x00" in text:
        raise ValueError(f"{path} holds NUL characters and looks like a binary file; give UTF-8 text")
    if path.suffix.lower() == ".jsonl":
        yield from _jsonl_texts(path, text)
        return
    separator = separator.strip()
    lines = text.splitlines(keepends=True) if separator in text else []
    borders = [number for number, line in enumerate(lines) if line.strip() == separator]
    if not borders:
        yield text
        return
    if borders[-1] < len(lines) - 1:
        borders.append(len(lines))
    for before, border in zip([-1, *borders], borders, strict=False):
        # the line break before a separator, or at the end of the file, is not the document's
        yield "".join(lines[before + 1 : border]).removesuffix("\n").removesuffix("\r")


def _jsonl_texts(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:   # besides bad syntax: numbers too long, nesting too deep
            reason = getattr(error, "msg", error)
            raise ValueError(f"{path}, line {number}: not JSON ({reason}); each line must be an object") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'{path}, line {number}: no "text"; each line must look like {{"text": "..."}}')
        if broken := HALF_CHARACTER.search(row["text"]):
            raise ValueError(f"{path}, line {number}: {broken[0]!r} is half of a surrogate pair and no character; "
                             "write the text as UTF-8")
        yield row["text"]


def _unit_hash(text: str) -> float:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
