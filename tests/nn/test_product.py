"""Laws of the product for a few tokens: what `F.linear` gives, whichever way it is worked out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm.nn import Attention, product
from llm.nn.product import FEW, MANY, JointLinear, can_join, few_token_linear, joint_linear


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with several cores, whatever this one has."""
    monkeypatch.setattr(product, "SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize("outputs", [8, 24, 29, 31 * 9, 37])   # 37 has no bands
@pytest.mark.parametrize("rows", [0, 1, 2, FEW, FEW + 1, MANY, MANY + 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_linear(outputs: int, rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(outputs, 12, generator=generator), torch.randn(rows, 1, 12, generator=generator)
    bias = torch.randn(outputs, generator=generator) if has_bias else None
    found = few_token_linear(x, weight, bias)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == (rows, 1, outputs) and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_bands_are_used_where_they_help_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "bmm", lambda *pair: calls.append(pair) or torch.baddbmm(torch.zeros(1), *pair, beta=0))
    weight = torch.ones(16, 4)
    few_token_linear(torch.ones(1, 1, 4), weight)
    (bands, column), = calls
    assert bands.shape == (8, 2, 4)
    assert column.stride() == (0, 1, 4)   # with (0, 1, 1) the product takes twice as long
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    few_token_linear(torch.ones(3, 1, 4), weight)   # one core gains nothing with so many
    few_token_linear(torch.ones(1, 1, 4, dtype=torch.bfloat16), weight.bfloat16())
    few_token_linear(torch.ones(1, 1, 4), torch.ones(4, 16).t())
    few_token_linear(torch.ones(1, 1, 4, device="meta"), weight.to("meta"))
    monkeypatch.setattr(product, "SMALL", 65)
    few_token_linear(torch.ones(1, 1, 4), weight)
    assert len(calls) == 1


def layers(*, biases: tuple[bool, bool, bool] = (True, True, True)) -> list[nn.Linear]:
    return [nn.Linear(16, outputs, bias=bias, dtype=torch.bfloat16)
            for outputs, bias in zip((32, 16, 16), biases, strict=True)]


@pytest.mark.parametrize("has_bias", [False, True])
def test_joint_layers_give_what_each_gives_whatever_becomes_of_their_weights(has_bias: bool) -> None:
    three, x = layers(biases=(has_bias,) * 3), torch.randn(2, 1, 16, dtype=torch.bfloat16)

    def agree() -> None:
        for found, linear in zip(joint(x), three, strict=True):
            torch.testing.assert_close(found, linear(x), rtol=2**-7, atol=1e-3)   # one step of bfloat16

    with torch.no_grad():
        assert can_join(three)
        joint = JointLinear(three)
        agree()
        for parameter in three[1].parameters():
            parameter.mul_(2)   # in place, as an optimizer does
        agree()
        three[2].weight.data = three[2].weight * 3   # another tensor, as `model.to(dtype)` gives
        agree()
        three[0].load_state_dict(layers(biases=(has_bias,) * 3)[0].state_dict())
        agree()


def test_joining_leaves_the_layers_as_they_were() -> None:
    three = layers()
    places = [(parameter.data_ptr(), parameter.untyped_storage().nbytes(), parameter.requires_grad)
              for linear in three for parameter in linear.parameters()]
    with torch.inference_mode():
        JointLinear(three)(torch.ones(1, 1, 16, dtype=torch.bfloat16))
    assert places == [(parameter.data_ptr(), parameter.nbytes, True)
                      for linear in three for parameter in linear.parameters()]
    ones = torch.ones(1, 16, dtype=torch.bfloat16)
    sum(linear(ones).sum() for linear in three).backward()   # type: ignore[union-attr]


class Other(nn.Linear):
    """A layer that may compute anything."""


def another_class(three: list[nn.Linear]) -> None:
    three[1] = Other(16, 16, dtype=torch.bfloat16)


def another_type(three: list[nn.Linear]) -> None:
    three[2].float()


def full_precision(three: list[nn.Linear]) -> None:
    for linear in three:
        linear.float()


def a_missing_bias(three: list[nn.Linear]) -> None:
    three[0].bias = None   # type: ignore[assignment]


def another_device(three: list[nn.Linear]) -> None:
    for linear in three:
        linear.to("meta")


def uncounted_changes(three: list[nn.Linear]) -> None:
    with torch.inference_mode():
        three[0] = nn.Linear(16, 32, dtype=torch.bfloat16)


def large(three: list[nn.Linear]) -> None:
    three[0] = nn.Linear(16, product.JOINT // 16, dtype=torch.bfloat16)


@pytest.mark.parametrize("change", [another_class, another_type, full_precision, a_missing_bias, another_device,
                                    uncounted_changes, large])
def test_other_layers_are_not_joined(change: Callable[[list[nn.Linear]], None]) -> None:
    three = layers()
    change(three)
    assert not can_join(three)


def learning(*, outputs: tuple[int, int, int] = (32, 16, 16), has_bias: bool = True) -> list[nn.Module]:
    return [nn.Linear(16, width, bias=has_bias) for width in outputs]


def count_products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The inputs of all calls of `F.linear` from here on."""
    calls: list[torch.Tensor] = []
    linear = F.linear
    monkeypatch.setattr(F, "linear", lambda x, *weights: calls.append(x) or linear(x, *weights))
    return calls


@pytest.mark.parametrize("has_bias", [False, True])
def test_layers_that_learn_jointly_learn_what_each_would(has_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    three = learning(has_bias=has_bias)
    parameters = [parameter for layer in three for parameter in layer.parameters()]
    x = torch.randn(3, 5, 16, requires_grad=True)
    wanted = [layer(x).unflatten(-1, (-1, 8)) for layer in three]
    gradients = torch.autograd.grad(sum(part.square().sum() for part in wanted), [x, *parameters])   # type: ignore[arg-type]
    calls = count_products(monkeypatch)
    found = joint_linear(x, three, width=8)
    assert len(calls) == 1
    torch.testing.assert_close(list(found), wanted)
    torch.testing.assert_close(
        torch.autograd.grad(sum(part.square().sum() for part in found), [x, *parameters]), gradients)   # type: ignore[arg-type]


def a_hook(three: list[nn.Module], seen: list[object]) -> None:
    three[1].register_forward_hook(lambda *call: seen.append(call))


def a_hook_before(three: list[nn.Module], seen: list[object]) -> None:
    three[0].register_forward_pre_hook(lambda *call: seen.append(call))


def a_hook_before_the_backward(three: list[nn.Module], seen: list[object]) -> None:
    three[0].register_full_backward_pre_hook(lambda *call: seen.append(call))


def a_hook_behind(three: list[nn.Module], seen: list[object]) -> None:
    three[2].register_full_backward_hook(lambda *call: seen.append(call))


def a_forward_of_its_own(three: list[nn.Module], seen: list[object]) -> None:
    forward = three[1].forward
    three[1].forward = lambda x: seen.append(x) or 2 * forward(x)   # type: ignore[method-assign, func-returns-value]


def a_weight_that_is_frozen(three: list[nn.Module], seen: list[object]) -> None:
    three[0].weight.requires_grad_(False)   # its gradient would be computed in vain


class Scaled(torch.Tensor):
    """A weight that means something else than it holds, such as a quantised one."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.__name__ == "linear":
            x, weight, bias = args
            return 2 * (x @ weight.detach().as_subclass(torch.Tensor).T + bias)
        return super().__torch_function__(function, types, args, kwargs or {})


def a_weight_of_another_kind(three: list[nn.Module], seen: list[object]) -> None:
    three[1].weight = nn.Parameter(torch.randn(16, 16).as_subclass(Scaled))


def no_bias_in_one(three: list[nn.Module], seen: list[object]) -> None:
    three[2] = nn.Linear(16, 16, bias=False)


def a_layer_of_another_kind(three: list[nn.Module], seen: list[object]) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x)
            return 2 * super().forward(x)

    three[0] = Doubled(16, 32)


def a_large_layer(three: list[nn.Module], seen: list[object]) -> None:
    three[0] = nn.Linear(16, product.LEARN // 16)


@pytest.mark.parametrize("change", [
    a_hook, a_hook_before, a_hook_before_the_backward, a_hook_behind, a_forward_of_its_own, a_weight_that_is_frozen,
    a_weight_of_another_kind, no_bias_in_one, a_layer_of_another_kind, a_large_layer])
def test_what_is_not_plain_and_small_is_called_as_it_is(
    change: Callable[[list[nn.Module], list[object]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    three, seen = learning(), list[object]()
    change(three, seen)
    x = torch.randn(2, 16, requires_grad=True)
    wanted = [layer(x).unflatten(-1, (-1, 8)) for layer in three]
    sum(part.sum() for part in wanted).backward()   # type: ignore[union-attr]
    already = len(seen)
    calls = count_products(monkeypatch)
    found = joint_linear(x, three, width=8)
    sum(part.sum() for part in found).backward()   # type: ignore[union-attr]
    assert len(calls) == 3 and len(seen) == 2 * already
    for part, expected in zip(found, wanted, strict=True):
        assert torch.equal(part, expected)


def test_a_hook_of_all_modules_hears_of_each() -> None:
    seen: list[nn.Module] = []
    with nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
        three = learning()
        joint_linear(torch.randn(2, 16), three, width=8)
    assert seen == three


@pytest.mark.parametrize("change", ["no gradient", "bf16", "another device"])
def test_nothing_is_joined_where_it_does_not_help(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    three, x = learning(), torch.randn(2, 16)
    if change == "another device":
        three, x = [layer.to("meta") for layer in three], x.to("meta")
    calls = count_products(monkeypatch)
    if change == "bf16":
        three, x = [layer.bfloat16() for layer in three], x.bfloat16()
    with torch.set_grad_enabled(change != "no gradient"):
        joint_linear(x, three, width=8)
    assert len(calls) == 3


def test_what_was_joined_may_be_changed_in_place() -> None:
    three, x = learning(), torch.randn(2, 16)
    q, k, _ = joint_linear(x, three, width=8)
    q.mul_(2)
    (q.sum() + k.sum()).backward()
    torch.testing.assert_close(three[0].weight.grad, 2 * x.sum(0).expand(32, 16))
    torch.testing.assert_close(three[1].weight.grad, x.sum(0).expand(16, 16))
    assert not three[2].weight.grad.any()


def test_attention_learns_by_two_products(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = Attention(dim=16, num_heads=4, num_kv_heads=2, use_qkv_bias=True)
    calls = count_products(monkeypatch)
    attention(torch.randn(2, 3, 16))
    assert len(calls) == 2   # q, k and v; and out
