"""Text in, text out: what a text begins with, text that arrives piece by piece, and strings that end it.

Next: `conversation.py`, for more than one text.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from llm.generation import generate_steps
from llm.models.decoder import Decoder
from llm.tokenizers.tokenizer import Tokenizer


def start_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids a generated text begins with; for an empty prompt the end-of-text token, or a line break, or id 0."""
    if prompt:
        return tokenizer.encode(prompt)
    if tokenizer.eos_id is not None:
        return [tokenizer.eos_id]
    return [tokenizer.vocabulary.ranks.get(b"\n", 0)]


def unused_ids(tokenizer: Tokenizer, model: Decoder) -> list[int]:
    """The ids that a text may not hold: those that decode to nothing, and those of a model's padded vocabulary."""
    return [*tokenizer.unused_ids, *range(tokenizer.vocab_size, model.config.vocab_size)]


def write(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    eos_id: int | Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    **settings: Any,
) -> Iterator[str]:
    """Go on with a text, piece by piece, until it ends; neither the end token nor a stop string is part of it.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompt: ids, at least one.
        eos_id: the id or ids that end the text; default the tokenizer's end-of-text token.
        stop_strings: text that ends it, also where it begins or ends inside a token.
        settings: max_new_tokens, seed, reader and the rules of sampling, as for `generate_steps`.
    """
    eos_id = tokenizer.eos_id if eos_id is None else eos_id
    ends = {eos_id} if eos_id is None or isinstance(eos_id, int) else set(eos_id)
    steps = generate_steps(model, [prompt], eos_id=eos_id, unused_ids=unused_ids(tokenizer, model), **settings)
    ids = (token for step in steps for token in step.ids if token is not None and token not in ends)
    return until(tokenizer.stream(ids), stop_strings)


def until(pieces: Iterable[str], stop_strings: Sequence[str]) -> Iterator[str]:
    """The pieces of a text up to the first of some strings; what may be the beginning of one is held back.

    Raises:
        ValueError: for an empty stop string.

    Example:
        >>> list(until(["one, t", "w", "o, three"], ["two", "tea"]))
        ['one, ']
    """
    _check(stop_strings)
    return _until(pieces, stop_strings)


def _until(pieces: Iterable[str], stop_strings: Sequence[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        held += piece
        if places := [place for stop in stop_strings if (place := held.find(stop)) >= 0]:
            if text := held[: min(places)]:
                yield text
            return
        beginnings = [size for stop in stop_strings for size in range(1, len(stop)) if held.endswith(stop[:size])]
        sure = len(held) - max(beginnings, default=0)
        if sure:
            yield held[:sure]
        held = held[sure:]
    if held:
        yield held


class StopStrings:
    """Ends a row of `generate` as soon as its text holds one of some strings; `cut` takes it off.

    Args:
        tokenizer: the model's.
        strings: what ends a text, also where it begins or ends inside a token.

    Raises:
        ValueError: for an empty string.

    Example:
        >>> tokenizer = Tokenizer.byte_level()
        >>> stop = StopStrings(tokenizer, ["二"])
        >>> ids = tokenizer.encode("一二")
        >>> stop(ids[:5]), stop(ids), stop.cut(tokenizer.decode(ids))
        (False, True, '一')
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]):
        _check(strings)
        self.strings = list(strings)
        self._token_bytes = tokenizer.token_bytes
        self._stops = [string.encode() for string in strings]
        self._longest = max(map(len, self._stops), default=0)   # each token has a byte at least

    def __call__(self, ids: Sequence[int]) -> bool:
        """Whether the last of these ids completes a stop string."""
        tail = b"".join(self._token_bytes[token] for token in ids[len(ids) - min(self._longest, len(ids)) :])
        return any(stop in tail for stop in self._stops)

    def cut(self, text: str) -> str:
        """The text before the first stop string."""
        return "".join(until([text], self.strings))


def _check(stop_strings: Sequence[str]) -> None:
    if "" in stop_strings:
        raise ValueError("a stop string is empty; every text holds that, so leave it out")
