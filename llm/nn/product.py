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

FEW, MANY = 4, 64   # tokens: up to FEW the bands stand left in the product; beyond MANY the usual way is as fast
SMALL = 2**17       # numbers in a weight: up to there it stays in the caches, and the call costs more than the reading
JOINT = 2**21       # numbers in all weights of layers that are multiplied at once: 4 MB that are held twice
LEARN = 2**18       # the same while they learn, from many tokens at a time


class FewTokenLinear:
    """`F.linear` for the one token of each of a few rows; in float32 on a CPU the same sums in bands.

    How the weight is cut is worked out at the first call, and again when another tensor has taken its place. Measured
    with two cores of an AMD EPYC, 1,408 x 512 weights that are in no cache: 109 against 303 microseconds for one token,
    259 against 462 for 8. With one core only one token and two gain: 148 against 295, 179 against 448. Low precision
    and other devices have better kernels of their own.

    Args:
        weight: (out, in).
        bias: (out,) or None.

    Example:
        >>> weight, x = torch.randn(512, 256), torch.randn(2, 1, 256)
        >>> torch.allclose(FewTokenLinear(weight)(x), F.linear(x, weight), atol=1e-4)
        True
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight = weight
        self.bias = bias
        self.place: int | None = None   # in memory, of the weight that was cut
        self.bands, self.count = weight, 1
        self.most = 0   # so many rows are multiplied in bands

    def __call__(self, x: Tensor) -> Tensor:
        """(B, 1, in) -> (B, 1, out); without gradients."""
        weight, bias, rows = self.weight, self.bias, x.shape[0]
        if weight.data_ptr() != self.place:
            self._cut()
        if rows > self.most:
            return F.linear(x, weight, bias)
        bands, count = self.bands, self.count
        if rows > FEW:
            product = torch.bmm(x.view(1, rows, -1).expand(count, -1, -1), bands.mT)   # (bands, B, out / bands)
            product = product.transpose(0, 1).reshape(rows, 1, -1).contiguous()
            return product if bias is None else product + bias
        columns = (x if rows == 1 else x.view(1, rows, -1)).mT.expand(count, -1, -1)   # (bands, in, B)
        product = (torch.bmm(bands, columns) if bias is None else
                   torch.baddbmm(bias.view(count, -1, 1), bands, columns))   # (bands, out / bands, B)
        return product.view(1, 1, -1) if rows == 1 else product.view(1, -1, rows).permute(2, 0, 1).contiguous()

    def _cut(self) -> None:
        weight = self.weight.detach()
        self.place, self.count = weight.data_ptr(), num_bands(len(weight))
        is_slow = weight.is_cpu and weight.dtype == torch.float32 and weight.numel() >= SMALL
        self.most = 0
        if is_slow and self.count > 1 and weight.is_contiguous():
            self.most = MANY if torch.get_num_threads() > 1 else 2
            self.bands = weight.view(self.count, -1, weight.shape[1])


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
    """What each of a few layers makes of the same input; small linear ones learn on a CPU by one product.

    Forward, backward and optimizer of a GPT with 64, 128 and 256 wide attention in float32, measured with two cores:
    1.05, 1.03 and 1.02 times as fast; 384 wide it is slower. Nothing is remembered: the weights are put side by side at
    each call, and gradients find their way back.

    Args:
        x: (..., in).
        layers: of the same input width. Any that is no plain `nn.Linear`, has hooks, is large, or differs from the
            others in having a bias is called as it is, and so are all when no gradient is wanted.
        width: of a head; cut here, so that the backward puts the heads' gradients together without copying them first.

    Returns:
        (..., out / width, width) of each layer; parts of one tensor where they were joined.

    Example:
        >>> q, k = nn.Linear(16, 32), nn.Linear(16, 16)
        >>> for_q, for_k = joint_linear(torch.ones(3, 16), [q, k], width=8)
        >>> torch.allclose(for_q.flatten(1), q(torch.ones(3, 16)), atol=1e-5), for_k.shape
        (True, torch.Size([3, 2, 8]))
    """
    linears = [layer for layer in layers if type(layer) is nn.Linear and not has_hooks(layer)]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    is_joint = (torch.is_grad_enabled() and x.device.type == "cpu" and 1 < len(linears) == len(layers)
                and len(biases) in (0, len(linears)) and sum(linear.weight.numel() for linear in linears) <= LEARN)
    if not is_joint:
        return [layer(x).unflatten(-1, (-1, width)) for layer in layers]
    joint = F.linear(x, torch.cat([linear.weight for linear in linears]), torch.cat(biases) if biases else None)
    return joint.unflatten(-1, (-1, width)).split([len(linear.weight) // width for linear in linears], dim=-2)


def has_hooks(module: nn.Module) -> bool:
    """Whether something would be missed if the module were not called: hooks, or `compile()`."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                or module._backward_pre_hooks or module._compiled_call_impl is not None)


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
