"""The GGUF file as such: a header, named values, a table of tensors, their bytes. What they mean is not its affair.

    magic "GGUF"  version  number of tensors  number of values
    values:   name, type, value                    numbers, strings, and arrays of either
    tensors:  name, dimensions, format, offset     innermost dimension first
    the tensors' bytes, each aligned

A file comes from a stranger: every count and length is held against the bytes that are left before anything is made of
it, so that a damaged or malicious file ends in a ValueError and never in a large allocation. Read next:
`architectures.py`.
"""

import math
import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.interop.gguf import blocks
from llm.interop.gguf.blocks import FORMATS, Format

MAGIC = b"GGUF"
VERSIONS = (2, 3)   # 3 only adds big-endian files
ALIGNMENT = 32
NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
BOOL, STRING, ARRAY = 7, 8, 9
LONGEST_NAME = 1 << 16   # names and keys, in bytes


class TensorInfo(NamedTuple):
    """Where a tensor stands in the file, and how."""

    shape: tuple[int, ...]   # outermost dimension first, as torch has it
    kind: Format
    start: int
    size: int                # bytes


class GGUFFile:
    """An opened file: its values, and its tensors, which are read one at a time from a memory map.

    Args:
        path: the file.

    Raises:
        ValueError: if it is not a sound GGUF file of version 2 or 3.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise ValueError(f"{self.path} has {size} bytes; a GGUF file begins with 24, so it was cut short or is "
                                 "something else")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = _Reader(self.path, self._bytes)
        num_tensors, num_values = reader.header()
        self.metadata = self._read_values(reader, num_values)
        self.tensors = self._read_table(reader, num_tensors)

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """One of the values, checked.

        Args:
            key: its name.
            kind: bool, int, float, str, list for an array of strings, np.ndarray for one of numbers.
            default: if it is not there; None: it must be.

        Raises:
            ValueError: if it is missing or of another type.
        """
        found = self.metadata.get(key, default)
        if found is None:
            raise self.error(f"it has no {key!r}; convert the model anew")
        if kind is float and type(found) is int:
            found = float(found)
        if kind is float and isinstance(found, float) and not math.isfinite(found):
            raise self.error(f"{key!r} is {found}, which is no number; it is damaged: fetch it anew")
        if type(found) is not kind:
            raise self.error(f"{key!r} is {shown(found)}, not of type {kind.__name__}; convert the model anew")
        return found

    def error(self, message: str) -> ValueError:
        """A complaint about this file."""
        return ValueError(f"{self.path}: {message}")

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32, in memory of its own."""
        info = self.tensors[name]
        return blocks.decode(self.raw(name), info.kind, info.shape)

    def raw(self, name: str) -> np.ndarray:
        """(bytes,) uint8, a tensor as it stands in the file; a view of the memory map."""
        info = self.tensors[name]
        return np.frombuffer(self._bytes, dtype=np.uint8, count=info.size, offset=info.start)

    def _read_values(self, reader: "_Reader", count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        reader.expect(count, 8 + 1 + 4 + 1, "named values")
        for _ in range(count):
            key = reader.name("a value's name")
            if key in values:
                raise self.error(f"{shown(key)} stands in it twice; it is damaged")
            values[key] = reader.value(reader.number("<I"), shown(key))
        return values

    def _read_table(self, reader: "_Reader", count: int) -> dict[str, TensorInfo]:
        alignment = self.value("general.alignment", int, ALIGNMENT)
        if alignment < 1 or alignment & (alignment - 1):
            raise self.error(f"'general.alignment' = {alignment} must be a power of two; the file is damaged")
        reader.expect(count, 8 + 1 + 4 + 8 + 4 + 8, "tensors")
        rows: dict[str, tuple[list[int], int, int]] = {}
        for _ in range(count):
            name = reader.name("a tensor's name")
            if name in rows:
                raise self.error(f"the tensor {shown(name)} stands in it twice; it is damaged")
            num_dims = reader.number("<I")
            if not 1 <= num_dims <= 4:
                raise self.error(f"the tensor {shown(name)} has {num_dims} dimensions; 1 to 4 are possible")
            dims = [reader.number("<Q") for _ in range(num_dims)]
            rows[name] = dims, reader.number("<I"), reader.number("<Q")
        start = -(-reader.place // alignment) * alignment
        return {name: self._place(name, *row, start, alignment) for name, row in rows.items()}

    def _place(self, name: str, dims: list[int], number: int, offset: int, start: int, alignment: int) -> TensorInfo:
        if number not in FORMATS:
            known = ", ".join(kind.name for kind in FORMATS.values())
            raise self.error(f"the tensor {shown(name)} is stored in format {number}, which is not known; "
                             f"choose a file in one of {known}")
        kind = FORMATS[number]
        if min(dims) < 1 or dims[0] % kind.block:
            raise self.error(f"the tensor {shown(name)} has dimensions {dims}; for {kind.name} the first must be a "
                             f"multiple of {kind.block}, and none 0")
        size = kind.record.itemsize
        for dim in (dims[0] // kind.block, *dims[1:]):
            size *= dim
        if offset % alignment or start + offset + size > len(self._bytes):
            raise self.error(f"the tensor {shown(name)} {dims} takes {size:,} bytes from {start + offset:,} on, and "
                             f"the file has {len(self._bytes):,} in steps of {alignment}; it was cut short or is "
                             "damaged: fetch it anew")
        return TensorInfo(tuple(reversed(dims)), kind, start + offset, size)


class _Reader:
    """Reads forward, never past the end."""

    def __init__(self, path: Path, content: mmap.mmap):
        self.path, self.content, self.place = path, content, 0

    def header(self) -> tuple[int, int]:
        """The numbers of tensors and of values."""
        magic, version = bytes(self.take(4, "its magic")), self.number("<I")
        if magic != MAGIC:
            raise ValueError(f"{self.path} begins with {magic!r}, not with {MAGIC!r}; it is no GGUF file")
        if version not in VERSIONS:
            big = " (a big-endian file)" if version and version % 65536 == 0 else ""
            raise ValueError(f"{self.path} is GGUF version {version}{big}; only little-endian 2 and 3 are read: "
                             "convert it anew")
        return self.number("<Q"), self.number("<Q")

    def expect(self, count: int, least: int, what: str) -> None:
        """Refuse a count that the rest of the file cannot hold."""
        left = len(self.content) - self.place
        if count * least > left:
            raise ValueError(f"{self.path}: {count:,} {what} are announced where only {left:,} bytes are left; it was "
                             "cut short or is damaged: fetch it anew")

    def take(self, size: int, what: str) -> bytes:
        self.expect(size, 1, f"bytes of {what}")
        self.place += size
        return self.content[self.place - size : self.place]

    def number(self, code: str) -> int:
        [found] = struct.unpack(code, self.take(struct.calcsize(code), "a number"))
        return found

    def name(self, what: str) -> str:
        text = self.string(what, LONGEST_NAME)
        if not text:
            raise ValueError(f"{self.path}: {what} is empty; it is damaged: fetch it anew")
        return text

    def string(self, what: str, longest: int | None = None) -> str:
        size = self.number("<Q")
        if longest is not None and size > longest:
            raise ValueError(f"{self.path}: {what} has {size:,} bytes, more than {longest:,}; it is damaged: "
                             "fetch it anew")
        text = self.take(size, what)
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: {what} is not UTF-8 ({text[:40]!r}); it is damaged: "
                             "fetch it anew") from error

    def value(self, kind: int, what: str) -> Any:
        if kind == STRING:
            return self.string(what)
        if kind == BOOL or kind in NUMBERS:
            [found] = self.numbers(kind, 1, what).tolist()
            return found
        if kind == ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            if kind == STRING:
                self.expect(count, 8, f"strings of {what}")
                return [self.string(what) for _ in range(count)]
            if kind == BOOL or kind in NUMBERS:
                return self.numbers(kind, count, what)
        raise ValueError(f"{self.path}: {what} has the type {kind}, which is none of a value or of an array's; "
                         "it is damaged: fetch it anew")

    def numbers(self, kind: int, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(NUMBERS.get(kind, "u1"))
        self.expect(count, dtype.itemsize, f"numbers of {what}")
        found = np.frombuffer(self.take(count * dtype.itemsize, what), dtype=dtype)
        if kind != BOOL:
            return found
        if (found > 1).any():
            raise ValueError(f"{self.path}: {what} is {found.max()}, and a truth value is 0 or 1; it is damaged")
        return found.astype(bool)


def shown(value: Any) -> str:
    """A value of a file as part of an error message, however long it is."""
    if isinstance(value, list | np.ndarray):
        return f"an array of {len(value):,}"
    if isinstance(value, str) and len(value) > 80:
        return f"{value[:60]!r}... ({len(value):,} characters)"
    return repr(value)


def write(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[tuple[int, ...], Format]],
    produce: Callable[[str], np.ndarray],
) -> None:
    """Write a file; it gets its name only when it is complete.

    Args:
        path: the file; one that is there is replaced.
        metadata: name to bool, int, float (kept in 32 bits), string, numpy array or sequence of strings.
        tensors: name to shape, outermost dimension first, and format.
        produce: makes a tensor's values, float32 of this shape, when its turn comes.

    Raises:
        ValueError: if a tensor holds what its format cannot.
        OSError: if the disk refuses.
    """
    path = Path(path)
    numbers = {kind.name: number for number, kind in FORMATS.items()}
    head = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    head += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for name, (shape, kind) in tensors.items():
        dims = struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head.append(_string(name) + struct.pack("<I", len(shape)) + dims
                    + struct.pack("<IQ", numbers[kind.name], offset))
        offset += -(-_size(shape, kind) // ALIGNMENT) * ALIGNMENT
    unfinished = path.with_name(f".unfinished-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(unfinished, "wb") as file:
            file.write(b"".join(head))
            for name, (shape, kind) in tensors.items():
                _pad(file)
                values = produce(name)
                assert values.shape == shape, f"{name}: {values.shape} was announced as {shape}"
                try:
                    file.write(blocks.encode(values, kind).data)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
            _pad(file)   # llama.cpp wants the last tensor padded too
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _size(shape: Sequence[int], kind: Format) -> int:
    return int(np.prod(shape)) // kind.block * kind.record.itemsize


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value with its type in front."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, np.ndarray):
        kind = next(kind for kind, dtype in NUMBERS.items() if np.dtype(dtype) == value.dtype)
        return struct.pack("<IIQ", ARRAY, kind, len(value)) + value.tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
