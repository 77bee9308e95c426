"""Teachers have a vote each, and what they judge beside the texts is made of these."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm.classification.baselines import NaiveBayes, words
from llm.classification.config import ObjectiveConfig
from llm.classification.judge import beliefs, encode
from llm.classification.teachers import Splices, Teachers
from llm.models.classifier import Classifier
from llm.runtime import start
from llm.tokenizers.ends import ends, with_end
from llm.tokenizers.tokenizer import Tokenizer
from tests.conftest import TINY, random_model

TEXTS = ["win cash now", "see you at five", "a £5 prize", "ok"]


def test_each_teacher_has_one_vote_on_every_text() -> None:
    """As judged alone, without padding, by those that read ids and by those that read the texts themselves."""
    tokenizer = with_end(Tokenizer.byte_level())
    config = replace(TINY["llama"], vocab_size=tokenizer.vocab_size)
    models = [Classifier(random_model(config, seed=seed), labels="ab").eval() for seed in (1, 2)]
    bayes = NaiveBayes(words, num_classes=2).fit(TEXTS, [1, 0, 1, 0])
    rows, _ = encode(TEXTS, tokenizer, context=64)
    inputs = torch.zeros((4, 20), dtype=torch.int64)
    for place, row in enumerate(rows):
        inputs[place, : len(row)] = torch.tensor(row)
    batch = {"input_ids": inputs, "lengths": torch.tensor([len(row) for row in rows])}
    world = start(device="cpu", precision="fp32")
    votes = [beliefs(model, rows, world=world, batch_size=1) for model in models] + [bayes.probabilities(TEXTS)]
    found = Teachers(models, [bayes], tokenizer)(batch)
    assert found.dtype == torch.float32 and not found.requires_grad
    assert np.allclose(found.numpy(), np.mean(votes, axis=0), atol=1e-5)


def test_a_splice_begins_as_its_text_and_ends_as_some_text_and_is_no_longer_than_the_context() -> None:
    tokenizer = with_end(Tokenizer.byte_level())
    rows, _ = encode(TEXTS, tokenizer, context=64)
    spliced = Splices(lambda number, rng: rows[number], len(rows), tokenizer, context=16)
    bare = [bytes(TEXTS[number], "utf-8") for number in range(4)]
    lengths = set()
    for seed in range(200):
        number = seed % 4
        ids = spliced(4 + number, np.random.default_rng(seed))
        assert ids[-1:] == ends(tokenizer).behind and 2 <= len(ids) <= 16
        made = bytes(ids[:-1])
        assert any(bare[number].startswith(made[:cut]) and any(made[cut:] in text for text in bare)
                   for cut in range(len(made) + 1))
        lengths.add(len(made))
    assert lengths == set(range(1, 16))
    assert [spliced(number, np.random.default_rng(0)) for number in range(4)] == rows


@pytest.mark.parametrize("count", [-1, -4])
def test_there_are_no_fewer_teachers_than_none(count: int) -> None:
    with pytest.raises(ValueError, match=f"teachers={count} must be at least 0"):
        ObjectiveConfig(teachers=count)
