"""Laws of the product for a few tokens: what `F.linear` gives, whichever way it is worked out."""

import pytest
import torch
import torch.nn.functional as F

from llm.nn import product
from llm.nn.product import FEW, MANY, few_token_linear


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
