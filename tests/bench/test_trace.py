"""Laws of the profile: every operator counts once, in the group that a reader would look for it in."""

from types import SimpleNamespace

import pytest
import torch

from llm.bench.measure import Watch
from llm.bench.steps import Job, build_step
from llm.bench.trace import (
    ATTENTION,
    CASTS,
    COMPILED,
    HEAD,
    MATRIX,
    OPTIMIZER,
    OTHER,
    OUTSIDE,
    POINTWISE,
    group_of,
    profile_step,
)
from llm.models.config import GPTConfig


def event(name: str, shapes: object = None, parent: object = None) -> SimpleNamespace:
    return SimpleNamespace(name=name, input_shapes=shapes, cpu_parent=parent)


@pytest.mark.parametrize(("name", "shapes", "group"), [
    ("aten::mm", [[8, 16], [16, 16]], MATRIX),
    ("aten::addmm", [[16], [8, 16], [16, 16]], MATRIX),
    ("aten::mm", [[8, 16], [16, 61]], HEAD),
    ("aten::copy_", [[61, 16], [61, 16], []], HEAD),
    ("aten::copy_", [[16, 16], [16, 16], []], CASTS),
    ("aten::_log_softmax", [[8, 7]], HEAD),
    ("aten::embedding", [[61, 16], [2, 4]], OTHER),
    ("aten::embedding_dense_backward", [[2, 4, 16], [2, 4]], OTHER),
    ("aten::native_layer_norm", [[2, 4, 16]], POINTWISE),
    ("aten::gelu_backward", [[2, 4, 16]], POINTWISE),
    ("aten::_scaled_dot_product_flash_attention_for_cpu", [[2, 2, 4, 8]], ATTENTION),
    ("aten::baddbmm", [[4, 4], [2, 4, 8], [2, 8, 4]], ATTENTION),
    ("aten::_foreach_norm", None, OPTIMIZER),
    ("Optimizer.step#AdamW.step", None, OPTIMIZER),
    ("Torch-Compiled Region: 0/0", None, COMPILED),
    ("aten::view", [[2, 4, 16]], OTHER),
])
def test_the_group_of_an_operator(name: str, shapes: object, group: str) -> None:
    assert group_of(event(name, shapes), 61) == group


@pytest.mark.parametrize(("parent", "group"), [
    (event("Optimizer.step#Muon.step"), OPTIMIZER),
    (event("aten::linear", [[8, 16], [61, 16]]), HEAD),
    (event("aten::scaled_dot_product_attention", [[2, 2, 4, 8]]), ATTENTION),
    (event("BmmBackward0"), ATTENTION),
    (event("AddmmBackward0"), MATRIX),
])
def test_a_part_counts_to_the_whole_that_it_serves(parent: object, group: str) -> None:
    assert group_of(event("aten::mm", [[8, 16], [16, 16]], parent), 61) == group


@pytest.mark.parametrize("program", ["ours", "transformers"])
def test_the_groups_of_a_real_step_add_up_and_none_is_empty(program: str) -> None:
    architecture = GPTConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=2, dim=16)
    job = Job(program=program, architecture=architecture, batch_size=2, context=16,   # type: ignore[arg-type]
              precision="fp32", device="cpu")
    breakdown = profile_step(build_step(job), steps=2, watch=Watch(torch.device("cpu")), vocab_size=61)
    assert {MATRIX, ATTENTION, HEAD, OPTIMIZER, POINTWISE, OUTSIDE} <= set(breakdown.groups)
    assert all(seconds >= 0 for seconds in breakdown.groups.values())
    inside = sum(seconds for name, seconds in breakdown.groups.items() if name != OUTSIDE)
    assert inside == pytest.approx(sum(seconds for _, _, seconds in breakdown.operators))
    products = {name: calls for name, calls, _ in breakdown.operators}
    assert products["aten::mm"] + products["aten::addmm"] >= 3 * 2 * 4   # each matrix once forward, twice backward
    assert breakdown.step_s > 0 and breakdown.profiled_s > 0
