"""x W^T for a handful of tokens, as while a text is written: then a product only reads the weights, once, from memory.

The library behind `F.linear` does not always read them as fast as the memory gives them: on an AMD EPYC its
matrix-vector product in float32 runs on one core, at a third of what two cores can read. The same product as a batch
of smaller ones, one for each band of rows of W, runs on all cores; nothing is copied. In bfloat16 each product costs
some 15 microseconds beside its arithmetic, so that small layers which read the same input are multiplied at once
(`JointLinear`); and so they are while they learn (`joint_linear`). Next: `llm/models/step.py`.
"""

from collections.abc import Sequence
from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import _has_any_global_hook

FEW, MANY = 4, 64   # tokens: up to FEW the bands stand left in the product; beyond MANY the usual way is as fast
SMALL = 2**17       # numbers in a weight: up to there it stays in the caches, and the call costs more than the reading
JOINT = 2**21       # numbers in all weights of layers that are multiplied at once: 4 MB that are held twice
LEARN = 2**18       # the same while they learn, in float32 and from many tokens at a time


def few_token_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for the one token of each of a few rows; in float32 on a CPU the same sums in bands.

    Measured with two cores of an AMD EPYC, 1,408 x 512 weights that are in no cache: 109 against 303 microseconds for
    one token, 259 against 462 for 8. With one core only one token and two gain: 148 against 295, 179 against 448. Low
    precision and other devices have better kernels of their own. A small model calls this some sixty times for a token,
    so one row is spared what several need.

    Args:
        x: (B, 1, in).
        weight: (out, in).
        bias: (out,) or None.

    Returns:
        (B, 1, out).

    Example:
        >>> weight, x = torch.randn(512, 256), torch.randn(2, 1, 256)
        >>> torch.allclose(few_token_linear(x, weight), F.linear(x, weight), atol=1e-4)
        True
    """
    is_slow = (weight.is_cpu and weight.dtype is torch.float32 and weight.numel() >= SMALL and weight.is_contiguous())
    if not is_slow:
        return F.linear(x, weight, bias)
    rows, (outputs, width) = x.shape[0], weight.shape
    count = num_bands(outputs)
    if count == 1 or not 0 < rows <= (MANY if torch.get_num_threads() > 1 else 2):
        return F.linear(x, weight, bias)
    bands = weight.view(count, -1, width)
    if rows > FEW:
        product = torch.bmm(x.view(1, rows, width).expand(count, -1, -1), bands.mT)   # (bands, B, out / bands)
        product = product.transpose(0, 1).reshape(rows, 1, outputs).contiguous()
        return product if bias is None else product + bias
    tokens = x if rows == 1 else x.view(1, rows, width)
    columns = tokens.mT.expand(count, -1, -1)   # (bands, in, B); these strides matter, see the test
    product = (torch.bmm(bands, columns) if bias is None else
               torch.baddbmm(bias.view(count, -1, 1), bands, columns))   # (bands, out / bands, B)
    return (product.view(1, 1, outputs) if rows == 1 else
            product.view(1, outputs, rows).permute(2, 0, 1).contiguous())


@cache
def num_bands(outputs: int) -> int:
    """Into how many bands of equal height a weight is cut, a few for each core; 1 where none fit.

    Example:
        >>> num_bands(512), num_bands(50257), num_bands(37)
        (8, 29, 1)
    """
    return next((count for count in range(8, 33) if outputs % count == 0), 1)


class JointLinear:
    """Small linear layers that read the same input, as one whose columns are shared out.

    Their weights are copied side by side at the first call, and again whenever they have changed. What goes past
    autograd's count of changes (`weight.data.mul_`, another process) is noticed by the next JointLinear only. Measured
    with two cores of an AMD EPYC for one token in bfloat16, 512, 256 and 256 rows of 512 numbers in no cache: 51
    against 79 microseconds.

    Args:
        linears: layers of the same input width, all or none of them with a bias.

    Example:
        >>> q, k = nn.Linear(16, 32), nn.Linear(16, 16)
        >>> with torch.no_grad():
        ...     for_q, for_k = JointLinear([q, k])(torch.ones(1, 1, 16))
        >>> torch.allclose(for_q, q(torch.ones(16)), atol=1e-5), for_k.shape
        (True, torch.Size([1, 1, 16]))
    """

    def __init__(self, linears: Sequence[nn.Linear]):
        self.weights = [linear.weight for linear in linears]
        self.biases = [linear.bias for linear in linears if linear.bias is not None]
        self.widths = [len(weight) for weight in self.weights]
        self.copied: list[tuple[int, int]] | None = None   # where and how often changed the weights were then

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """(B, 1, in) -> (B, 1, out) of each layer; without gradients."""
        state = [(tensor.data_ptr(), tensor._version) for tensor in self.weights + self.biases]
        if state != self.copied:
            self.weight = torch.cat([weight.detach() for weight in self.weights])
            self.bias = torch.cat([bias.detach() for bias in self.biases]) if self.biases else None
            self.copied = state
        return F.linear(x, self.weight, self.bias).split(self.widths, dim=-1)


def joint_linear(x: Tensor, layers: Sequence[nn.Module], *, width: int) -> Sequence[Tensor]:
    """What each of a few layers makes of the same input; small linear ones learn in float32 on a CPU by one product.

    Whole steps of a GPT whose attention is 64, 128 and 256 wide, measured with two cores: 1.05, 1.03 and 1.02 times as
    fast; 384 wide they were slower. Nothing is remembered: the weights are put side by side at each call, and gradients
    find their way back.

    Args:
        x: (..., in).
        layers: of the same input width. They are joined if all are plain `nn.Linear`, all or none with a bias, all
            learn, and have at most `LEARN` weights together; else each is called.
        width: of a head; cut here, so that the backward puts the heads' gradients together without copying them first.

    Returns:
        (..., out / width, width) of each layer.

    Example:
        >>> q, k = nn.Linear(16, 32), nn.Linear(16, 16)
        >>> for_q, for_k = joint_linear(torch.ones(3, 16), [q, k], width=8)
        >>> torch.allclose(for_q.flatten(1), q(torch.ones(3, 16)), atol=1e-5), for_k.shape
        (True, torch.Size([3, 2, 8]))
    """
    if torch.is_grad_enabled() and x.is_cpu and x.dtype is torch.float32 and _learn_alike(layers):
        weight = torch.cat([layer.weight for layer in layers])
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
        joint = F.linear(x, weight, bias).unflatten(-1, (-1, width))   # (..., all heads, width)
        # unsafe: for autograd no views, so that whoever gets them may change them; nobody else holds `joint`
        return torch.unsafe_split_with_sizes(joint, [len(layer.weight) // width for layer in layers], dim=-2)
    return [layer(x).unflatten(-1, (-1, width)) for layer in layers]


def _learn_alike(layers: Sequence[nn.Module]) -> TypeGuard[Sequence[nn.Linear]]:
    known = (nn.Parameter, FakeTensor)   # no quantised ones; fake ones stand for real ones where memory is predicted
    linears = [layer for layer in layers if type(layer) is nn.Linear and not is_more_than_forward(layer)]
    tensors = [tensor for linear in linears for tensor in (linear.weight, linear.bias) if tensor is not None]
    return (len(linears) == len(layers) and len(tensors) in (len(linears), 2 * len(linears))
            and all(type(tensor) in known and tensor.requires_grad for tensor in tensors)
            and {tensor.dtype for tensor in tensors} == {torch.float32}
            and sum(linear.weight.numel() for linear in linears) <= LEARN)


def is_more_than_forward(module: nn.Module) -> bool:
    """Whether something would be missed if only the `forward` of its class ran: hooks, `compile()`, another forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks or module._compiled_call_impl is not None
                or "forward" in vars(module) or _has_any_global_hook())


def can_join(layers: Sequence[nn.Module]) -> TypeGuard[Sequence[nn.Linear]]:
    """Whether these are plain linear layers in bfloat16 on a CPU, small and alike, whose changes autograd counts."""
    linears = [layer for layer in layers if type(layer) is nn.Linear]
    if len(linears) < len(layers):
        return False
    tensors = [tensor for linear in linears for tensor in (linear.weight, linear.bias) if tensor is not None]
    return (all(type(tensor) is nn.Parameter and not tensor.is_inference() for tensor in tensors)
            and len(tensors) in (len(linears), 2 * len(linears))
            and {(tensor.dtype, tensor.device.type) for tensor in tensors} == {(torch.bfloat16, "cpu")}
            and sum(tensor.numel() for tensor in tensors) <= JOINT)
