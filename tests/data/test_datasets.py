"""Laws of token windows: every next token is predicted exactly once an epoch, however the stream is cut."""

import itertools

import numpy as np
import pytest
import torch

from llm.data.datasets import Examples, TokenWindows
from llm.losses import IGNORE_INDEX


def batch_of_all(windows: TokenWindows, *, seed: int = 1, epoch: int = 0) -> dict[str, torch.Tensor]:
    return windows.batch(np.arange(len(windows.lengths(seed, epoch))), seed=seed, epoch=epoch)


@pytest.mark.parametrize("context", [1, 2, 3, 5, 8, 20])
def test_every_target_occurs_once_an_epoch(context: int) -> None:
    for count, epoch, is_shifted in itertools.product(range(2, 19), range(4), (False, True)):
        batch = batch_of_all(TokenWindows(np.arange(count), context=context, is_shifted=is_shifted), epoch=epoch)
        real = batch["targets"] != IGNORE_INDEX
        assert batch["targets"][real].tolist() == list(range(1, count))
        assert torch.equal(batch["input_ids"][real] + 1, batch["targets"][real])   # the token after it, and no other


@pytest.mark.parametrize("count", [2, 3, 11, 16, 17, 18])
def test_lengths_are_the_numbers_of_targets(count: int) -> None:
    windows = TokenWindows(np.arange(count), context=5)
    for epoch in range(5):
        lengths = windows.lengths(1, epoch)
        targets = batch_of_all(windows, epoch=epoch)["targets"]
        assert (targets != IGNORE_INDEX).sum(dim=1).tolist() == lengths.tolist()
        assert lengths.min() >= 1 and lengths.max() <= 5
        assert (lengths[1:-1] == 5).all()   # only the ends are short


def test_windows_differ_between_epochs_and_seeds_and_repeat_for_the_same() -> None:
    def cuts(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(TokenWindows(np.arange(1000), context=64).lengths(seed, epoch))

    assert len({cuts(1, epoch) for epoch in range(20)}) > 10   # 64 possible offsets, some meet
    assert len({cuts(seed, 0) for seed in range(20)}) > 10
    assert cuts(3, 7) == cuts(3, 7)


def test_validation_windows_are_cut_at_multiples_of_the_context_whatever_the_epoch() -> None:
    windows = TokenWindows(np.arange(12), context=5, is_shifted=False)
    for seed, epoch in [(0, 0), (1, 5)]:
        assert batch_of_all(windows, seed=seed, epoch=epoch)["input_ids"][:, 0].tolist() == [0, 5, 10]


def test_a_batch_is_as_long_as_its_longest_window_and_no_longer() -> None:
    windows = TokenWindows(np.arange(12), context=5, is_shifted=False)
    assert windows.batch(np.array([2]), seed=0, epoch=0)["input_ids"].shape == (1, 1)
    short = windows.batch(np.array([2, 0]), seed=0, epoch=0)
    assert short["input_ids"].tolist() == [[10, 0, 0, 0, 0], [0, 1, 2, 3, 4]]
    assert short["targets"].tolist() == [[11] + [IGNORE_INDEX] * 4, [1, 2, 3, 4, 5]]


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int64"])
def test_ids_keep_their_value_in_every_width(dtype: str) -> None:
    tokens = np.array([0, 65_535, 1], dtype=dtype)
    batch = batch_of_all(TokenWindows(tokens, context=4, is_shifted=False))
    assert batch["input_ids"].tolist() == [[0, 65_535]]
    assert batch["targets"].dtype == batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("place", [0, 4, 9])
@pytest.mark.parametrize("wrong", [50, -1])
def test_ids_outside_the_vocabulary_are_named(place: int, wrong: int) -> None:
    tokens = np.arange(10)
    tokens[place] = wrong
    with pytest.raises(ValueError, match=f"id {wrong}, .* vocabulary has only 50"):
        batch_of_all(TokenWindows(tokens, context=4, vocab_size=50))


@pytest.mark.parametrize("count", [0, 1])
def test_a_stream_without_a_target_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"the stream has {count} tokens; it needs 2 or more"):
        TokenWindows(np.arange(count), context=4)


def test_a_context_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="context=0 must be at least 1"):
        TokenWindows(np.arange(9), context=0)


def test_examples_are_collated_in_the_order_asked_for() -> None:
    examples = Examples("abcdef", collate=list)
    assert examples.batch(np.array([5, 0, 3]), seed=1, epoch=9) == ["f", "a", "d"]
    assert examples.lengths(0, 0).tolist() == [1] * 6
    with pytest.raises(ValueError, match="no samples"):
        Examples([])


def test_windows_of_documents_hold_one_document_each_and_every_target_once() -> None:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([np.append(rng.integers(1, 9, length), 0) for length in rng.integers(1, 60, 60)])
    windows = TokenWindows(tokens, context=20, document_end=0)
    lengths = windows.lengths(1, 0)
    batch = windows.batch(np.arange(len(lengths)), seed=1, epoch=0)
    targets = batch["targets"]
    assert lengths.max() <= 20 and lengths.sum() == len(tokens) - 1
    assert targets[targets != -100].tolist() == tokens[1:].tolist()
    ends = (targets == 0).sum(dim=1)
    assert ends.max() == 1 and ends.sum() == 60   # no window sees past the end of its document
    for row, length in enumerate(lengths):
        goes_on = targets[row, length - 1] != 0   # only a document that is longer than a window is cut
        assert not goes_on or length == 20


def test_windows_of_documents_come_in_few_widths() -> None:
    tokens = np.tile([1] * 40 + [0], 3)
    windows = TokenWindows(tokens, context=100, document_end=0)
    assert windows.batch(np.array([1]), seed=1, epoch=0)["targets"].shape == (1, 64)   # 41 rounded up
    assert TokenWindows(tokens, context=50, document_end=0).batch(np.array([1]), seed=1, epoch=0)["targets"].shape == (
        1, 50)


def test_windows_of_documents_longer_than_the_context_are_cut_and_none_is_lost() -> None:
    windows = TokenWindows(np.array([5, 5, 5, 5, 5, 0, 6, 0]), context=3, document_end=0)
    assert windows.lengths(0, 0).tolist() == [3, 2, 2]
