"""From logits to the next id: the settings, and every rule as a function that maps logits to logits.

    penalties and bans   what the text holds already        repetition, presence, frequency, n-grams
    temperature          how bold
    the short list       which ids may be chosen at all     top-k, top-p, min-p
    choose               one id by one random number

The rules come in this order, which is that of transformers, and are compared with it by tests. A rule excludes an id
by setting its logit to minus infinity; ids of exactly equal logits are kept or excluded together. Importing this does
not import torch, so that a command can show these settings at once. Next: `generation.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SHORT_LIST = 256   # how many of the likeliest ids `keep_top_p` looks at first; sorting a vocabulary takes long


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next id is chosen.

    Raises:
        ValueError: naming every setting out of range.

    Example:
        >>> Sampling(temperature=0.8, top_p=0.95).top_k is None
        True
    """

    temperature: float = 1.0
    """Below 1 safer, above 1 wilder, 0 always the likeliest token."""
    top_k: int | None = None
    """Choose only among the k likeliest tokens."""
    top_p: float | None = None
    """Choose only among the likeliest tokens that together have this probability."""
    min_p: float | None = None
    """Choose only among tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Above 1 makes every token less likely that stands in the prompt or the text; 1 is off."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that was written already."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time it was written."""
    no_repeat_ngram: int = 0
    """No sequence of this many tokens occurs twice, the prompt included; 0 is off."""

    def __post_init__(self) -> None:
        rules = [
            (self.temperature >= 0, f"temperature={self.temperature} must be at least 0; 0 takes the likeliest token"),
            (self.top_k is None or self.top_k >= 0, f"top_k={self.top_k} must be at least 0; 0 means all"),
            (self.top_p is None or 0 <= self.top_p <= 1,
             f"top_p={self.top_p} must lie between 0 and 1; 1 means all"),
            (self.min_p is None or 0 <= self.min_p <= 1,
             f"min_p={self.min_p} must lie between 0 and 1; 0 means all"),
            (0 < self.repetition_penalty < float("inf"),
             f"repetition_penalty={self.repetition_penalty} must be positive; 1 is off"),
            (abs(self.presence_penalty) < float("inf"), f"presence_penalty={self.presence_penalty} must be finite"),
            (abs(self.frequency_penalty) < float("inf"), f"frequency_penalty={self.frequency_penalty} must be finite"),
            (self.no_repeat_ngram >= 0, f"no_repeat_ngram={self.no_repeat_ngram} must be at least 0; 0 is off"),
        ]
        if complaints := [complaint for is_kept, complaint in rules if not is_kept]:
            raise ValueError("; ".join(complaints))

    @property
    def looks_back(self) -> bool:
        """Whether any setting asks what the text holds already."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
                    or self.no_repeat_ngram)


def penalise_repetition(logits: "Tensor", is_seen: "Tensor", penalty: float) -> "Tensor":
    """Make ids that occurred already less likely: divide a positive logit by the penalty, multiply a negative one.

    Args:
        logits: (B, V).
        is_seen: (B, V) bool, whether the prompt or the text holds the id.
        penalty: > 0; below 1 it rewards instead.

    Paper: Keskar et al. 2019, arXiv:1909.05858, section 4.1.
    """
    return logits.where(~is_seen, (logits / penalty).where(logits > 0, logits * penalty))


def penalise_counts(logits: "Tensor", counts: "Tensor", *, presence: float, frequency: float) -> "Tensor":
    """Take `presence` from the logit of every id written so far, and `frequency` for each time it was.

    Args:
        logits: (B, V).
        counts: (B, V) float, how often each id was written; the prompt does not count.
    """
    return logits - presence * (counts > 0) - frequency * counts


def ngram_enders(ids: Sequence[int], size: int) -> list[int]:
    """The ids that would complete a sequence of `size` ids that the text holds already.

    Paper: Paulus et al. 2017, arXiv:1705.04304, section 2.5.

    Example:
        >>> ngram_enders([1, 2, 3, 1, 2], size=3), ngram_enders([5, 6], size=1)
        ([3], [5, 6])
    """
    if size < 1 or len(ids) < size:
        return []
    table = np.array(ids)
    beginnings = np.lib.stride_tricks.sliding_window_view(table, size)[:, : size - 1]
    ending = table[len(ids) - size + 1 :]
    return np.unique(table[size - 1 :][(beginnings == ending).all(axis=1)]).tolist()


def heat(logits: "Tensor", temperature: float) -> "Tensor":
    """Divide by the temperature, as float64 below 0: the smallest temperatures would overflow float32."""
    logits = logits.double()
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: "Tensor", k: int) -> "Tensor":
    """Exclude all but the k likeliest ids of each row."""
    weakest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]   # (B, 1)
    return logits.masked_fill(logits < weakest, float("-inf"))


def keep_top_p(logits: "Tensor", p: float) -> "Tensor":
    """Exclude what the likelier ids make superfluous: keep the fewest that together have probability p, at least one.

    Paper: Holtzman et al. 2019, arXiv:1904.09751, section 3.1.
    """
    total = logits.logsumexp(-1, keepdim=True)   # (B, 1)
    size = 0
    while True:   # the likeliest few nearly always suffice
        size = min(16 * size or SHORT_LIST, logits.shape[-1])
        likeliest = logits.topk(size).values   # (B, size), falling
        probabilities = (likeliest - total).exp()
        num_kept = (probabilities.cumsum(-1) - probabilities < p).sum(-1, keepdim=True).clamp(min=1)   # (B, 1)
        if size == logits.shape[-1] or int(num_kept.max()) < size:
            return logits.masked_fill(logits < likeliest.gather(-1, num_kept - 1), float("-inf"))


def keep_min_p(logits: "Tensor", p: float) -> "Tensor":
    """Exclude ids with less than p times the probability of the likeliest one.

    Paper: Nguyen et al. 2024, arXiv:2407.01082, section 3.
    """
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), float("-inf"))


def short_list(logits: "Tensor", sampling: Sampling) -> "Tensor":
    """Temperature, top-k, top-p and min-p in this order; the temperature is not 0.

    Returns:
        (B, V) float64 logits, at most 0.
    """
    logits = heat(logits, sampling.temperature)
    if sampling.top_k:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None and sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p:
        logits = keep_min_p(logits, sampling.min_p)
    return logits


def choose(logits: "Tensor", uniforms: "Tensor") -> "Tensor":
    """One id per row, by inverting the cumulative distribution at a given random number.

    Args:
        logits: (B, V) float64.
        uniforms: (B,) float64 in [0, 1), the rows' random numbers.

    Returns:
        (B,) int64, never an id without probability.

    Example:
        >>> import torch
        >>> choose(torch.tensor([[0.0, 0.0, float("-inf")]]).double(), torch.tensor([0.75]).double())
        tensor([1])
    """
    cumulative = logits.softmax(-1).cumsum(-1)   # (B, V)
    total = cumulative[:, -1:]
    marks = (uniforms[:, None] * total).minimum(total.nextafter(0 * total))   # rounding may reach the end
    return (cumulative <= marks).sum(-1)


def sample(logits: "Tensor", uniforms: "Tensor", sampling: Sampling) -> "Tensor":
    """The next id of each row, from logits that penalties and bans have passed over already.

    Args:
        logits: (B, V), any float dtype.
        uniforms: (B,) float64 in [0, 1); read only if the temperature is not 0.
        sampling: the settings.

    Returns:
        (B,) int64.

    Raises:
        ValueError: if a row's logits are not numbers, or none is left to choose from.

    Example:
        >>> import torch
        >>> sample(torch.tensor([[0.0, 9.0, 0.0]]), torch.tensor([0.5]).double(), Sampling(temperature=0))
        tensor([1])
    """
    best, likeliest = logits.max(-1)   # of NaN and others NaN
    if not bool(best.isfinite().all()):
        if bool((best == float("-inf")).any()):
            raise ValueError("every token is excluded; ban fewer, or lower no_repeat_ngram")
        raise ValueError("the model's logits hold NaN; compute in fp32, or take another checkpoint")
    return likeliest if sampling.temperature == 0 else choose(short_list(logits, sampling), uniforms)
