"""Loss functions on plain tensors. Each returns a SUM: only the Trainer knows how many targets a whole step has.

Dividing here, by the targets of one micro-batch, is how gradient accumulation goes silently wrong: a mean of means
is not the mean when rows have different lengths.

The logits of a batch, tokens x vocabulary, are the largest tensor of a training step and nobody needs them afterwards.
So they are never made as a whole: `next_token_loss_sum` takes a few tokens at a time and makes their gradients at once,
while the logits are there; `token_log_likelihood`, whose gradients must wait for what the caller does with each token,
remembers one number per token and computes the logits again, a few words of the vocabulary at a time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100   # a target that is not learned from; the value torch's own cross entropy ignores
ROW_STEP = 128             # rows at the head are a multiple of it
CHUNK_BYTES = 128 << 20    # of logits that exist at a time, unless fewer than MIN_CHUNK rows fit:
MIN_CHUNK = 256            # with fewer, reading all of the head's weights again for each chunk would take over
CACHE_BYTES = 4 << 20      # float32 logits that a CPU goes over at a time; other devices take a chunk's bytes


def next_token_loss_sum(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over all supervised positions of -log p(target), straight from the last hidden states.

    Rows without a target never reach the vocabulary, which saves most of the work when prompts are masked. The
    gradients are made here, in the forward; the backward only scales them, once.

    Args:
        hidden: (B, T, C) after the final norm; the products are computed in its dtype.
        head_weight: (V, C), the output embedding.
        targets: (B, T) int64 in [0, V) or IGNORE_INDEX; targets[t] is already the token after position t.

    Returns:
        Scalar float32 in nats. Zero, and still connected to both inputs, if every target is ignored.

    Example:
        >>> next_token_loss_sum(torch.zeros(1, 2, 4), torch.zeros(8, 4), torch.tensor([[3, IGNORE_INDEX]]))   # ln 8
        tensor(2.0794)
    """
    hidden = hidden.flatten(0, -2)   # (B T, C)
    rows, wanted = supervised_rows(targets)
    if len(rows) != len(hidden):
        hidden = hidden[rows]   # (N, C)
    else:   # as many as there are, so all of them in their order do as well, and need no copy
        wanted = targets.flatten()
    return _LossSum.apply(hidden, head_weight, wanted, torch.is_grad_enabled())


def token_log_likelihood(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """log p(target) of each position, for losses that compare whole answers.

    Args:
        hidden: (B, T, C) after the final norm; the products are computed in its dtype.
        head_weight: (V, C), the output embedding.
        targets: (B, T) int64 in [0, V) or IGNORE_INDEX.

    Returns:
        (B, T) float32 in nats, <= 0; exactly 0 where the target is ignored.

    Example:
        >>> token_log_likelihood(torch.zeros(1, 2, 4), torch.zeros(8, 4), torch.tensor([[3, IGNORE_INDEX]]))
        tensor([[-2.0794,  0.0000]])
    """
    rows, wanted = supervised_rows(targets)
    likelihood = _LogLikelihood.apply(hidden.flatten(0, -2)[rows], head_weight, wanted)   # (N,)
    return torch.zeros(targets.numel(), device=hidden.device).index_add(0, rows, likelihood).view(targets.shape)


def router_balance_sum(logits: Tensor, experts: Tensor, is_counted: Tensor) -> Tensor:
    """How unequally a router loads its experts, by sequence, times the sequence's tokens, summed.

    Of one sequence it is E * sum over experts of (share of choices) * (mean probability): 1 for a router that treats
    all alike, whatever K, up to E / K for one that always chooses the same. The shares have no gradient; the
    probabilities of experts with large shares are pushed down. Being a sum over tokens, it adds up over
    micro-batches as the losses do.

    Args:
        logits: (B, T, E) float32, the router's scores.
        experts: (B, T, K) int64, its choices.
        is_counted: (B, T) bool, the tokens that are learned from; padding and prompts are not balanced.

    Returns:
        Scalar float32. Zero and connected if nothing counts.

    Paper: Fedus et al. 2021, arXiv:2101.03961, eq. 4; by sequence: DeepSeek-AI 2024, arXiv:2412.19437, eq. 17.

    Example:
        >>> choices = torch.tensor([[[0, 1], [2, 3]]])
        >>> router_balance_sum(torch.zeros(1, 2, 4), choices, torch.ones(1, 2, dtype=torch.bool))   # 2 tokens, 1 each
        tensor(2.)
    """
    num_experts, per_token = logits.shape[-1], experts.shape[-1]
    counted = is_counted.to(logits.dtype)[..., None]   # (B, T, 1)
    probability = (logits.softmax(-1) * counted).sum(1)   # (B, E)
    choices = torch.zeros_like(probability).scatter_add(1, experts.flatten(1), counted.expand_as(experts).flatten(1))
    lengths = is_counted.sum(1).clamp(min=1)   # (B,)
    return num_experts / per_token * ((choices * probability).sum(-1) / lengths).sum()


def router_z_sum(logits: Tensor, is_counted: Tensor) -> Tensor:
    """The squared log of the softmax's denominator, summed over tokens; keeps a router's scores small, hence exact.

    Args:
        logits: (B, T, E) float32.
        is_counted: (B, T) bool.

    Returns:
        Scalar float32.

    Paper: Zoph et al. 2022, arXiv:2202.08906, eq. 5.

    Example:
        >>> router_z_sum(torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool))   # (ln 4)^2
        tensor(1.9218)
    """
    return (logits.logsumexp(-1).square() * is_counted).sum()


def supervised_rows(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which places of a batch are learned from, so that only they reach the vocabulary.

    Their number is rounded up, with places that stay ignored: a matrix product whose size differs at every step makes
    CPU kernels build and keep a new program each time, which costs time and gigabytes.

    Args:
        targets: (B, T) int64.

    Returns:
        (N,) int64 places in the flattened batch, and (N,) their targets; N is a multiple of 128, or 0.
    """
    flat = targets.flatten()
    rows = (flat != IGNORE_INDEX).nonzero()[:, 0]   # (N,)
    padding = -len(rows) % ROW_STEP
    return F.pad(rows, (0, padding)), F.pad(flat[rows], (0, padding), value=IGNORE_INDEX)


class _LossSum(torch.autograd.Function):
    """-sum log softmax(hidden head_weight^T)[target], in chunks of tokens.

    d loss / d logits = softmax(logits) - one_hot(target), so both gradients follow while a chunk's logits exist.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head_weight: Tensor, targets: Tensor, is_training: bool) -> Tensor:
        wants_hidden, wants_weight = (is_training and needed for needed in ctx.needs_input_grad[:2])
        weight = head_weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(head_weight, dtype=torch.float32) if wants_weight else None
        loss_sum = hidden.new_zeros((), dtype=torch.float32)
        is_real = (targets != IGNORE_INDEX)[:, None]   # (N, 1)
        wanted = targets[:, None].where(is_real, 0)   # (N, 1)
        size = chunk_size(len(weight), most=len(hidden), item_bytes=hidden.element_size())
        space = hidden.new_empty(size, len(weight))
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = torch.mm(hidden[part], weight.T, out=space[: len(hidden[part])])   # (n, V)
            loss_sum += _loss_and_gradient(logits, wanted[part], is_real[part], wants_hidden or wants_weight)
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, logits.T, hidden[part])
        ctx.gradients = grad_hidden, grad_weight
        ctx.weight_dtype = head_weight.dtype
        return loss_sum

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were handed out already; compute the loss again instead of "
                               "calling backward with retain_graph twice")
        grad_hidden, grad_weight = (None if gradient is None else gradient.mul_(scale) for gradient in ctx.gradients)
        ctx.gradients = None
        return grad_hidden, None if grad_weight is None else grad_weight.to(ctx.weight_dtype), None, None


class _LogLikelihood(torch.autograd.Function):
    """log softmax(hidden head_weight^T)[target] of each row; the backward goes through the vocabulary in chunks."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
        weight = head_weight.to(hidden.dtype)
        likelihood = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        log_total = torch.empty_like(likelihood)   # log of the sum over the vocabulary of exp(logit)
        is_real = targets != IGNORE_INDEX
        wanted = targets.where(is_real, 0)[:, None]
        size = chunk_size(len(weight), most=len(hidden))
        space = hidden.new_empty(size, len(weight), dtype=torch.float32)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = _logits(hidden[part], weight, space)   # (n, V)
            log_total[part] = logits.logsumexp(-1)
            likelihood[part] = logits.gather(1, wanted[part])[:, 0] - log_total[part]
        ctx.save_for_backward(hidden, head_weight, wanted[:, 0], is_real, log_total)
        return likelihood.where(is_real, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, head_weight, wanted, is_real, log_total = ctx.saved_tensors
        grad, wanted = grad.where(is_real, 0.0)[None], wanted[None]   # (1, N)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(head_weight) if ctx.needs_input_grad[1] else None
        size = chunk_size(len(hidden), most=len(head_weight))
        space = hidden.new_empty(size, len(hidden), dtype=torch.float32)
        for start in range(0, len(head_weight), size):
            weight = head_weight[start : start + size].to(hidden.dtype)   # (n, C)
            # d log p(target) / d logits = one_hot(target) - softmax(logits)
            grad_logits = _logits(weight, hidden, space).sub_(log_total).exp_().mul_(-grad)   # (n, N)
            is_here = (wanted >= start) & (wanted < start + len(weight))   # (1, N)
            grad_logits.scatter_add_(0, (wanted - start).where(is_here, 0), grad.where(is_here, 0.0))
            low = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                _add_product(grad_hidden, low.T, weight)
            if grad_weight is not None:
                grad_weight[start : start + size] = low @ hidden
            del low
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, None


def chunk_size(width: int, *, most: int, item_bytes: int = 4) -> int:
    """How many rows of logits, each `width` numbers, exist at a time where there are `most` in all."""
    return min(max(CHUNK_BYTES // (item_bytes * max(width, 1)) // ROW_STEP * ROW_STEP, MIN_CHUNK), max(most, 1))


def _loss_and_gradient(logits: Tensor, wanted: Tensor, is_real: Tensor, wants_gradient: bool) -> Tensor:
    """The loss of some logits, summed, and in their place its gradient, softmax - one_hot, if that is wanted.

    Worked out in float32 for a few rows at a time, so that on a CPU all the passes but the first and the last find them
    in its caches.

    Args:
        logits: (N, V), any float dtype; afterwards the gradient, or nothing of use.
        wanted: (N, 1) int64, the targets.
        is_real: (N, 1) bool; where it is False, loss and gradient are 0.
        wants_gradient: whether anything is learned.
    """
    loss_sum = logits.new_zeros((), dtype=torch.float32)
    num_bytes = CACHE_BYTES if logits.device.type == "cpu" else CHUNK_BYTES
    size = max(num_bytes // (4 * max(logits.shape[1], 1)), 1)
    for rows, place, is_counted in zip(logits.split(size), wanted.split(size), is_real.split(size), strict=True):
        wide = rows.float()   # (n, V)
        target_logit = wide.gather(1, place)   # (n, 1)
        highest = wide.amax(-1, keepdim=True)   # (n, 1)
        powers = wide.sub_(highest).exp_()   # in place: the logits are gone from here on
        total = powers.sum(-1, keepdim=True)   # (n, 1)
        loss_sum += (total.log() + highest - target_logit).where(is_counted, 0.0).sum()
        if wants_gradient:
            softmax = powers.mul_(is_counted / total)   # or 0 where there is no target
            rows.copy_(softmax.scatter_add_(1, place, -is_counted.float()))   # in float32 onto itself: nothing to do
    return loss_sum


def _logits(rows: Tensor, columns: Tensor, space: Tensor) -> Tensor:
    """rows columns^T in float32, written into `space`."""
    if rows.dtype == torch.float32:
        return torch.mm(rows, columns.T, out=space[: len(rows)])
    return space[: len(rows)].copy_(rows @ columns.T)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, where total is float32; else in parts, since a sum of two dtypes copies the second one."""
    if left.dtype == torch.float32:
        torch.addmm(total, left, right, out=total)
        return
    size = chunk_size(right.shape[1], most=len(total))
    for part, rows in zip(total.split(size), left.split(size), strict=True):
        part += rows @ right
