"""Laws of the product for a few tokens: what `F.linear` gives, whichever way it is worked out."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm.nn import product
from llm.nn.product import FEW, MANY, JointLinear, few_token_linear, join


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
    monkeypatch.setattr(product, "SMALL", 65)
    few_token_linear(torch.ones(1, 1, 4), weight)
    assert len(calls) == 1


def layers(*, biases: tuple[bool, bool, bool] = (True, True, True)) -> list[nn.Linear]:
    return [nn.Linear(16, outputs, bias=bias) for outputs, bias in zip((32, 16, 16), biases, strict=True)]


@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)])
def test_joint_layers_give_what_each_gives(biases: tuple[bool, bool, bool]) -> None:
    three, x = layers(biases=biases), torch.randn(2, 1, 16)
    apart = copy.deepcopy(three)

    def agree() -> None:
        for found, linear, one in zip(joint(x), three, apart, strict=True):
            torch.testing.assert_close(found, one(x), rtol=0, atol=1e-5)
            torch.testing.assert_close(linear(x), one(x), rtol=0, atol=1e-5)

    with torch.no_grad():
        joint = JointLinear(three)
        agree()
        for linear in (three[1], apart[1]):
            linear.weight.mul_(2)   # in place, as an optimizer does
        agree()
        for linear in (*three, *apart):
            linear.weight.data = linear.weight * 3   # another tensor, as `model.to(dtype)` gives
        agree()
        assert (joint.weight is None) == (len(set(biases)) > 1)
        for linear in (three[2], apart[2]):
            linear.weight.data = linear.weight * 3
        agree()
        assert joint.weight is None   # the others are not moved again, away from one that does not stand with them


def test_what_is_joint_stays_where_it_is_and_learns_on() -> None:
    three = layers()
    optimizer = torch.optim.SGD([parameter for linear in three for parameter in linear.parameters()], lr=0.1)
    weight = JointLinear(three).weight
    again = JointLinear(three).weight
    assert weight is not None and again is not None and again.data_ptr() == weight.data_ptr()
    before = weight.clone()
    sum(linear(torch.ones(1, 16)).sum() for linear in three).backward()   # type: ignore[union-attr]
    optimizer.step()
    torch.testing.assert_close(weight, before - 0.1)   # each gradient is one


def a_view(parts: list[nn.Parameter]) -> None:
    parts[1].data = torch.randn(64, 16)[:16]


def a_process(parts: list[nn.Parameter]) -> None:
    parts[0].share_memory_()


def a_width(parts: list[nn.Parameter]) -> None:
    parts[2].data = torch.randn(16, 32)


def a_type(parts: list[nn.Parameter]) -> None:
    parts[2].data = torch.randn(16, 16).double()


def an_order(parts: list[nn.Parameter]) -> None:
    parts[0].data = torch.randn(16, 32).t()


def an_odd_size(parts: list[nn.Parameter]) -> None:
    parts[0].data = torch.randn(33, 16)[:, :15].contiguous()


@pytest.mark.parametrize("change", [a_view, a_process, a_width, a_type, an_order, an_odd_size])
def test_what_somebody_else_may_see_or_does_not_fit_is_not_moved(change: Callable[[list[nn.Parameter]], None]) -> None:
    parts = [linear.weight for linear in layers()]
    change(parts)
    places = [part.data_ptr() for part in parts]
    assert join(parts) is None and [part.data_ptr() for part in parts] == places
