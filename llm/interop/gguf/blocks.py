"""The number formats of GGUF: how a few bits a weight become float32, and how float32 becomes 16 or 8 bits.

A quantized tensor is cut along its rows into blocks of 32 or 256 weights. A block holds one or two float16 scales and
a small whole number for each weight; here a block is a numpy record, so that a whole tensor is taken apart by slicing
fields of an array, without a loop over blocks. The "K" formats have a second level: a scale for the block, and in it
6-bit scales for its sub-blocks of 16 or 32.

Results are those of llama.cpp to the bit: the same float32 operations in the same order. Left out: formats of fewer
bits (Q2_K, Q3_K, the IQ family), and writing anything smaller than Q8_0. Read next: `container.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BLOCKS_AT_ONCE = 1 << 16   # bounds what decoding and encoding hold besides the result


class Format(NamedTuple):
    """One way to store weights: so many of them in a record of this type."""

    name: str
    block: int                                               # weights in a block
    record: np.dtype
    decode: Callable[[np.ndarray], np.ndarray]               # (n,) records to (n, block) float32
    encode: Callable[[np.ndarray], np.ndarray] | None = None   # (n, block) float32 to (n,) records


def decode(raw: np.ndarray, kind: Format, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor's bytes as float32.

    Args:
        raw: (bytes,) uint8, as many as the shape needs, perhaps memory-mapped.
        kind: how they are stored.
        shape: of the result; the last dimension is made of whole blocks.

    Example:
        >>> decode(np.array([0, 60, 0, 0], dtype=np.uint8), FORMATS[1], (2,))   # float16
        array([1., 0.], dtype=float32)
    """
    records = raw.view(kind.record)
    values = np.empty((len(records), kind.block), dtype=np.float32)
    with np.errstate(all="ignore"):   # a damaged scale may be infinite or NaN; that is for the caller to judge
        for start in range(0, len(records), BLOCKS_AT_ONCE):
            part = slice(start, start + BLOCKS_AT_ONCE)
            values[part] = kind.decode(records[part])
    return values.reshape(shape)


def encode(values: np.ndarray, kind: Format) -> np.ndarray:
    """The bytes of a float32 tensor whose last dimension is made of whole blocks; the inverse of `decode`.

    Returns:
        (bytes,) uint8.

    Raises:
        ValueError: if a value is not finite, or would not be in this format.

    Example:
        >>> encode(np.ones(2, dtype=np.float32), FORMATS[1]).tolist()
        [0, 60, 0, 60]
    """
    if kind.encode is None:
        raise ValueError(f"{kind.name} is read but not written; choose from {', '.join(WRITABLE)}")
    blocks = values.astype(np.float32, copy=False).reshape(-1, kind.block)
    records = np.empty(len(blocks), dtype=kind.record)
    for start in range(0, len(blocks), BLOCKS_AT_ONCE):
        part = slice(start, start + BLOCKS_AT_ONCE)
        with np.errstate(all="ignore"):
            records[part] = kind.encode(blocks[part])
            is_finite = np.isfinite(kind.decode(records[part])).all() and np.isfinite(blocks[part]).all()
        if not is_finite:
            raise ValueError(f"it holds {np.abs(blocks[part]).max():.3g}, which {kind.name} cannot; "
                             "NaN and infinity are no weights, and f16 ends at 65504: choose bf16 or f32")
    return records.view(np.uint8)


def _f32(records: np.ndarray) -> np.ndarray:
    return records[:, None]


def _f16(records: np.ndarray) -> np.ndarray:
    return records[:, None].astype(np.float32)


def _bf16(records: np.ndarray) -> np.ndarray:
    """The upper half of a float32."""
    return (records[:, None].astype(np.uint32) << 16).view(np.float32)


def _to_bf16(blocks: np.ndarray) -> np.ndarray:
    bits = blocks[:, 0].view(np.uint32)
    return ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)   # to nearest, ties to even


def _bits(packed: np.ndarray, width: int) -> np.ndarray:
    """(..., G) bytes as (..., 8 / width, G) numbers of `width` bits, those of the lowest bits first."""
    return np.stack([(packed >> shift) & ((1 << width) - 1) for shift in range(0, 8, width)], axis=-2)


def _float(field: np.ndarray) -> np.ndarray:
    """(n,) float16 scales as (n, 1) float32."""
    return field[:, None].astype(np.float32)


def _q4(records: np.ndarray) -> np.ndarray:
    """(n, 32) numbers from 0 to 15: the low halves of 16 bytes, then the high ones."""
    return _bits(records["low"], 4).reshape(-1, 32)


def _q5(records: np.ndarray) -> np.ndarray:
    """(n, 32) numbers from 0 to 31: four bits as in Q4, and the fifth from a bit mask."""
    return _q4(records) | (np.unpackbits(records["high"], axis=-1, bitorder="little") << 4)


def _q4_0(records: np.ndarray) -> np.ndarray:
    return _float(records["scale"]) * (_q4(records).astype(np.float32) - 8)


def _q4_1(records: np.ndarray) -> np.ndarray:
    return _float(records["scale"]) * _q4(records).astype(np.float32) + _float(records["least"])


def _q5_0(records: np.ndarray) -> np.ndarray:
    return _float(records["scale"]) * (_q5(records).astype(np.float32) - 16)


def _q5_1(records: np.ndarray) -> np.ndarray:
    return _float(records["scale"]) * _q5(records).astype(np.float32) + _float(records["least"])


def _q8_0(records: np.ndarray) -> np.ndarray:
    return _float(records["scale"]) * records["number"].astype(np.float32)


def _to_q8_0(blocks: np.ndarray) -> np.ndarray:
    records = np.empty(len(blocks), dtype=Q8_0)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = blocks * np.where(scale == 0, np.float32(0), 1 / scale)
    whole = np.trunc(steps)
    whole += np.copysign(np.abs(steps - whole) >= 0.5, steps)   # halves away from zero, as C's roundf
    records["scale"], records["number"] = scale[:, 0], whole
    return records


def _six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes to 8 scales and 8 minima of 6 bits, each (n, 8).

    Bytes 0-3 hold the first four scales and bytes 4-7 the first four minima, in their lower six bits; the last four of
    both have their lower four bits in bytes 8-11 and their upper two in the two bits left over in bytes 0-7.
    """
    scales, minima, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (np.concatenate([scales & 63, (low & 15) | (scales >> 6 << 4)], axis=1),
            np.concatenate([minima & 63, (low >> 4) | (minima >> 6 << 4)], axis=1))


def _scaled_k(records: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(n, 8, 32) numbers with the two levels of scales and minima of Q4_K and Q5_K, as (n, 256)."""
    scales, minima = _six_bits(records["scales"])
    scale = _float(records["scale"]) * scales.astype(np.float32)
    least = _float(records["least"]) * minima.astype(np.float32)
    return (scale[:, :, None] * numbers.astype(np.float32) - least[:, :, None]).reshape(-1, 256)


def _q4_k(records: np.ndarray) -> np.ndarray:
    return _scaled_k(records, _bits(records["low"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32))


def _q5_k(records: np.ndarray) -> np.ndarray:
    low = _bits(records["low"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _scaled_k(records, low | (_bits(records["high"], 1) << 4))


def _q6_k(records: np.ndarray) -> np.ndarray:
    low = _bits(records["low"].reshape(-1, 2, 64), 4).reshape(-1, 2, 4, 32)
    high = _bits(records["high"].reshape(-1, 2, 32), 2)
    numbers = (low | (high << 4)).astype(np.float32) - 32
    scale = _float(records["scale"]) * records["scales"].astype(np.float32)
    return (scale[:, :, None] * numbers.reshape(-1, 16, 16)).reshape(-1, 256)


def _record(**fields: str) -> np.dtype:
    return np.dtype(list(fields.items()))


Q8_0 = _record(scale="<f2", number="32i1")

FORMATS: dict[int, Format] = {   # by the number that stands in the file
    0: Format("F32", 1, np.dtype("<f4"), _f32, lambda blocks: blocks[:, 0]),
    1: Format("F16", 1, np.dtype("<f2"), _f16, lambda blocks: blocks[:, 0].astype(np.float16)),
    2: Format("Q4_0", 32, _record(scale="<f2", low="16u1"), _q4_0),
    3: Format("Q4_1", 32, _record(scale="<f2", least="<f2", low="16u1"), _q4_1),
    6: Format("Q5_0", 32, _record(scale="<f2", high="4u1", low="16u1"), _q5_0),
    7: Format("Q5_1", 32, _record(scale="<f2", least="<f2", high="4u1", low="16u1"), _q5_1),
    8: Format("Q8_0", 32, Q8_0, _q8_0, _to_q8_0),
    12: Format("Q4_K", 256, _record(scale="<f2", least="<f2", scales="12u1", low="128u1"), _q4_k),
    13: Format("Q5_K", 256, _record(scale="<f2", least="<f2", scales="12u1", high="32u1", low="128u1"), _q5_k),
    14: Format("Q6_K", 256, _record(low="128u1", high="64u1", scales="16i1", scale="<f2"), _q6_k),
    30: Format("BF16", 1, np.dtype("<u2"), _bf16, _to_bf16),
}
WRITABLE = {kind.name.lower(): number for number, kind in FORMATS.items() if kind.encode}
