"""BPE-dropout: the same text cut into other tokens each time, so that a model learns what words are made of.

A rare word is one token that a small data set shows once or twice; cut differently, its parts are met in other words
too. Merges are left out at random while a text is encoded, and only in training: what is judged is encoded as ever.
"""

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

    def _cut(self, word: bytes) -> list[int]:
        """Glue neighbours, always those whose merge is the oldest of the ones that chance has left, while there are."""
        ranks = self.vocabulary.ranks
        parts = [word[place : place + 1] for place in range(len(word))]
        while True:
            pairs = [(ranks[pair], place) for place in range(len(parts) - 1)
                     if (pair := parts[place] + parts[place + 1]) in ranks]
            left = [pair for pair, chance in zip(pairs, self.rng.random(len(pairs)), strict=True)
                    if chance >= self.rate]
            if not left:
                return [ranks[part] for part in parts]
            _, place = min(left)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
