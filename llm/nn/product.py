"""x W^T for a handful of tokens, as while a text is written: then a product only reads the weights, once, from memory.

The library behind `F.linear` does not always read them as fast as the memory gives them: on an AMD EPYC its
matrix-vector product in float32 runs on one core, at a third of what two cores can read. The same product as a batch
of smaller ones, one for each band of rows of W, runs on all cores. And one product of many rows is faster than several
of few, so that layers which read the same input are multiplied at once (`JointLinear`). Nothing is held twice. Next:
`llm/models/step.py`.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW, MANY = 4, 64   # tokens: up to FEW the bands stand left in the product; beyond MANY the usual way is as fast
SMALL = 2**17       # numbers in a weight: up to there it stays in the caches, and the call costs more than the reading
ALIGNMENT = 64      # bytes at whose multiples a weight begins, as one of its own does: kernels may round by it


def few_token_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` for the one token of each of a few rows; in float32 on a CPU the same sums in bands.

    Measured with two cores of an AMD EPYC, 1,408 x 512 weights that are in no cache: 109 against 303 microseconds for
    one token, 259 against 462 for 8. With one core only one token and two gain: 148 against 295, 179 against 448. Low
    precision and other devices have better kernels of their own.

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
    rows, (outputs, width) = len(x), weight.shape
    count = num_bands(outputs)
    most = MANY if torch.get_num_threads() > 1 else 2
    is_slow = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= SMALL
    if not is_slow or rows > most or count == 1 or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    bands = weight.view(count, -1, width)
    if rows <= FEW:
        columns = x.view(1, rows, width).mT.expand(count, -1, -1)   # (bands, in, B); these strides matter, see the test
        product = (torch.bmm(bands, columns) if bias is None else
                   torch.baddbmm(bias.view(count, -1, 1), bands, columns))   # (bands, out / bands, B)
        return product.view(1, outputs, rows).permute(2, 0, 1).contiguous()
    product = torch.bmm(x.view(1, rows, width).expand(count, -1, -1), bands.mT)   # (bands, B, out / bands)
    product = product.transpose(0, 1).reshape(rows, 1, outputs).contiguous()
    return product if bias is None else product + bias


@cache
def num_bands(outputs: int) -> int:
    """Into how many bands of equal height a weight is cut, a few for each core; 1 where none fit.

    Example:
        >>> num_bands(512), num_bands(50257), num_bands(37)
        (8, 29, 1)
    """
    return next((count for count in range(8, 33) if outputs % count == 0), 1)


class JointLinear:
    """Linear layers that read the same input, as one `few_token_linear` whose columns are shared out.

    Their weights move into one tensor that they are views of from then on: no second copy is held, and what changes
    them changes it. Where that cannot be (see `join`) the layers are multiplied one by one. Measured with two cores of
    an AMD EPYC for one token in bfloat16, 512, 256 and 256 rows of 512 numbers in no cache: 51 against 79 microseconds.

    Args:
        linears: layers of the same input width.

    Example:
        >>> q, k = nn.Linear(16, 32), nn.Linear(16, 16)
        >>> x = torch.randn(1, 1, 16)
        >>> for_q, for_k = JointLinear([q, k])(x)
        >>> torch.allclose(for_q, q(x), atol=1e-5), q.weight.untyped_storage().nbytes()
        (True, 3072)
    """

    def __init__(self, linears: Sequence[nn.Linear]):
        self.weights = [linear.weight for linear in linears]
        self.biases = [linear.bias for linear in linears]
        self.widths = [len(weight) for weight in self.weights]
        self.moveable = [tensor for tensor in (*self.weights, *self.biases) if tensor is not None]
        self._join()

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """(B, 1, in) -> (B, 1, out) of each layer."""
        if [tensor.data_ptr() for tensor in self.moveable] != self.places:
            self._join()   # somebody gave a layer another tensor, as `model.to(dtype)` does
        if self.weight is not None:
            return few_token_linear(x, self.weight, self.bias).split(self.widths, dim=-1)
        return [few_token_linear(x, weight, bias) for weight, bias in zip(self.weights, self.biases, strict=True)]

    def _join(self) -> None:
        self.weight = self.bias = None
        has_biases = len(self.moveable) > len(self.weights)
        if has_biases and all(bias is not None for bias in self.biases):
            self.bias = join(self.biases)
        if self.bias is not None or not has_biases:
            self.weight = join(self.weights)
        self.places = [tensor.data_ptr() for tensor in self.moveable]


def join(parts: Sequence[Tensor]) -> Tensor | None:
    """One tensor that has these as its neighbouring rows: they are moved there, unless they already stand so.

    Returns:
        (sum of rows, ...), or None, and nothing is moved, where somebody else may look at the same memory (a view of
        another tensor, memory shared with another process), or the parts do not fit together.
    """
    first = parts[0]
    storage, end = first.untyped_storage(), first.data_ptr()
    stands = True
    for part in parts:
        if (type(part.data) is not Tensor or not part.is_contiguous() or part.is_shared()
                or (part.ndim > 1 and part.nbytes % ALIGNMENT)
                or (part.dtype, part.device, part.shape[1:]) != (first.dtype, first.device, first.shape[1:])):
            return None
        stands = stands and part.untyped_storage().data_ptr() == storage.data_ptr() and part.data_ptr() == end
        end += part.nbytes
    if stands:
        return first.data.as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())
    if any(part.untyped_storage().nbytes() != part.nbytes for part in parts):
        return None
    with torch.inference_mode(False), torch.no_grad():   # so that they can be learned further
        whole = torch.cat([part.data for part in parts])
        for part, rows in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.data = rows
    return whole
