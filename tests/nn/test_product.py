"""Laws of the product for a few tokens: what `F.linear` gives, whichever way it is worked out."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm.nn import product
from llm.nn.product import FEW, MANY, FewTokenLinear, JointLinear, can_join, joint_linear


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with several cores, whatever this one has."""
    monkeypatch.setattr(product, "SMALL", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.mark.parametrize("outputs", [8, 24, 29, 31 * 9, 37])   # 37 has no bands
@pytest.mark.parametrize("rows", [1, 2, FEW, FEW + 1, MANY, MANY + 1])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_linear(outputs: int, rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(outputs, 12, generator=generator), torch.randn(rows, 1, 12, generator=generator)
    bias = torch.randn(outputs, generator=generator) if has_bias else None
    found = FewTokenLinear(weight, bias)(x)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert found.shape == (rows, 1, outputs) and found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_bands_are_used_where_they_help_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(torch, "bmm", lambda *pair: calls.append(pair) or torch.baddbmm(torch.zeros(1), *pair, beta=0))
    weight = torch.ones(16, 4)
    FewTokenLinear(weight)(torch.ones(1, 1, 4))
    (bands, column), = calls
    assert bands.shape == (8, 2, 4)
    assert column.stride() == (0, 1, 4)   # with (0, 1, 1) the product takes twice as long
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    FewTokenLinear(weight)(torch.ones(3, 1, 4))   # one core gains nothing with so many
    FewTokenLinear(weight.bfloat16())(torch.ones(1, 1, 4, dtype=torch.bfloat16))
    FewTokenLinear(torch.ones(4, 16).t())(torch.ones(1, 1, 4))
    monkeypatch.setattr(product, "SMALL", 65)
    FewTokenLinear(weight)(torch.ones(1, 1, 4))
    assert len(calls) == 1


def test_another_tensor_in_the_place_of_a_weight_is_the_one_that_counts() -> None:
    layer, x = nn.Linear(12, 16), torch.randn(1, 1, 12)
    product = FewTokenLinear(layer.weight, layer.bias)

    def agree() -> None:
        torch.testing.assert_close(product(x), layer(x), rtol=0, atol=1e-5)

    with torch.no_grad():
        agree()
        layer.weight.mul_(3)   # in place
        agree()
        layer.weight.data = torch.randn(16, 12)
        layer.bias.data = torch.randn(16)
        agree()
        layer.double()   # whose products are not cut
        x = x.double()
        assert torch.equal(product(x), layer(x))


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


def a_hook_behind(three: list[nn.Module], seen: list[object]) -> None:
    three[2].register_full_backward_hook(lambda *call: seen.append(call))


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


@pytest.mark.parametrize("change", [a_hook, a_hook_before, a_hook_behind, no_bias_in_one, a_layer_of_another_kind,
                                    a_large_layer])
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


def test_nothing_is_joined_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    three, x = learning(), torch.randn(2, 16)
    calls = count_products(monkeypatch)
    with torch.no_grad():
        joint_linear(x, three, width=8)
    assert len(calls) == 3
