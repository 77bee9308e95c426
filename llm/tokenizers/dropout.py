"""BPE-dropout: the same text cut into other tokens each time, so that a model learns what words are made of.

A rare word is one token that a small data set shows once or twice; cut differently, its parts are met in other words
too. Merges are left out at random while a text is encoded, and only in training: what is judged is encoded as ever.
"""

import heapq
from functools import cached_property

import numpy as np

from llm.tokenizers.tokenizer import Tokenizer


def has_merges(tokenizer: Tokenizer) -> bool:
    """Whether tokens are made by merges that we know, so that there is something to leave out.

    Example:
        >>> has_merges(Tokenizer.byte_level())
        False
    """
    return not tokenizer.vocabulary.is_closed and any(len(token) > 1 for token in tokenizer.vocabulary.ranks)


class DropoutTokenizer(Tokenizer):
    """A tokenizer that leaves out merges at random; same ids, same decoding, another path through them each time.

    Args:
        tokenizer: a byte-level BPE; what it is stays as it is.
        rate: the chance of each possible merge to be left out at each turn, in [0, 1]; 0 encodes as `tokenizer` does,
            1 leaves single bytes.
        rng: source of chance; put another in its place whenever you like.

    Raises:
        ValueError: for a rate outside its range, or a tokenizer without merges to leave out.

    Paper: Provilkov et al. 2020, arXiv:1910.13267, algorithm 1.

    Example:
        >>> tokenizer = Tokenizer.train(["low lower lowest"], vocab_size=261)
        >>> varied = DropoutTokenizer(tokenizer, rate=0.5, rng=np.random.default_rng(1))
        >>> sorted({tuple(varied.readable(i) for i in varied.encode("low")) for _ in range(20)})
        [("'l'", "'o'", "'w'"), ("'lo'", "'w'"), ("'low'",)]
    """

    def __init__(self, tokenizer: Tokenizer, *, rate: float, rng: np.random.Generator):
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate} must lie in [0, 1]")
        if not has_merges(tokenizer):
            raise ValueError("a tokenizer without merges that we know has none to leave out; use one of kind bpe:SIZE, "
                             "or no BPE-dropout")
        super().__init__(tokenizer.vocabulary, **tokenizer.settings)
        self.rate = rate
        self.rng = rng

    def _encode_text(self, text: str) -> list[int]:
        encoder = self._encoder
        return [token_id for word in encoder.words(encoder.normalized(text)) for token_id in self._cut(word)]

    def first_ids(self, text: str, count: int) -> list[int]:
        """As the tokenizer's own, and of one endless word no more is cut than `count` tokens can hold, and one beside.

        The end of a word that is cut short counts as its end: how often a token shortly before it comes may differ.
        """
        start = text[: (count + 1) * self._longest]
        ids = super().first_ids(start, count)
        return ids if len(ids) == count or len(start) == len(text) else super().first_ids(text, count)

    @cached_property
    def _longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.token_bytes))

    def _cut(self, word: bytes) -> list[int]:
        """Glue neighbours, always those whose merge is the oldest of the ones that chance has left, while there are.

        Each turn draws for the pairs from the oldest merge on and stops at the first that is left: what chance would
        say of the younger ones decides nothing. So a word costs little more than its length.
        """
        ranks, size = self.vocabulary.ranks, len(word)
        ends = list(range(1, size + 1))       # of the part that begins here; 0 where none begins any more
        befores = list(range(-1, size))       # where the part begins that ends here begins
        heap = [(ranks[word[start : start + 2]], start, start + 2) for start in range(size - 1)
                if word[start : start + 2] in ranks]
        heapq.heapify(heap)
        left_out: list[tuple[int, int, int]] = []   # in this turn
        while heap:
            pair = heapq.heappop(heap)
            _, start, end = pair
            middle = ends[start]
            if middle in (0, size) or ends[middle] != end:   # its parts are no more
                continue
            if self.rng.random() < self.rate:
                left_out.append(pair)
                continue
            ends[start], ends[middle], befores[end] = end, 0, start
            neighbours = [(befores[start], end)] if start > 0 else []
            neighbours += [(start, ends[end])] if end < size else []
            for first, last in neighbours:
                if (rank := ranks.get(word[first:last])) is not None:
                    heapq.heappush(heap, (rank, first, last))
            for pair in left_out:
                heapq.heappush(heap, pair)
            left_out.clear()
        starts = [start for start, end in enumerate(ends) if end]
        return [ranks[word[start : ends[start]]] for start in starts]
