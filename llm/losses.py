"""Loss functions on plain tensors. Each returns a SUM: only the Trainer knows how many targets a whole step has.

Dividing here, by the targets of one micro-batch, is how gradient accumulation goes silently wrong: a mean of means
is not the mean when rows have different lengths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE_INDEX = -100   # a target that is not learned from; the value torch's own cross entropy ignores


def next_token_loss_sum(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """Sum over all supervised positions of -log p(target), straight from the last hidden states.

    Rows without a target never reach the vocabulary, which saves most of the work when prompts are masked.

    Args:
        hidden: (B, T, C) after the final norm.
        head_weight: (V, C), the output embedding.
        targets: (B, T) int64 in [0, V) or IGNORE_INDEX; targets[t] is already the token after position t.

    Returns:
        Scalar float32 in nats. Zero, and still connected to both inputs, if every target is ignored.

    Example:
        >>> next_token_loss_sum(torch.zeros(1, 2, 4), torch.zeros(8, 4), torch.tensor([[3, IGNORE_INDEX]]))   # ln 8
        tensor(2.0794)
    """
    rows, targets = supervised_rows(targets)
    logits = F.linear(hidden.flatten(0, -2)[rows], head_weight)   # (N, V)
    return F.cross_entropy(logits.float(), targets, reduction="sum", ignore_index=IGNORE_INDEX)


def token_log_likelihood(hidden: Tensor, head_weight: Tensor, targets: Tensor) -> Tensor:
    """log p(target) of each position, for losses that compare whole answers.

    Args:
        hidden: (B, T, C) after the final norm.
        head_weight: (V, C), the output embedding.
        targets: (B, T) int64 in [0, V) or IGNORE_INDEX.

    Returns:
        (B, T) float32 in nats, <= 0; exactly 0 where the target is ignored.

    Example:
        >>> token_log_likelihood(torch.zeros(1, 2, 4), torch.zeros(8, 4), torch.tensor([[3, IGNORE_INDEX]]))
        tensor([[-2.0794,  0.0000]])
    """
    rows, wanted = supervised_rows(targets)
    logits = F.linear(hidden.flatten(0, -2)[rows], head_weight)   # (N, V)
    losses = F.cross_entropy(logits.float(), wanted, reduction="none", ignore_index=IGNORE_INDEX)
    return torch.zeros(targets.numel(), device=hidden.device).index_add(0, rows, -losses).view(targets.shape)


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
    wanted = F.pad(flat[rows], (0, -len(rows) % 128), value=IGNORE_INDEX)
    return F.pad(rows, (0, -len(rows) % 128)), wanted
