"""Laws of the optimizer: matrices decay and vectors do not, and its state survives under the parameters' names."""

import pytest
import torch
from torch import nn

from llm.models.build import build_model
from llm.models.config import ModelConfig
from llm.train.config import TrainConfig
from llm.train.optimizer import build_optimizers, load_optimizer_tensors, optimizer_tensors
from tests.conftest import TINY, random_ids


def test_matrices_and_embeddings_decay_norms_and_biases_do_not(tiny_config: ModelConfig) -> None:
    model = build_model(tiny_config)
    decay = {id(parameter): group["weight_decay"]
             for group in build_optimizers(model, TrainConfig(weight_decay=0.3))[0].param_groups
             for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        is_vector = name.endswith(("norm.weight", ".bias"))
        assert decay.pop(id(parameter)) == (0.0 if is_vector else 0.3), name
    assert not decay   # and nothing is in it twice


def test_a_step_is_that_of_adamw_written_out() -> None:
    """Loshchilov and Hutter 2017, algorithm 2, first step: bias correction turns both averages into the gradient."""
    model = nn.Linear(2, 1, bias=False)
    config = TrainConfig(lr=0.1, weight_decay=0.5)
    before = model.weight.detach().clone()
    optimizer = build_optimizers(model, config)[0]
    model.weight.grad = torch.tensor([[3.0, -0.02]])
    optimizer.step()
    expected = before - 0.1 * (torch.tensor([[1.0, -1.0]]) + 0.5 * before)
    assert torch.allclose(model.weight, expected, atol=1e-6)


def test_frozen_parameters_stay_out() -> None:
    model = build_model(TINY["qwen3"])
    model.embed.requires_grad_(False)
    optimizer = build_optimizers(model, TrainConfig())[0]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert id(model.embed.weight) not in held
    assert len(held) == len(list(model.parameters())) - 1
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizers(model.requires_grad_(False), TrainConfig())[0]


def test_state_moves_to_another_optimizer_by_name_to_the_bit() -> None:
    one, other = build_model(TINY["gpt"]), build_model(TINY["gpt"])
    first = build_optimizers(one, TrainConfig())[0]
    ids = random_ids(2, 8)
    for _ in range(3):
        one(ids, targets=ids).loss_sum.backward()
        first.step()
    other.load_state_dict(one.state_dict())
    second = build_optimizers(other, TrainConfig())[0]
    tensors = optimizer_tensors([first], one)
    assert {key.rsplit(".", 1)[1] for key in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    load_optimizer_tensors([second], other, {key: tensor.clone() for key, tensor in tensors.items()})
    for model, optimizer in ((one, first), (other, second)):
        model.zero_grad()
        model(ids, targets=ids).loss_sum.backward()
        optimizer.step()
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


def test_state_of_another_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizers(model, TrainConfig())[0]
    with pytest.raises(ValueError, match=r"no trainable parameter 'head\.weight'"):
        load_optimizer_tensors([optimizer], model, {"head.weight.exp_avg": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"'weight\.exp_avg' has shape \(3,\)"):
        load_optimizer_tensors([optimizer], model, {"weight.exp_avg": torch.zeros(3)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_state_that_would_spoil_the_weights_is_refused(value: float) -> None:
    model = nn.Linear(2, 2)
    optimizer = build_optimizers(model, TrainConfig())[0]
    with pytest.raises(ValueError, match=r"'bias\.exp_avg' holds a value that is no finite number"):
        load_optimizer_tensors([optimizer], model, {"bias.exp_avg": torch.tensor([0.0, value])})
