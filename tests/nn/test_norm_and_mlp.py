"""Norms and feed-forward layers against their equations."""

import math

import pytest
import torch

from llm.nn import GeluMLP, LayerNorm, RMSNorm, SwiGLU


def test_layer_norm_is_its_equation() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    norm = LayerNorm(8, eps=1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8))
        norm.bias.copy_(torch.arange(8) - 3)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight + norm.bias
    assert torch.allclose(norm(x), expected)


def test_rms_norm_is_its_equation_and_ignores_scale() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(8, eps=1e-9)
    assert torch.allclose(norm(x), x / x.square().mean(-1, keepdim=True).sqrt(), atol=1e-6)
    assert torch.allclose(norm(x), norm(1000 * x), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradients_of_rms_norm_are_those_of_its_equation(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 3, 5, 8, generator=generator).to(dtype) for _ in range(2))
    norm = RMSNorm(8, eps=1e-2)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8) / 4)
    ours = x.clone().requires_grad_()
    norm(ours).backward(grad)
    exact, weight = x.double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    (exact / (exact.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight).backward(grad.double())
    rounding = 1e-6 if dtype == torch.float32 else 1e-2
    assert (ours.grad - exact.grad).norm() < rounding * exact.grad.norm()
    assert (norm.weight.grad - weight.grad).norm() < 1e-6 * weight.grad.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_rms_norm_is_the_same_with_and_without_gradients(dtype: torch.dtype, is_autocast: bool) -> None:
    """Of which the first is ours and the second torch's."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    norm = RMSNorm(64, eps=1e-2)
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        ours = norm(x)
        with torch.no_grad():
            theirs = norm(x)
    assert ours.dtype == theirs.dtype == (torch.bfloat16 if is_autocast else dtype)
    rounding = {torch.float32: 1e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}[ours.dtype]
    assert torch.allclose(ours, theirs, rtol=rounding, atol=1e-6)


def test_rms_norm_computes_in_float32_whatever_comes_in() -> None:
    x = torch.full((1, 4096), 0.1, dtype=torch.bfloat16)
    x[0, 0] = 30.0
    assert torch.allclose(RMSNorm(4096)(x).float(), RMSNorm(4096)(x.float()), rtol=1e-2)
    half = torch.full((1, 8), 300.0, dtype=torch.float16)   # 300^2 is past float16
    assert torch.isfinite(RMSNorm(8)(half)).all()


def test_swiglu_is_a_gate_times_a_value() -> None:
    mlp, x = SwiGLU(dim=4, mlp_dim=6), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    gate, up = x @ mlp.gate_proj.weight.T, x @ mlp.up_proj.weight.T
    expected = (gate / (1 + (-gate).exp()) * up) @ mlp.down_proj.weight.T
    assert torch.allclose(mlp(x), expected, atol=1e-6)


def test_gelu_has_the_tanh_form_of_gpt2() -> None:
    mlp = GeluMLP(dim=1, mlp_dim=1)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.fill_(1.0 if parameter.dim() == 2 else 0.0)
    for x in (-2.0, -0.5, 0.7, 3.0):
        expected = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        assert float(mlp(torch.tensor([x])).detach()) == pytest.approx(expected, abs=1e-6)
