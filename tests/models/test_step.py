"""Laws of the fast step: the same as `forward` but for the order of sums, and what it does not know is called."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from llm.models import step as step_module
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.models.step import step_of
from llm.nn import SwiGLU, naive_attention, product
from tests.conftest import TINY, random_ids, random_model


def both(model: Decoder, *, lengths: list[int], count: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of some more tokens by `forward` and by the step, behind rows of given lengths."""
    step = step_of(model)
    assert step is not None
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for take_step, logits in zip((False, True), found, strict=True):
        cache = model.new_cache(len(lengths), 32)
        with torch.inference_mode():
            model(random_ids(len(lengths), max(lengths)), cache=cache)
            for more in range(count):
                ids = random_ids(len(lengths), 1, seed=more)
                places = torch.tensor([[length + more] for length in lengths])
                positions = None if len(set(lengths)) == 1 else places
                cache.length = max(lengths) + more
                logits.append(step(ids, positions, cache) if take_step else
                              model(ids, positions=positions, cache=cache).logits[:, 0])
    return found


@pytest.mark.parametrize("lengths", [[4], [4, 4, 4], [1, 7, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_forward_to_the_bit_but_for_the_order_of_sums(
    tiny_model: Decoder, lengths: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "JOINT", 0)
    monkeypatch.setattr(step_module, "_is_low_on_cpu", lambda tensor: False)
    slow, fast = both(tiny_model.to(dtype), lengths=lengths, count=8)
    for expected, logits in zip(slow, fast, strict=True):
        assert logits.dtype == dtype and torch.equal(logits, expected)


@pytest.mark.parametrize("lengths", [[4], [4] * 6, [1, 7, 3]])
def test_products_in_bands_change_only_the_rounding(
    tiny_model: Decoder, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "SMALL", 1)
    slow, fast = both(tiny_model, lengths=lengths, count=8)
    for expected, logits in zip(slow, fast, strict=True):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [[4], [4] * 6, [1, 7, 3]])
def test_in_low_precision_a_step_is_as_near_to_the_truth_as_forward(tiny_model: Decoder, lengths: list[int]) -> None:
    tiny_model.bfloat16()
    truth = both(copy.deepcopy(tiny_model).double(), lengths=lengths, count=8)[0]
    slow, fast = both(tiny_model, lengths=lengths, count=8)
    errors = [float((torch.stack(found) - torch.stack(truth)).square().mean()) ** 0.5 for found in (slow, fast)]
    assert 0 < errors[1] < 1.5 * errors[0]   # of the largest error alone an AMD EPYC without AVX512 makes 1.6


def test_a_model_of_inference_tensors_can_write(tiny_config: ModelConfig) -> None:
    with torch.inference_mode():
        model = random_model(tiny_config).bfloat16()   # whose layers would be joined, if changes could be told
        ids = torch.tensor([[3]])
        step = step_of(model)
        assert step is not None
        expected = model(ids).logits[:, 0]
        torch.testing.assert_close(step(ids, None, model.new_cache(1, 4)), expected, rtol=2**-6, atol=0.05)


def test_weights_that_change_are_those_that_count(tiny_model: Decoder) -> None:
    step = step_of(tiny_model)
    assert step is not None
    with torch.inference_mode(False), torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.mul_(0.9)
            parameter.data = parameter * 0.9
        ids = torch.tensor([[3]])
        expected = tiny_model(ids, cache=tiny_model.new_cache(1, 4)).logits[:, 0]
        assert torch.equal(step(ids, None, tiny_model.new_cache(1, 4)), expected)


class Loud(SwiGLU):
    """A part with a forward of its own, as a layer with LoRA is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class LoudLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def replace_mlp(model: Decoder) -> None:
    loud = Loud(dim=16, mlp_dim=model.config.mlp_width)
    loud.load_state_dict(model.blocks[1].mlp.state_dict())
    model.blocks[1].mlp = loud


def replace_linear(model: Decoder) -> None:
    old: Any = model.blocks[0].attention.k_proj
    loud = LoudLinear(old.in_features, old.out_features, bias=False)
    loud.load_state_dict(old.state_dict())
    model.blocks[0].attention.k_proj = loud


def replace_kernel(model: Decoder) -> None:
    model.blocks[0].attention.attend = naive_attention


@pytest.mark.parametrize("change", [replace_mlp, replace_linear, replace_kernel])
def test_a_part_that_is_not_known_is_called_as_it_is(change: Callable[[Decoder], None]) -> None:
    model = random_model(TINY["qwen3"])
    plain = both(model, lengths=[4], count=2)[0]
    change(model)
    slow, fast = both(model, lengths=[4], count=2)
    assert all(torch.equal(*pair) for pair in zip(slow, fast, strict=True))
    if change is not replace_kernel:
        assert not torch.allclose(slow[0], plain[0])


class Other(type(random_model(TINY["gpt"]))):   # type: ignore[misc]
    """A family that computes in another way."""

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        return super().forward(*arguments, **settings)


def hook(model: Decoder) -> None:
    model.blocks[1].mlp.register_forward_hook(lambda *_: None)


def pre_hook(model: Decoder) -> None:
    model.register_forward_pre_hook(lambda *_: None)


def mix(model: Decoder) -> None:
    model.blocks[0].double()


def compile_a_block(model: Decoder) -> None:
    model.blocks[0].compile()


@pytest.mark.parametrize("change", [hook, pre_hook, mix, compile_a_block])
def test_a_model_that_must_be_called_is_not_taken_apart(change: Callable[[Decoder], None]) -> None:
    model = random_model(TINY["gpt"])
    assert step_of(model) is not None
    change(model)
    assert step_of(model) is None
    assert step_of(Other(TINY["gpt"]).eval()) is None


def test_the_context_and_the_cache_end_for_it_too() -> None:
    model = random_model(TINY["gpt"])
    step = step_of(model)
    assert step is not None
    with torch.inference_mode():
        cache = model.new_cache(1, 3)
        model(torch.tensor([[1, 2, 3]]), cache=cache)
        with pytest.raises(ValueError, match="4 tokens exceed the cache's max_length of 3"):
            step(torch.tensor([[1]]), None, cache)
        cache = model.new_cache(1, 40)
        model(random_ids(1, 32), cache=cache)
        with pytest.raises(ValueError, match="33 tokens exceed the model's context_length of 32"):
            step(torch.tensor([[1]]), None, cache)
