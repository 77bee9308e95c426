"""Token files: a 64-byte header that says what the ids mean, then the ids, read by memory map.

    magic "LLMTOKEN" | u32 version | u32 bytes per id, 2 or 4 | u64 vocabulary size | u64 count | sha256 of tokenizer

All little-endian. The header is what makes a file safe to come back to: a file that was cut short, or that belongs
to another tokenizer, is refused instead of being read as other text.
"""

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = b"LLMTOKEN"
VERSION = 1
HEADER = struct.Struct("<8sIIQQ32s")


class TokenFile(NamedTuple):
    """An open token file."""

    tokens: np.ndarray       # (count,) uint16 or uint32, a read-only memory map
    vocab_size: int | None   # None for a raw stream, which does not say
    fingerprint: str | None  # of the tokenizer, hex; None for a raw stream


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every id.

    Example:
        >>> token_dtype(65_536), token_dtype(65_537)
        (dtype('uint16'), dtype('uint32'))
    """
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class TokenWriter:
    """A token file in the making; it appears under its name only with `finish`.

    Args:
        path: the file, usually `*.bin`; until it is finished, `PATH.unfinished` grows.
        vocab_size: V of the tokenizer.
        fingerprint: `Tokenizer.fingerprint`.
        resume_at: go on behind so many ids of an unfinished file instead of beginning anew.

    Raises:
        ValueError: if the unfinished file is shorter than `resume_at`.
    """

    def __init__(self, path: str | Path, *, vocab_size: int, fingerprint: str, resume_at: int = 0):
        self.path = Path(path)
        self.vocab_size = vocab_size
        self.fingerprint = fingerprint
        self.count = resume_at
        self.dtype = token_dtype(vocab_size).newbyteorder("<")
        self.unfinished = self.path.with_name(self.path.name + ".unfinished")
        length = HEADER.size + resume_at * self.dtype.itemsize
        if resume_at and (not self.unfinished.is_file() or self.unfinished.stat().st_size < length):
            raise ValueError(f"{self.unfinished} is shorter than the {resume_at} ids it held; delete it and begin anew")
        self.file = open(self.unfinished, "r+b" if resume_at else "w+b")   # noqa: SIM115 - open until `finish`
        self.file.truncate(length)
        self.file.seek(length)

    def append(self, ids: np.ndarray) -> None:
        """Write ids of any integer type; ValueError for one outside the vocabulary."""
        _check_ids(ids, self.vocab_size)
        self.file.write(ids.astype(self.dtype).tobytes())
        self.count += len(ids)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self) -> None:
        """Write the header and give the file its name."""
        self.file.seek(0)
        digest = bytes.fromhex(self.fingerprint)
        self.file.write(HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, self.vocab_size, self.count, digest))
        self.sync()
        self.file.close()
        os.replace(self.unfinished, self.path)

    def discard(self) -> None:
        """Leave nothing."""
        self.file.close()
        self.unfinished.unlink(missing_ok=True)


def write_token_file(path: str | Path, chunks: Iterable[np.ndarray], *, vocab_size: int, fingerprint: str) -> int:
    """Write a whole token file, or nothing; the arguments are those of `TokenWriter`.

    Args:
        chunks: arrays of ids of any integer type, each in [0, vocab_size).

    Returns:
        How many ids were written.

    Raises:
        ValueError: for an id outside the vocabulary, or an array that is not of integers.
    """
    writer = TokenWriter(path, vocab_size=vocab_size, fingerprint=fingerprint)
    try:
        for chunk in chunks:
            writer.append(chunk)
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    return writer.count


def open_token_file(path: str | Path, *, raw_dtype: str | None = None) -> TokenFile:
    """Open a token file without reading it.

    Args:
        path: the file.
        raw_dtype: "uint16" or "uint32" for a plain stream of ids without a header, as other tools write them.

    Raises:
        ValueError: if the file has no header (or has one although `raw_dtype` says otherwise), is damaged, cut short
            or empty.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.bin"
        >>> write_token_file(path, [np.array([1, 2, 3])], vocab_size=10, fingerprint="00" * 32)
        3
        >>> open_token_file(path).tokens.tolist()
        [1, 2, 3]
    """
    path = Path(path)
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{path} is empty; write it again")
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if raw_dtype is not None:
        item = np.dtype(raw_dtype).newbyteorder("<")
        if header.startswith(MAGIC):
            raise ValueError(f"{path} is a token file with a header, not a raw stream; leave --raw-dtype out")
        if size % item.itemsize:
            raise ValueError(f"{path}: {size} bytes are not a whole number of {raw_dtype} ids; check --raw-dtype")
        return TokenFile(np.memmap(path, dtype=item, mode="r"), None, None)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path} has no token-file header; for a plain stream of ids give --raw-dtype uint16|uint32")
    _, version, itemsize, vocab_size, count, digest = HEADER.unpack(header)
    if version != VERSION or itemsize not in (2, 4):
        raise ValueError(f"{path}: version {version}, {itemsize} bytes per id; this program reads version {VERSION} "
                         "with 2 or 4; write it again")
    if size != HEADER.size + count * itemsize:
        raise ValueError(f"{path} has {size} bytes, but its header promises {count} ids in "
                         f"{HEADER.size + count * itemsize}; it was cut short or damaged, write it again")
    if count == 0:
        raise ValueError(f"{path} holds no tokens; write it again from a text that has some")
    tokens = np.memmap(path, dtype="<u2" if itemsize == 2 else "<u4", mode="r", offset=HEADER.size, shape=(count,))
    return TokenFile(tokens, vocab_size, digest.hex())


def _check_ids(chunk: np.ndarray, vocab_size: int) -> None:
    """Refuse what a cast to the file's width would silently turn into other ids."""
    if not len(chunk):
        return
    if not np.issubdtype(chunk.dtype, np.integer):
        raise ValueError(f"ids of type {chunk.dtype} are not integers; give an array of an integer type")
    for token_id in (int(chunk.min()), int(chunk.max())):
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"id {token_id} is outside the vocabulary of {vocab_size}; check the tokenizer")
