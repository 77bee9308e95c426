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


def write_token_file(path: str | Path, chunks: Iterable[np.ndarray], *, vocab_size: int, fingerprint: str) -> int:
    """Write ids in pieces; the file appears under its name only when it is complete.

    Args:
        path: the file, usually `*.bin`.
        chunks: arrays of ids of any integer type, each in [0, vocab_size).
        vocab_size: V of the tokenizer.
        fingerprint: `Tokenizer.fingerprint`.

    Returns:
        How many ids were written.

    Raises:
        ValueError: for an id outside the vocabulary.
    """
    path = Path(path)
    dtype = token_dtype(vocab_size)
    count = 0
    unfinished = path.with_name(path.name + ".unfinished")
    with open(unfinished, "wb") as file:
        file.write(bytes(HEADER.size))
        for chunk in chunks:
            if len(chunk) and not (int(chunk.min()) >= 0 and int(chunk.max()) < vocab_size):
                raise ValueError(f"id {int(chunk.max())} is outside the vocabulary of {vocab_size}")
            file.write(chunk.astype(dtype.newbyteorder("<")).tobytes())
            count += len(chunk)
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, dtype.itemsize, vocab_size, count, bytes.fromhex(fingerprint)))
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return count


def open_token_file(path: str | Path, *, raw_dtype: str | None = None) -> TokenFile:
    """Open a token file without reading it.

    Args:
        path: the file.
        raw_dtype: "uint16" or "uint32" for a plain stream of ids without a header, as other tools write them.

    Raises:
        ValueError: if the file has no header, is damaged, cut short or empty.

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
    if raw_dtype is not None:
        item = np.dtype(raw_dtype).newbyteorder("<")
        if size == 0 or size % item.itemsize:
            raise ValueError(f"{path}: {size} bytes are not a whole number of {raw_dtype} ids; check --raw-dtype")
        return TokenFile(np.memmap(path, dtype=item, mode="r"), None, None)
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ValueError(f"{path} has no token-file header; for a plain stream of ids give --raw-dtype uint16|uint32")
    _, version, itemsize, vocab_size, count, digest = HEADER.unpack(header)
    if version != VERSION or itemsize not in (2, 4):
        raise ValueError(f"{path}: version {version}, {itemsize} bytes per id; this program reads version {VERSION}")
    if size != HEADER.size + count * itemsize:
        raise ValueError(f"{path} has {size} bytes, but its header promises {count} ids in "
                         f"{HEADER.size + count * itemsize}; it was cut short or damaged, write it again")
    if count == 0:
        raise ValueError(f"{path} holds no tokens")
    tokens = np.memmap(path, dtype="<u2" if itemsize == 2 else "<u4", mode="r", offset=HEADER.size, shape=(count,))
    return TokenFile(tokens, vocab_size, digest.hex())
