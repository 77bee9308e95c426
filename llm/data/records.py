"""Reading what people have: text files, rows with a text, folders of both. Later also labelled rows and chats."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

TEXT_SUFFIXES = (".txt", ".jsonl")


def read_documents(path: Path, *, separator: str) -> list[str]:
    """All documents of a file, or of every text file below a folder, in the order of their names.

    Args:
        path: a .txt file (any other suffix is read as one too), a .jsonl file with {"text"} rows, or a folder.
        separator: a line of a .txt file that equals it ends a document; without such a line the file is one document.

    Returns:
        The documents, none of them empty.

    Raises:
        ValueError: if there is no text, it is not UTF-8, or a row has no "text"; names file and line.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
        if not files:
            raise ValueError(f"{path} holds no file that ends in {' or '.join(TEXT_SUFFIXES)}")
    else:
        files = [path]
    documents = [document for file in files for document in _read_file(file, separator) if document.strip()]
    if not documents:
        raise ValueError(f"{path} holds no text")
    return documents


def split_documents(documents: list[str], *, fraction: float) -> tuple[list[str], list[str]]:
    """Hold out validation text, the same for the same documents whatever their order.

    One document gives its last part, cut by characters. Several give whole documents, chosen by the hash of their
    text, so that equal documents never stand on both sides.

    Returns:
        The training and the validation documents, neither empty.

    Raises:
        ValueError: if the only document is too short to be cut.

    Example:
        >>> split_documents(["abcdefghij"], fraction=0.1)
        (['abcdefghi'], ['j'])
    """
    if len(documents) == 1:
        text = documents[0]
        cut = int(len(text) * (1 - fraction))
        if not 0 < cut < len(text):
            raise ValueError(f"the text has only {len(text)} characters; too short to hold out {fraction:.0%} of it")
        return [text[:cut]], [text[cut:]]
    keys = [_unit_hash(document) for document in documents]
    limit = max(fraction, min(keys))   # with few documents none may fall below the fraction; take the first in order
    train = [document for document, key in zip(documents, keys, strict=True) if key > limit]
    val = [document for document, key in zip(documents, keys, strict=True) if key <= limit]
    if not train:
        raise ValueError(f"all {len(documents)} documents are the same or too few to hold some out; give --val FILE")
    return train, val


def _read_file(path: Path, separator: str) -> Iterator[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")   # not read_text, which would turn CRLF into LF
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
                         "convert it, or give a token file that ends in .bin") from error
    if "\x00" in text:
        raise ValueError(f"{path} holds NUL characters and looks like a binary file; give UTF-8 text")
    if path.suffix == ".jsonl":
        yield from _jsonl_texts(path, text)
        return
    if separator not in text:
        yield text
        return
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.strip() == separator:
            yield "".join(lines).removesuffix("\n")
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def _jsonl_texts(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error.msg}); each line must be an object") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ValueError(f'{path}, line {number}: no "text"; each line must look like {{"text": "..."}}')
        yield row["text"]


def _unit_hash(text: str) -> float:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
