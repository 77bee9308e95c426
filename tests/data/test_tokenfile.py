"""Laws of token files: what was written is read back, and nothing else is ever read as if it had been written."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llm.data.datasets import TokenWindows
from llm.data.loader import Loader
from llm.data.tokenfile import HEADER, MAGIC, VERSION, open_token_file, token_dtype, write_token_file

FINGERPRINT = bytes(range(32)).hex()


def written(folder: Path, ids: list[int], *, vocab_size: int = 100) -> Path:
    path = folder / "a.bin"
    write_token_file(path, [np.array(ids, dtype=np.int64)], vocab_size=vocab_size, fingerprint=FINGERPRINT)
    return path


@pytest.mark.parametrize(("vocab_size", "dtype"), [(1, "uint16"), (65_535, "uint16"), (65_536, "uint16"),
                                                   (65_537, "uint32"), (200_001, "uint32")])
def test_the_highest_id_of_a_vocabulary_survives_the_file(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    ids = sorted({0, 1 % vocab_size, vocab_size // 2, vocab_size - 1})
    file = open_token_file(written(tmp_path, ids, vocab_size=vocab_size))
    assert file.tokens.tolist() == ids
    assert file.tokens.dtype == token_dtype(vocab_size) == np.dtype(dtype)
    assert (file.vocab_size, file.fingerprint) == (vocab_size, FINGERPRINT)


@pytest.mark.parametrize("token_id", [65_535, 65_536, 200_000])
def test_ids_around_sixteen_bits_are_not_wrapped(tmp_path: Path, token_id: int) -> None:
    assert open_token_file(written(tmp_path, [token_id, 0], vocab_size=200_001)).tokens.tolist() == [token_id, 0]


def test_the_header_is_the_documented_64_bytes(tmp_path: Path) -> None:
    data = written(tmp_path, [7, 8, 9]).read_bytes()
    assert struct.unpack("<8sIIQQ32s", data[:64]) == (b"LLMTOKEN", 1, 2, 100, 3, bytes(range(32)))
    assert data[64:] == struct.pack("<3H", 7, 8, 9)


def test_pieces_make_the_same_file_as_the_whole(tmp_path: Path) -> None:
    pieces = [np.array([1, 2], dtype=np.uint8), np.array([]), np.array([3], dtype=np.int64)]
    count = write_token_file(tmp_path / "pieces.bin", iter(pieces), vocab_size=100, fingerprint=FINGERPRINT)
    assert count == 3
    assert (tmp_path / "pieces.bin").read_bytes() == written(tmp_path, [1, 2, 3]).read_bytes()


@pytest.mark.parametrize(("chunk", "message"), [
    (np.array([3, 100]), "id 100 is outside the vocabulary of 100"),
    (np.array([-1, 3]), "id -1 is outside the vocabulary of 100"),
    (np.array([1.5]), "float64 are not integers"),
])
def test_ids_that_do_not_fit_are_refused_by_name(tmp_path: Path, chunk: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_token_file(tmp_path / "a.bin", [chunk], vocab_size=100, fingerprint=FINGERPRINT)
    assert not list(tmp_path.iterdir())


def test_an_unfinished_write_leaves_the_file_before_it_and_no_other(tmp_path: Path) -> None:
    path = written(tmp_path, [1, 2, 3])

    def failing() -> Iterator[np.ndarray]:
        yield np.array([4, 5])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_token_file(path, failing(), vocab_size=100, fingerprint=FINGERPRINT)
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]
    assert open_token_file(path).tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize("length", [0, 1, 8, 63, 64, 66, 69])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    path = written(tmp_path, [1, 2, 3])   # 70 bytes
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=f"{path}.*(empty|no token-file header|cut short)"):
        open_token_file(path)


def test_a_file_with_more_than_it_promises_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [1, 2, 3])
    path.write_bytes(path.read_bytes() + b"\0\0")
    with pytest.raises(ValueError, match="has 72 bytes, but its header promises 3 ids in 70"):
        open_token_file(path)


@pytest.mark.parametrize(("magic", "version", "itemsize", "message"), [
    (b"LLMTOKEM", VERSION, 2, "no token-file header; for a plain stream of ids give --raw-dtype"),
    (MAGIC, VERSION + 1, 2, "version 2, .* reads version 1"),
    (MAGIC, VERSION, 8, "8 bytes per id"),
])
def test_a_foreign_header_is_refused(tmp_path: Path, magic: bytes, version: int, itemsize: int, message: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(HEADER.pack(magic, version, itemsize, 100, 1, bytes(32)) + bytes(itemsize))
    with pytest.raises(ValueError, match=message):
        open_token_file(path)


def test_a_file_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no tokens"):
        open_token_file(written(tmp_path, []))


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_raw_stream_is_read_in_the_width_that_was_named(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "raw.bin"
    ids = [0, 50_256, np.iinfo(dtype).max]
    np.array(ids, dtype=dtype).tofile(path)
    file = open_token_file(path, raw_dtype=dtype)
    assert file.tokens.tolist() == ids
    assert (file.vocab_size, file.fingerprint) == (None, None)


@pytest.mark.parametrize(("data", "dtype", "message"), [
    (b"abc", "uint16", "3 bytes are not a whole number of uint16 ids; check --raw-dtype"),
    (b"abcdef", "uint32", "6 bytes are not a whole number of uint32 ids; check --raw-dtype"),
    (b"", "uint16", "is empty"),
    (HEADER.pack(MAGIC, VERSION, 2, 100, 0, bytes(32)), "uint16", "leave --raw-dtype out"),
])
def test_a_raw_stream_that_cannot_be_one_is_refused(tmp_path: Path, data: bytes, dtype: str, message: str) -> None:
    path = tmp_path / "raw.bin"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_token_file(path, raw_dtype=dtype)


def test_memory_stays_bounded_over_two_thousand_batches(tmp_path: Path) -> None:
    """A leak of one batch (64 kB) each would be 128 MB. Pages of the mapped file itself do not count: the system
    takes them back when it needs to."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("reads Linux's account of memory")
    path = tmp_path / "a.bin"
    chunks = (np.full(1 << 20, number) for number in range(16))
    write_token_file(path, chunks, vocab_size=100, fingerprint=FINGERPRINT)
    windows = TokenWindows(open_token_file(path).tokens, context=1024)
    loader = Loader(windows, batch_size=4, seed=1)
    before = 0
    for place in range(2200):
        loader.step(0, place)
        before = _anonymous_kib() if place == 200 else before
    assert _anonymous_kib() - before < 16 * 1024


def _anonymous_kib() -> int:
    """Memory of this process that is not backed by a file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon")]
    return int(line.split()[1])
