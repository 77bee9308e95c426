"""Writing text: cached, batched decoding of prompts of any length, and sampling that a seed reproduces.

The same prompt with the same seed gives the same text alone or in a batch: every row has its own random numbers,
and no row sees another. Nothing here is needed for training. (The module is not called `generate`, so that
`llm.generate` can be the function.)
"""

import logging
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from llm.models.decoder import Decoder
from llm.nn import KVCache

log = logging.getLogger(__name__)


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_id: int | None = None,
    unused_ids: Sequence[int] = (),
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        model: in evaluation mode; its weights' device and dtype are used, or autocast's dtype under autocast.
        prompts: lists of ids, each with at least one.
        max_new_tokens: the most ids to write per row, >= 0.
        temperature: >= 0; below 1 sharpens, above 1 flattens, 0 always takes the likeliest token.
        top_k: sample only among the k likeliest; None or 0: all.
        top_p: sample only among the likeliest that together have this probability; None or 1: all.
        seed: same seed, same text. Equal prompts in one batch get different numbers.
        eos_id: a row ends with this id, which is part of the result.
        unused_ids: ids that are never sampled.

    Returns:
        The new ids of each row.

    Raises:
        ValueError: for an empty prompt, an id outside the vocabulary, a setting out of range, a model whose dropout
            is switched on, or logits that are not numbers.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=10, context_length=8, num_layers=1, num_heads=1, dim=8)).eval()
        >>> rows = llm.generate(model, [[1, 2, 3], [4]], max_new_tokens=2, seed=1)
        >>> [len(row) for row in rows]
        [2, 2]
    """
    rows: list[list[int]] = [[] for _ in prompts]
    for tokens in generate_steps(model, prompts, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                                 top_p=top_p, seed=seed, eos_id=eos_id, unused_ids=unused_ids):
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                row.append(token)
    return rows


@torch.no_grad()
def generate_steps(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eos_id: int | None = None,
    unused_ids: Sequence[int] = (),
) -> Iterator[list[int | None]]:
    """The same as `generate`, step by step, for streaming: yields each row's next id, None for rows that have ended."""
    prompts = [[int(token) for token in prompt] for prompt in prompts]   # also from arrays and tensors
    _check(model, prompts, max_new_tokens, temperature, top_k, top_p)
    context = model.config.context_length
    device = model.head_weight.device
    uniforms = torch.from_numpy(_uniforms(prompts, seed, max_new_tokens)).to(device)   # (B, steps)
    banned = torch.tensor(list(unused_ids), dtype=torch.int64, device=device)
    half = max(context // 2, 1)
    windows = [list(prompt[-context:]) for prompt in prompts]   # what the model sees of each row
    if has_slid := max(map(len, prompts)) > context:
        log.warning("a prompt is longer than the context of %d tokens; only its end is read", context)
    is_running = [True] * len(prompts)
    cache: KVCache | None = None
    for step in range(max_new_tokens):
        for row, window in enumerate(windows):
            if len(window) > context:   # read the last half again, and go on from there
                windows[row] = window[-half:]
                cache = None
                if not has_slid:
                    log.warning("the text has passed the context of %d tokens; only its last %d are read again",
                                context, half)
                    has_slid = True
        if cache is None:
            longest = max(map(len, windows))
            cache = model.new_cache(len(windows), min(context, longest + max_new_tokens - step))
            logits = _prefill(model, windows, cache)
        else:
            logits = _decode(model, windows, cache)
        tokens = sample(logits, uniforms[:, step], temperature=temperature, top_k=top_k, top_p=top_p, banned=banned)
        chosen = tokens.tolist()
        yield [token if running else None for token, running in zip(chosen, is_running, strict=True)]
        for row, token in enumerate(chosen):
            if is_running[row]:   # an ended row stands still: it writes the same slot again and again
                is_running[row] = token != eos_id
                windows[row].append(token)
        if not any(is_running):
            return


def sample(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    banned: Tensor | None = None,
) -> Tensor:
    """Choose one token per row by inverting the cumulative distribution at a given uniform number.

    Args:
        logits: (B, V), any float dtype.
        uniforms: (B,) float64 in [0, 1), the rows' random numbers.
        temperature, top_k, top_p: as in `generate`.
        banned: (n,) int64, ids that are never chosen.

    Returns:
        (B,) int64.

    Example:
        >>> sample(torch.tensor([[0.0, 9.0, 0.0]]), torch.tensor([0.5], dtype=torch.float64), temperature=0.0)
        tensor([1])
    """
    logits = logits.double()   # the smallest temperatures would overflow float32
    if logits.isnan().any():
        raise ValueError("the model's logits hold NaN; use --precision fp32, or another checkpoint")
    if banned is not None and len(banned):
        logits = logits.index_fill(-1, banned, float("-inf"))
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k:
        weakest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]   # (B, 1)
        logits = logits.masked_fill(logits < weakest, float("-inf"))
    if top_p is not None and top_p < 1:
        sorted_logits, order = logits.sort(descending=True)
        probabilities = sorted_logits.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities   # what the likelier tokens hold already
        is_out = before >= top_p
        is_out[:, 0] = False
        logits = logits.masked_fill(is_out.scatter(-1, order, is_out), float("-inf"))
    cumulative = logits.softmax(-1).cumsum(-1)   # (B, V)
    total = cumulative[:, -1:]
    marks = (uniforms[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))   # rounding may reach the end
    return torch.searchsorted(cumulative, marks, right=True)[:, 0]   # right: never a token without probability


def _prefill(model: Decoder, windows: list[list[int]], cache: KVCache) -> Tensor:
    """Read whole rows at once; logits (B, V) behind the last token of each."""
    lengths = [len(window) for window in windows]
    device = model.head_weight.device
    ids = torch.zeros(len(windows), max(lengths), dtype=torch.int64)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)   # padded on the right: see `llm/nn/cache.py`
    last = torch.tensor(lengths, device=device) - 1
    logits = model(ids.to(device), cache=cache, logits_at=last).logits
    assert logits is not None
    return logits[:, 0]


def _decode(model: Decoder, windows: list[list[int]], cache: KVCache) -> Tensor:
    """Read the last token of each row; logits (B, V) behind it."""
    device = model.head_weight.device
    ids = torch.tensor([[window[-1]] for window in windows], device=device)   # (B, 1)
    places = [len(window) - 1 for window in windows]
    cache.length = max(places)   # rows of equal length go on together; else each writes at its own place
    positions = None if min(places) == max(places) else torch.tensor(places, device=device)[:, None]
    logits = model(ids, positions=positions, cache=cache).logits
    assert logits is not None
    return logits[:, 0]


def _uniforms(prompts: Sequence[Sequence[int]], seed: int, count: int) -> np.ndarray:
    """(B, count) float64 in [0, 1): a stream per row, fixed by seed, prompt and how often the prompt stands above."""
    streams = []
    seen: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        copy = seen[tuple(prompt)] = seen.get(tuple(prompt), -1) + 1
        key = zlib.crc32(np.array(prompt, dtype="<i8").tobytes())
        streams.append(np.random.Generator(np.random.PCG64([seed, key, copy])).random(count))
    return np.stack(streams)


def _check(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float,
           top_k: int | None, top_p: float | None) -> None:
    if not len(prompts):
        raise ValueError("there are no prompts")
    if model.training and any(isinstance(part, nn.Dropout) and part.p > 0 for part in model.modules()):
        raise ValueError("the model is in training mode, where dropout garbles the text; call model.eval() first")
    vocab_size = model.config.vocab_size
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {number} is empty; begin with at least one token, such as the end-of-text token")
        if not (min(prompt) >= 0 and max(prompt) < vocab_size):
            raise ValueError(f"prompt {number} holds an id outside the vocabulary of {vocab_size}")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 0")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature} must be at least 0; 0 takes the likeliest token")
    if top_k is not None and top_k < 0:
        raise ValueError(f"top_k={top_k} must be at least 0; 0 means all")
    if top_p is not None and not 0 <= top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie between 0 and 1; 1 means all")
