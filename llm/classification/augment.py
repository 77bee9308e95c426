"""The training texts anew in every epoch: cut into other tokens, some tokens left out.

A small model that sees the same thousand rows again and again knows them by heart soon. What stays the same in all
these versions of a text is what its label must come from. Validation and test texts are read as they are.
"""

from collections.abc import Sequence

import numpy as np

from llm.tokenizers.dropout import DropoutTokenizer
from llm.tokenizers.ends import ends
from llm.tokenizers.tokenizer import Tokenizer


class Versions:
    """A text's ids as they are read in one epoch.

    Args:
        texts: the texts.
        tokenizer: what cuts them.
        context: tokens of a text that are read at most, with those that the tokenizer puts around it.
        bpe_dropout: chance of a merge to be left out, in [0, 1); see `DropoutTokenizer`.
        token_dropout: chance of a token to be left out, in [0, 1); one at least stays, and those around the text.

    Raises:
        ValueError: for a tokenizer whose merges cannot be left out.

    Paper: leaving out words: Iyyer et al. 2015, "Deep Unordered Composition Rivals Syntactic Methods for Text
        Classification", section 3.

    Example:
        >>> versions = Versions(["abcd"], Tokenizer.byte_level(), context=9, bpe_dropout=0.0, token_dropout=0.5)
        >>> [len(versions(0, np.random.default_rng(seed))) for seed in range(6)]
        [1, 3, 1, 2, 3, 3]
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, *, context: int, bpe_dropout: float,
                 token_dropout: float):
        self.texts = texts
        self.ends = ends(tokenizer)
        self.room = context - len(self.ends.around([]))
        self.token_dropout = token_dropout
        self.tokenizer = tokenizer
        self.varied = None if not bpe_dropout else DropoutTokenizer(
            tokenizer, rate=bpe_dropout, rng=np.random.default_rng())

    def __call__(self, number: int, rng: np.random.Generator) -> list[int]:
        """The ids of text `number`, one at least, as chance wants them."""
        if self.varied is not None:
            self.varied.rng = rng
        ids = (self.varied or self.tokenizer).first_ids(self.texts[number], self.room)
        kept = [token_id for token_id, chance in zip(ids, rng.random(len(ids)), strict=True)
                if chance >= self.token_dropout]
        return self.ends.around(kept or ids)
