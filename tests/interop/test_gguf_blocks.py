"""The number formats of GGUF are those of llama.cpp's own package, to the bit."""

import gguf
import numpy as np
import pytest

from llm.interop.gguf import blocks
from llm.interop.gguf.blocks import FORMATS, WRITABLE, decode, encode


def bits(values: np.ndarray) -> np.ndarray:
    """Float32 by its bits, all NaN alike."""
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


@pytest.mark.parametrize("number", FORMATS, ids=lambda number: FORMATS[number].name)
def test_random_bytes_mean_the_same_to_llama_cpp(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCKS_AT_ONCE", 7)   # many slices, the last one short
    kind = FORMATS[number]
    raw = np.random.default_rng(number).integers(0, 256, (6, 50 * kind.record.itemsize), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType(number))
    ours = decode(raw.reshape(-1), kind, (2, 3, 50 * kind.block))
    assert gguf.GGMLQuantizationType(number).name == kind.name
    assert gguf.GGML_QUANT_SIZES[number] == (kind.block, kind.record.itemsize)
    assert ours.shape == (2, 3, 50 * kind.block) and np.isfinite(ours).mean() > 0.5
    assert (bits(ours).reshape(-1) == bits(theirs).reshape(-1)).all()


@pytest.mark.parametrize("name", WRITABLE)
def test_weights_are_written_as_llama_cpp_writes_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCKS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((64, 96)) * np.exp(3 * rng.standard_normal((64, 1)))).astype(np.float32)
    values[0], values[1] = 0, np.arange(96) - 48.5                                       # nothing, and halves
    values[2, :2] = 127, 63.49999
    theirs = gguf.quantize(values, gguf.GGMLQuantizationType[name.upper()])
    written = encode(values, FORMATS[WRITABLE[name]])
    assert (written == np.ascontiguousarray(theirs).view(np.uint8).reshape(-1)).all()
    again = decode(written, FORMATS[WRITABLE[name]], values.shape)
    # half a step at the largest number of a block; for q8_0 that of the numbers and that of the scale
    step = {"f32": 0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.5 / 127 + 2**-11}[name]
    assert (np.abs(again - values) <= step * np.abs(values).max(axis=1, keepdims=True)).all()


@pytest.mark.parametrize(("name", "value"), [
    ("f16", 7e4), ("q8_0", 1e9), ("bf16", 3.4e38), ("f32", np.inf), ("q8_0", np.nan), ("bf16", np.nan)])
def test_what_a_format_cannot_hold_is_refused(name: str, value: float) -> None:
    values = np.zeros((2, 32), dtype=np.float32)
    values[1, 5] = value
    with pytest.raises(ValueError, match=rf"it holds .*, which {name.upper()} cannot; .*choose bf16 or f32"):
        encode(values, FORMATS[WRITABLE[name]])


def test_formats_that_are_only_read_say_so() -> None:
    with pytest.raises(ValueError, match="Q4_K is read but not written; choose from f32, f16, q8_0, bf16"):
        encode(np.zeros((1, 256), dtype=np.float32), FORMATS[12])
