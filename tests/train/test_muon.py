"""Muon against torch's own on matrices, on stacks of them against one at a time, and inside the Trainer."""

from pathlib import Path

import pytest
import torch
from torch import nn

import llm
from llm.models.build import build_model
from llm.train.muon import Muon, orthogonalize
from llm.train.optimizer import build_optimizers
from tests.conftest import TINY, windows

SHAPES = [(8, 8), (8, 8), (12, 4), (4, 12), (5, 3)]


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(weights: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def test_ten_steps_equal_those_of_torch() -> None:
    ours, theirs = parameters(), parameters()
    one = Muon(ours, lr=0.02, momentum=0.9, weight_decay=0.1, dtype=torch.bfloat16)   # what torch's computes in
    other = torch.optim.Muon(theirs, lr=0.02, momentum=0.9, weight_decay=0.1)
    for step in range(10):
        for weights, optimizer in ((ours, one), (theirs, other)):
            give_gradients(weights, step)
            optimizer.step()
    for weight, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(weight, expected, atol=1e-6)


def test_the_iteration_in_float32_finds_the_same_direction() -> None:
    matrix = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    exact, rounded = (orthogonalize(matrix, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert exact.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    assert (exact - rounded).norm() < 0.05 * exact.norm()   # bf16 keeps two to three digits


def test_a_stack_of_matrices_is_each_matrix_on_its_own() -> None:
    stack = nn.Parameter(torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    stack.grad = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    for matrix, gradient in zip(alone, stack.grad, strict=True):
        matrix.grad = gradient.clone()
    Muon([stack], lr=0.1).step()
    Muon(alone, lr=0.1).step()
    assert torch.allclose(stack, torch.stack(alone), atol=1e-3)


@pytest.mark.parametrize("shape", [(16, 16), (32, 8), (8, 32), (2, 8, 16)])
def test_singular_values_come_near_one(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-4
    values = torch.linalg.svdvals(orthogonalize(matrix).float())
    assert values.max() < 1.3 and values.median() > 0.6


def test_a_gradient_of_zero_moves_nothing_but_the_decay() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    assert torch.allclose(weight, torch.full((4, 4), 0.95))


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = build_model(TINY["qwen2"])   # with biases and an untied head
    adamw, muon = build_optimizers(model, llm.TrainConfig(optimizer="muon", muon_lr=0.5, lr=0.1))
    inside = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in inside) == (name.startswith("blocks.") and parameter.dim() == 2), name
    assert {group["peak_lr"] for group in adamw.param_groups} == {0.1}
    assert {group["peak_lr"] for group in muon.param_groups} == {0.5}
    with pytest.raises(ValueError, match="muon is for matrices inside `blocks`; Linear has none"):
        build_optimizers(nn.Linear(2, 2), llm.TrainConfig(optimizer="muon"))
    with pytest.raises(ValueError, match="not for a parameter of shape"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_a_run_with_muon_learns_and_resumes_to_the_bit(tmp_path: Path) -> None:
    def trainer(folder: str, steps: int) -> llm.Trainer:
        model = build_model(TINY["qwen3"], generator=torch.Generator().manual_seed(7))
        config = llm.TrainConfig(steps=12, batch_size=8, optimizer="muon", lr=3e-3, schedule="constant", warmup=0,
                                 device="cpu", precision="fp32", save_every=steps, eval_every=0)
        return llm.Trainer(model, llm.NextToken(), train=windows(), config=config, folder=tmp_path / folder)

    unbroken = trainer("unbroken", 12)
    first = unbroken.train_step()["loss"]
    unbroken = trainer("unbroken", 12)
    unbroken.fit()
    broken = trainer("broken", 5)
    broken.total_steps = 5
    broken.fit()
    again = trainer("broken", 12)
    again.resume()
    last = [again.train_step()["loss"] for _ in range(7)][-1]
    assert last < first - 0.3
    for one, other in zip(unbroken.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
