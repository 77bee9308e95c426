"""Texts that change from epoch to epoch: by chance, but the same chance for everybody who asks."""

import numpy as np
import pytest

from llm.classification.augment import Versions
from llm.classification.config import ClassifyConfig, ObjectiveConfig
from llm.classification.fit import versions
from llm.data.datasets import LabelledTexts
from llm.tokenizers.tokenizer import Tokenizer

TEXTS = ["the lowest price for the newest flower", "a", "low lower lowest, slow slower slowest", "you won"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=300)


def dataset(tokenizer: Tokenizer, *, context: int = 30, bpe: float = 0.3, token: float = 0.3) -> LabelledTexts:
    version = Versions(TEXTS, tokenizer, context=context, bpe_dropout=bpe, token_dropout=token)
    return LabelledTexts([tokenizer.encode(text) for text in TEXTS], [0, 1, 0, 1], version=version, has_targets=True)


def rows(texts: LabelledTexts, order: list[int], *, epoch: int) -> dict[int, list[int]]:
    batch = texts.batch(np.array(order), seed=1, epoch=epoch)
    return {number: ids[:length].tolist() for number, ids, length in
            zip(order, batch["input_ids"], batch["lengths"], strict=True)}


def test_a_text_reads_the_same_in_whatever_batch_it_comes(tokenizer: Tokenizer) -> None:
    whole = rows(dataset(tokenizer), [0, 1, 2, 3], epoch=2)
    other = dataset(tokenizer)
    rows(other, [3], epoch=1)   # as if another epoch had been read before
    parts = rows(other, [3, 0], epoch=2) | rows(other, [2], epoch=2) | rows(other, [1], epoch=2)
    assert parts == whole
    assert [len(whole[number]) for number in range(4)] == dataset(tokenizer).lengths(1, 2).tolist()


def test_it_reads_otherwise_in_another_epoch_and_with_another_seed(tokenizer: Tokenizer) -> None:
    texts = dataset(tokenizer)
    assert rows(texts, [0, 2], epoch=0) != rows(texts, [0, 2], epoch=1)
    assert texts.lengths(1, 0).tolist() != texts.lengths(2, 0).tolist()


def test_without_chance_it_is_the_text_itself(tokenizer: Tokenizer) -> None:
    plain = {number: tokenizer.encode(text) for number, text in enumerate(TEXTS)}
    assert rows(dataset(tokenizer, bpe=0.0, token=0.0), [0, 1, 2, 3], epoch=0) == plain


def test_merges_that_are_left_out_keep_the_text_and_tokens_that_are_left_out_do_not(tokenizer: Tokenizer) -> None:
    cut = rows(dataset(tokenizer, token=0.0, context=99), [0, 2], epoch=0)
    assert all(tokenizer.decode(cut[number]) == TEXTS[number] for number in cut)
    assert cut != {number: tokenizer.encode(TEXTS[number]) for number in cut}
    left = rows(dataset(tokenizer, bpe=0.0), [0], epoch=0)[0]
    rest = iter(tokenizer.encode(TEXTS[0]))
    assert len(left) < len(tokenizer.encode(TEXTS[0])) and all(token_id in rest for token_id in left)   # in this order


def test_one_token_stays_and_no_more_than_the_context(tokenizer: Tokenizer) -> None:
    for epoch in range(20):
        assert all(1 <= len(ids) <= 5 for ids in rows(dataset(tokenizer, context=5, token=0.9), [0, 1, 2], epoch=epoch)
                   .values())


@pytest.mark.parametrize(("wanted", "is_folder", "rate"), [(None, False, 0.2), (None, True, 0.0), (0.1, True, 0.1)])
def test_who_cuts_at_random(tokenizer: Tokenizer, wanted: float | None, is_folder: bool, rate: float) -> None:
    config = ClassifyConfig(objective=ObjectiveConfig(bpe_dropout=wanted))
    found = versions(config, TEXTS, tokenizer, context=9, is_folder=is_folder)
    assert found is not None and (found.varied.rate if found.varied else 0.0) == rate


def test_a_tokenizer_without_merges_is_left_alone_unless_asked() -> None:
    plain = Tokenizer.byte_level()
    found = versions(ClassifyConfig(), TEXTS, plain, context=9, is_folder=False)
    assert found is not None and found.varied is None
    off = ClassifyConfig(objective=ObjectiveConfig(token_dropout=0.0))
    assert versions(off, TEXTS, plain, context=9, is_folder=False) is None
    with pytest.raises(ValueError, match="none to leave out"):
        versions(ClassifyConfig(objective=ObjectiveConfig(bpe_dropout=0.1)), TEXTS, plain, context=9, is_folder=False)


@pytest.mark.parametrize("name", ["bpe_dropout", "token_dropout"])
def test_a_chance_is_below_1(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=1.0 must lie in"):
        ObjectiveConfig(**{name: 1.0})
