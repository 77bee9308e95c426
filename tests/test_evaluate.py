"""Laws of validation: it is a measurement, so it is the same each time and changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llm
from llm.evaluate import evaluate
from llm.runtime import World
from tests.conftest import TINY, random_model, windows

CPU = World(torch.device("cpu"), "fp32")
DATA = windows(203, is_shifted=False)   # 12 windows of 16 targets and one of 10


@pytest.mark.parametrize(("max_tokens", "used"), [(1, 1), (16, 1), (17, 2), (192, 12), (193, 13), (10_000, 13)])
def test_max_tokens_takes_whole_samples_until_it_is_reached(max_tokens: int, used: int) -> None:
    class Counting(llm.NextToken):
        seen = 0.0

        def __call__(self, model: nn.Module, batch: Any) -> llm.Result:
            self.seen += self.weight(batch)
            return super().__call__(model, batch)

    objective = Counting()
    evaluate(random_model(TINY["gpt"]), objective, DATA, world=CPU, batch_size=5, max_tokens=max_tokens)
    assert objective.seen == DATA.lengths(0, 0)[:used].sum()


def test_it_is_weighted_by_targets_not_by_batches() -> None:
    class TargetIsLoss:
        """The loss of a target is its own id, so that the mean is known."""

        def weight(self, batch: Any) -> float:
            return float((batch["targets"] >= 0).sum())

        def __call__(self, model: nn.Module, batch: Any) -> llm.Result:
            total = batch["targets"].clamp(min=0).sum().float()
            return llm.Result(total, {"twice": (2 * total, self.weight(batch))})

    data = llm.TokenWindows(np.arange(11), context=4, is_shifted=False)   # 4 + 4 + 2 targets
    for batch_size in (1, 2, 3):
        result = evaluate(nn.Linear(1, 1), TargetIsLoss(), data, world=CPU, batch_size=batch_size)
        assert result == {"loss": 5.5, "twice": 11.0}


@pytest.mark.parametrize("is_training", [True, False])
def test_mode_and_random_state_are_as_before_even_when_the_objective_raises(is_training: bool) -> None:
    class Failing(llm.NextToken):
        def __call__(self, model: nn.Module, batch: Any) -> llm.Result:
            assert not model.training
            torch.rand(3)
            raise KeyError("mistake in the objective")

    model = random_model(TINY["gpt"]).train(is_training)
    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        evaluate(model, Failing(), DATA, world=CPU, batch_size=4)
    assert model.training == is_training
    assert torch.equal(torch.get_rng_state(), before)


def test_no_gradients_are_kept() -> None:
    model = random_model(TINY["qwen3"])
    evaluate(model, llm.NextToken(), DATA, world=CPU, batch_size=4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_data_without_a_target_is_refused() -> None:
    class Nothing(llm.NextToken):
        def weight(self, batch: Any) -> float:
            return 0.0

    with pytest.raises(ValueError, match="nothing in the validation data is supervised"):
        evaluate(random_model(TINY["gpt"]), Nothing(), DATA, world=CPU, batch_size=4)
