"""Writing ids: cached, batched decoding of prompts of any length, and random numbers that a seed reproduces.

The same prompt with the same seed gives the same text alone or in a batch (in fp32): every row has its own numbers,
and no row sees another. Equal prompts are read once. Nothing here is needed for training. (The module is not called
`generate`, so that `llm.generate` can be the function.) Next: `conversation.py`, for text instead of ids.
"""

import logging
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llm.models.decoder import Decoder
from llm.models.step import step_of
from llm.nn import KVCache
from llm.sampling import Sampling, ngram_enders, penalise_counts, penalise_repetition, sample

log = logging.getLogger(__name__)

READ_TOKENS = 2048   # how many tokens of all rows together are read at once: bounds the memory that a long prompt takes


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int = 0,
    eos_id: int | Sequence[int] | None = None,
    unused_ids: Sequence[int] = (),
    stop: Callable[[Sequence[int]], bool] | None = None,
    **sampling: Any,
) -> list[list[int]]:
    """Continue every prompt.

    Args:
        model: in evaluation mode; its weights' device and dtype are used, or autocast's dtype under autocast.
        prompts: lists of ids, each with at least one.
        max_new_tokens: the most ids to write per row, >= 0.
        seed: >= 0; same seed, same text. Equal prompts in one batch are read once and get different numbers, so that
            `[prompt] * 4` gives four samples.
        eos_id: a row ends with this id, or with any of several, which is part of the result.
        unused_ids: ids that are never sampled.
        stop: called with the new ids of a row after each; true ends the row.
        sampling: temperature, top_k, top_p and all else that `Sampling` explains.

    Returns:
        The new ids of each row.

    Raises:
        ValueError: for an empty prompt, an id outside the vocabulary, a setting out of range, a model whose dropout
            is switched on, logits that are not numbers, or rules that leave no id to choose.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=10, context_length=8, num_layers=1, num_heads=1, dim=8)).eval()
        >>> rows = llm.generate(model, [[1, 2, 3], [4]], max_new_tokens=2, temperature=0.8, top_k=5, seed=1)
        >>> [len(row) for row in rows]
        [2, 2]
    """
    rows: list[list[int]] = [[] for _ in prompts]
    for step in generate_steps(model, prompts, max_new_tokens=max_new_tokens, seed=seed, eos_id=eos_id,
                               unused_ids=unused_ids, stop=stop, **sampling):
        for row, token in zip(rows, step.ids, strict=True):
            if token is not None:
                row.append(token)
    return rows


class Step(NamedTuple):
    """What one step wrote, a value for each row; None for rows that have ended."""

    ids: list[int | None]
    log_probs: list[float | None]   # nats; of the model itself, before any rule of sampling; empty unless asked for


@torch.inference_mode()
def generate_steps(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    seed: int = 0,
    eos_id: int | Sequence[int] | None = None,
    unused_ids: Sequence[int] = (),
    stop: Callable[[Sequence[int]], bool] | None = None,
    log_probs: bool = False,
    reader: "Reader | None" = None,
    **sampling: Any,
) -> Iterator[Step]:
    """The same as `generate`, step by step, for streaming.

    Args:
        log_probs: return the log-probabilities of the chosen ids too.
        reader: what an earlier call has read, so that a text that begins as the one before is not read again.
        model, prompts, max_new_tokens, seed, eos_id, unused_ids, stop, sampling: as in `generate`.

    Yields:
        A `Step`, until all rows have ended.
    """
    rules = Sampling(**sampling)
    prompts = [[int(token) for token in prompt] for prompt in prompts]   # also from arrays and tensors
    _check(model, prompts, max_new_tokens, seed)
    if not max_new_tokens:
        return
    ends = {eos_id} if eos_id is None or isinstance(eos_id, int) else set(eos_id)
    context = model.config.context_length
    device = model.head_weight.device
    uniforms = torch.from_numpy(_uniforms(prompts, seed, max_new_tokens)).to(device)   # (B, steps)
    banned = torch.tensor(list(unused_ids), dtype=torch.int64, device=device)
    history = _History(prompts, model.config.vocab_size, device) if rules.looks_back else None
    if has_slid := max(map(len, prompts)) > context:
        log.warning("a prompt is longer than the context of %d tokens; only its end is read", context)
    reader = reader or Reader(model)
    logits = reader.read([prompt[-context:] for prompt in prompts], room=max_new_tokens - 1)   # the last is never read
    written: list[list[int]] = [[] for _ in prompts]
    running = list(range(len(prompts)))   # the rows that the reader goes on with
    for step in range(max_new_tokens):
        logits = logits.float()
        allowed = logits.index_fill(-1, banned, float("-inf")) if len(banned) else logits
        if history is not None:
            allowed = history.penalise(allowed, rules)
        tokens = sample(allowed, uniforms[:, step], rules)
        chosen: list[int] = tokens.tolist()
        result = Step([None] * len(prompts), [None] * len(prompts) if log_probs else [])
        for row, token in zip(running, chosen, strict=True):
            result.ids[row] = token
            written[row].append(token)
        if log_probs:
            found = logits.gather(-1, tokens[:, None]) - logits.logsumexp(-1, keepdim=True)   # (B, 1)
            for row, log_prob in zip(running, found[:, 0].tolist(), strict=True):
                result.log_probs[row] = log_prob
        yield result
        if history is not None:
            history.append(tokens)
        going = [place for place, row in enumerate(running)
                 if chosen[place] not in ends and not (stop and stop(written[row]))]
        if not going or step + 1 == max_new_tokens:
            return
        if len(going) < len(running):   # the others go on without those that have ended
            reader.keep(going)
            uniforms = uniforms[going]
            if history is not None:
                history.keep(going)
            running, chosen = [running[place] for place in going], [chosen[place] for place in going]
        if max(map(len, reader.rows)) < context:
            logits = reader.read_next(chosen)
            continue
        if not has_slid:
            has_slid = True
            log.warning("the text has passed the context of %d tokens; only its last %d are read again",
                        context, max(context // 2, 1))
        windows = [[*row, token] for row, token in zip(reader.rows, chosen, strict=True)]
        windows = [window if len(window) <= context else window[-max(context // 2, 1) :] for window in windows]
        logits = reader.read(windows, room=max_new_tokens - step - 2)


class Reader:
    """A model and what it has read of some rows: gives the logits behind them, and reads nothing twice.

    Args:
        model: the decoder.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=10, context_length=8, num_layers=1, num_heads=1, dim=8)).eval()
        >>> reader = Reader(model)
        >>> reader.read([[1, 2, 3]]).shape, reader.read_next([4]).shape, reader.rows
        (torch.Size([1, 10]), torch.Size([1, 10]), [[1, 2, 3, 4]])
    """

    def __init__(self, model: Decoder):
        self.model = model
        self.rows: list[list[int]] = []
        self.cache: KVCache | None = None
        self.advance = step_of(model)   # the fast way to read one more id, where there is one

    @torch.inference_mode()
    def read(self, rows: Sequence[Sequence[int]], *, room: int = 0) -> Tensor:
        """Read rows of any length up to the context; what they share with the rows read before is kept.

        Args:
            rows: lists of ids, each with at least one.
            room: how many ids each row will probably grow by.

        Returns:
            (B, V) logits behind the last id of each row.
        """
        unique = list(dict.fromkeys(map(tuple, rows)))
        start = 0
        if len(unique) == len(self.rows):
            start = min(_shared(old, new) for old, new in zip(self.rows, unique, strict=True))
        longest, shortest = max(map(len, unique)), min(map(len, unique))
        config, cache = self.model.config, self.cache
        if config.stretches_from is not None and max(map(len, [*self.rows, *unique])) > config.stretches_from:
            start = 0   # keys of a text of another length
        self.rows, self.cache = [], None   # an interrupted reading is void
        start = cache.rewind(start) if cache is not None and start else 0
        if cache is None or not start:
            size = longest + room
            if config.window is not None:   # twice the window, so that columns are moved once in a window's length
                size = min(size, longest - shortest + 2 * config.window)
            cache = self.model.new_cache(len(unique), min(size, config.context_length))
        logits = self._read_behind(start, unique, cache)
        self.rows, self.cache = list(map(list, unique)), cache
        if len(unique) < len(rows):
            places = {row: place for place, row in enumerate(unique)}
            copies = [places[tuple(row)] for row in rows]
            self.keep(copies)
            logits = logits[copies]
        return logits

    @torch.inference_mode()
    def read_next(self, ids: Sequence[int]) -> Tensor:
        """Read one more id of each row; (B, V) logits behind it."""
        assert self.cache is not None, "read something first"
        device = self.model.head_weight.device
        places = [len(row) for row in self.rows]
        first, last = min(places), max(places)
        rows, self.rows = self.rows, []   # until it is done
        self.cache.length = last   # rows of equal length go on together; else each writes at its own place
        self.cache.make_room(1, oldest=first)
        positions = None if first == last else torch.tensor(places, device=device)[:, None]   # (B, 1)
        columns = torch.tensor(ids, device=device)[:, None]   # (B, 1)
        if self.advance is None or torch.is_autocast_enabled(device.type):
            logits = self.model(columns, positions=positions, cache=self.cache).logits[:, 0]
        else:
            logits = self.advance(columns, positions, self.cache)
        for row, token in zip(rows, ids, strict=True):
            row.append(token)
        self.rows = rows
        return logits

    def num_shared(self, row: Sequence[int]) -> int:
        """How many ids of a row need not be read, if it comes next and alone."""
        return _shared(self.rows[0], row) if len(self.rows) == 1 else 0

    def keep(self, places: Sequence[int]) -> None:
        """Go on with the rows at these places, in this order; a row may come several times, or not at all."""
        assert self.cache is not None, "read something first"
        rows, self.rows = self.rows, []
        self.cache.take(torch.tensor(places, device=self.model.head_weight.device))
        self.rows = [list(rows[place]) for place in places]

    def _read_behind(self, start: int, rows: Sequence[Sequence[int]], cache: KVCache) -> Tensor:
        """Read what stands at `start` and behind it, piece by piece."""
        device, window = self.model.head_weight.device, self.model.config.window
        lengths = torch.tensor([len(row) for row in rows], device=device)
        size = max(1, READ_TOKENS // len(rows))
        size = size if window is None else min(size, window)
        if self.model.config.stretches_from is not None:
            size = max(map(len, rows))   # in one piece: all keys as they are in a text of this length
        logits: Tensor | None = None
        for begin in range(start, int(lengths.max()), size):
            pieces = [row[begin : begin + size] for row in rows]
            ids = torch.zeros(len(rows), max(map(len, pieces)), dtype=torch.int64)
            for place, piece in enumerate(pieces):
                ids[place, : len(piece)] = torch.tensor(piece)   # padded on the right: see `llm/nn/cache.py`
            cache.make_room(ids.shape[1], oldest=min(begin, int(lengths.min())))
            last = (lengths - 1 - begin).clamp(0, ids.shape[1] - 1)
            found = self.model(ids.to(device), cache=cache, logits_at=last).logits[:, 0]   # (B, V)
            logits = found if logits is None else torch.where(lengths[:, None] > begin, found, logits)
        assert logits is not None, "a row has at least one id"
        return logits


class _History:
    """Which ids each row holds and how often it has written each: what the penalties ask."""

    def __init__(self, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device):
        self.rows = [list(prompt) for prompt in prompts]
        self.counts = torch.zeros(len(prompts), vocab_size, device=device)
        self.is_seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
        for place, prompt in enumerate(prompts):
            self.is_seen[place, torch.tensor(prompt, device=device)] = True

    def append(self, ids: Tensor) -> None:
        for row, token in zip(self.rows, ids.tolist(), strict=True):
            row.append(token)
        places = torch.arange(len(ids), device=ids.device)
        self.counts[places, ids] += 1
        self.is_seen[places, ids] = True

    def keep(self, places: Sequence[int]) -> None:
        self.rows = [self.rows[place] for place in places]
        self.counts, self.is_seen = self.counts[places], self.is_seen[places]

    def penalise(self, logits: Tensor, rules: Sampling) -> Tensor:
        if rules.repetition_penalty != 1:
            logits = penalise_repetition(logits, self.is_seen, rules.repetition_penalty)
        if rules.presence_penalty or rules.frequency_penalty:
            logits = penalise_counts(logits, self.counts, presence=rules.presence_penalty,
                                     frequency=rules.frequency_penalty)
        if rules.no_repeat_ngram:
            logits = logits.clone()
            for place, row in enumerate(self.rows):
                logits[place, ngram_enders(row, rules.no_repeat_ngram)] = float("-inf")
        return logits


def _shared(old: Sequence[int], new: Sequence[int]) -> int:
    """How many ids two rows have in common at their beginning; at least one of the new row is left to read."""
    most = min(len(old), len(new) - 1)
    return next((place for place in range(most) if old[place] != new[place]), most)


def _uniforms(prompts: Sequence[Sequence[int]], seed: int, count: int) -> np.ndarray:
    """(B, count) float64 in [0, 1): a stream per row, fixed by seed, prompt and how often the prompt stands above."""
    streams = []
    seen: dict[tuple[int, ...], int] = {}
    for prompt in prompts:
        copy = seen[tuple(prompt)] = seen.get(tuple(prompt), -1) + 1
        key = zlib.crc32(np.array(prompt, dtype="<i8").tobytes())
        streams.append(np.random.Generator(np.random.PCG64([seed, key, copy])).random(count))
    return np.stack(streams)


def _check(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int, seed: int) -> None:
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
    if seed < 0:
        raise ValueError(f"seed={seed} must be at least 0")
