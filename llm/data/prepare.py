"""From text of any size to token files: several processes, bounded memory, and a way back in after an interruption.

Two passes over the text. The first counts documents and takes their hashes, which decides what is held out; the second
cuts the text into blocks, which processes encode and one writes in order, so that the files do not depend on how many
worked. Next: `tokenfile.py`.
"""

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from llm.data.records import Piece, held_out, list_text_files, stream_documents, unit_hash
from llm.data.tokenfile import TokenWriter, token_dtype
from llm.parallel import map_in_order
from llm.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)

BLOCK_CHARACTERS = 1 << 20
BLOCKS_BETWEEN_SYNCS = 32
PARTS = ("train", "val")


class TextSource(NamedTuple):
    """Where the text is and how it is read."""

    path: Path
    separator: str
    text_key: str = "text"

    def pieces(self) -> Iterator[Piece]:
        """All documents of all files, piece by piece."""
        for file in list_text_files(self.path):
            yield from stream_documents(file, separator=self.separator, text_key=self.text_key)

    def texts(self) -> Iterator[str]:
        """The text alone, for training a tokenizer."""
        return (piece.text for piece in self.pieces())


class Survey(NamedTuple):
    """What the first pass found."""

    keys: array              # of each document, its hash as a number in [0, 1)
    is_blank: array          # of each document, 1 if it holds nothing but white space
    num_characters: int
    num_bytes: int


class Prepared(NamedTuple):
    """What was written."""

    num_tokens: dict[str, int]   # of train and val
    num_bytes: int               # of UTF-8 read
    num_documents: int           # without the blank ones
    num_blank: int


class _Part(NamedTuple):
    """A stretch of text of one block that belongs to one file."""

    name: str
    text: str
    ends_document: bool


def prepare(
    source: TextSource, folder: Path, tokenizer: Tokenizer, *, val_fraction: float = 0.1, workers: int = 1,
    is_bar_wanted: bool = False,
) -> Prepared:
    """Write `train.bin`, `val.bin` and `tokenizer.json` into a folder; called again after an interruption, goes on.

    `prepared.json` says what the files were made of.

    What is held out is what `split_documents` holds out: the last part of a single document, whole documents of
    several. The bytes do not depend on `workers`, nor on interruptions.

    Args:
        source: the text.
        folder: made if need be.
        tokenizer: turns the text into ids; saved along, and every document ends with its end-of-text id.
        val_fraction: share to hold out, in (0, 1).
        workers: processes that encode.
        is_bar_wanted: show a progress bar.

    Raises:
        ValueError: for text that cannot be read or split, and if the folder holds the files of other text or settings.
    """
    survey = take_survey(source)
    is_val, cut = _plan_split(survey, source, val_fraction)
    progress_file, done_file = folder / "progress.json", folder / "prepared.json"
    key = _key(survey, tokenizer, val_fraction)
    if (folder / "train.bin").exists() and _read_key(done_file) != key:
        raise ValueError(f"{folder} holds token files of other text, tokenizer or settings; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    blocks_done, counts = _read_progress(progress_file, key)
    writers = {name: TokenWriter(folder / f"{name}.bin", vocab_size=tokenizer.vocab_size,
                                 fingerprint=tokenizer.fingerprint, resume_at=counts[name]) for name in PARTS}
    blocks = islice(_blocks(source, survey, is_val, cut), blocks_done, None)
    jobs = ((str(folder), block) for block in blocks)
    bar = tqdm(total=survey.num_characters, initial=min(blocks_done * BLOCK_CHARACTERS, survey.num_characters),
               unit="char", unit_scale=True, disable=not is_bar_wanted)
    for number, encoded in enumerate(map_in_order(_encode_block, jobs, workers=workers), start=blocks_done + 1):
        for name, ids in encoded:
            writers[name].append(ids)
        if number % BLOCKS_BETWEEN_SYNCS == 0:
            for writer in writers.values():
                writer.sync()
            _write_progress(progress_file, key, number, {name: writer.count for name, writer in writers.items()})
        bar.update(BLOCK_CHARACTERS)
    bar.close()
    for writer in writers.values():
        writer.finish()
    _write_progress(done_file, key, 0, {name: writer.count for name, writer in writers.items()})
    progress_file.unlink(missing_ok=True)
    num_blank = sum(survey.is_blank)
    if num_blank:
        log.info("blank documents left out: %d", num_blank)
    return Prepared({name: writer.count for name, writer in writers.items()}, survey.num_bytes,
                    len(survey.keys) - num_blank, num_blank)


def take_survey(source: TextSource) -> Survey:
    """The first pass: number, hashes and sizes of the documents.

    Raises:
        ValueError: if there is no text.
    """
    keys, is_blank = array("d"), array("b")
    num_characters = num_bytes = 0
    digest, blank_so_far = hashlib.sha256(), True
    for text, ends_document in source.pieces():
        data = text.encode()
        num_characters, num_bytes = num_characters + len(text), num_bytes + len(data)
        digest.update(data)
        blank_so_far = blank_so_far and not text.strip()
        if ends_document:
            keys.append(unit_hash(digest))
            is_blank.append(blank_so_far)
            digest, blank_so_far = hashlib.sha256(), True
    if all(is_blank):
        raise ValueError(f"{source.path} holds no text; give a file or folder with some")
    return Survey(keys, is_blank, num_characters, num_bytes)


def _plan_split(survey: Survey, source: TextSource, fraction: float) -> tuple[list[bool], int | None]:
    """For each document whether it is held out; and, of a single document, the character where validation begins."""
    kept = [key for key, is_blank in zip(survey.keys, survey.is_blank, strict=True) if not is_blank]
    if len(kept) > 1:
        chosen = iter(held_out(kept, fraction=fraction))
        return [not is_blank and next(chosen) for is_blank in survey.is_blank], None
    length = sum(len(piece.text) for piece in _not_blank(source, survey))
    cut = int(length * (1 - fraction))
    if not 0 < cut < length:
        raise ValueError(f"the text, of length {length}, is too short to hold out {fraction:.0%} of it; "
                         "give more text")
    return [False] * len(survey.keys), cut


def _not_blank(source: TextSource, survey: Survey) -> Iterator[Piece]:
    number = 0
    for piece in source.pieces():
        if not survey.is_blank[number]:
            yield piece
        number += piece.ends_document


def _blocks(source: TextSource, survey: Survey, is_val: list[bool], cut: int | None) -> Iterator[list[_Part]]:
    """The text in blocks of about a million characters: what one process encodes at a time."""
    block: list[_Part] = []
    size = 0
    for part in _parts(source, survey, is_val, cut):
        block.append(part)
        size += len(part.text)
        if size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _parts(source: TextSource, survey: Survey, is_val: list[bool], cut: int | None) -> Iterator[_Part]:
    number = seen = 0
    for text, ends_document in source.pieces():
        if not survey.is_blank[number]:
            if cut is None:
                yield _Part(PARTS[is_val[number]], text, ends_document)
            else:   # a single document: its beginning is one document for training, its end one for validation
                border = min(max(cut - seen, 0), len(text))
                if border or not seen:
                    yield _Part("train", text[:border], seen + border == cut)
                if border < len(text):
                    yield _Part("val", text[border:], ends_document)
                seen += len(text)
        number += ends_document


def _encode_block(job: tuple[str, list[_Part]]) -> list[tuple[str, np.ndarray]]:
    folder, block = job
    tokenizer = _tokenizer(folder)
    dtype = token_dtype(tokenizer.vocab_size)
    encoded = []
    for name, text, ends_document in block:
        ids = tokenizer.encode_document(text) if ends_document else np.array(tokenizer.encode(text), dtype=np.int64)
        encoded.append((name, ids.astype(dtype)))
    return encoded


@lru_cache(maxsize=1)
def _tokenizer(folder: str) -> Tokenizer:
    """The tokenizer of the folder, read once in each process."""
    return Tokenizer.load(folder)


def _key(survey: Survey, tokenizer: Tokenizer, val_fraction: float) -> str:
    """What the files depend on; progress under another key is not gone on from."""
    digest = hashlib.sha256(survey.keys.tobytes())
    digest.update(json.dumps([tokenizer.fingerprint, val_fraction, BLOCK_CHARACTERS]).encode())
    return digest.hexdigest()


def _read_progress(path: Path, key: str) -> tuple[int, dict[str, int]]:
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
        if progress["key"] == key:
            log.info("going on after %d blocks of text", progress["blocks"])
            return progress["blocks"], progress["counts"]
        log.warning("%s is of other text or settings; beginning anew", path)
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged; beginning anew", path)
    return 0, dict.fromkeys(PARTS, 0)


def _read_key(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_progress(path: Path, key: str, blocks: int, counts: dict[str, int]) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps({"key": key, "blocks": blocks, "counts": counts}) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
