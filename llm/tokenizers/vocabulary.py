"""What a tokenizer is, as data: tokens with their ranks, a pattern, control tokens.

A byte-level BPE is no more than this, whichever file it came from. Read next: `merges.py`, on what ranks have to do
with merges; `formats.py` and `rankfiles.py`, on the files.
"""

from dataclasses import dataclass, field
from typing import Any

END_OF_TEXT = "<|endoftext|>"
ONE_CHARACTER = r"(?s:.)"   # every character is a word
WHOLE_TEXT = r"(?s:.+)"     # the text is one word: `pattern=""` in bpe.train


class NotExact(ValueError):
    """A tokenizer that tiktoken cannot reproduce id by id; the message says why."""


@dataclass(frozen=True)
class Vocabulary:
    """Everything that decides which ids a text becomes.

    Args:
        ranks: the bytes of each ordinary token -> its id; of two merges the one with the lower id comes first.
        pattern: the regular expression that finds the words; tokens never cross them.
        special_tokens: control tokens, text -> id; a text holds them only where they are asked for.
        text_tokens: tokens that are found in every text before anything else, such as Qwen3's `<think>`; text -> id.
        is_closed: whole characters only: a text with any other character cannot be written.
        is_nfc: text is brought to Unicode's composed form first.
        unreachable: tokens that have an id and bytes but never come out of a text.
        source: the tokenizer.json this was read from, to be written back as it was.

    Raises:
        ValueError: if two tokens have the same id, or an id is no whole number.
    """

    ranks: dict[bytes, int]
    pattern: str
    special_tokens: dict[str, int] = field(default_factory=dict)
    text_tokens: dict[str, int] = field(default_factory=dict)
    is_closed: bool = False
    is_nfc: bool = False
    unreachable: dict[bytes, int] = field(default_factory=dict)
    source: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        tables = (self.ranks, self.unreachable, self.special_tokens, self.text_tokens)
        ids = [token_id for table in tables for token_id in table.values()]
        if not all(isinstance(token_id, int) and token_id >= 0 for token_id in ids):
            raise ValueError("ids must be whole numbers from 0 on")
        if len(set(ids)) < len(ids):   # tiktoken would panic, which is no Exception
            raise ValueError(f"{len(ids)} tokens with {len(set(ids))} different ids; each token needs an id of its own")
        if "" in self.special_tokens | self.text_tokens:
            raise ValueError("an added token is empty; it would be found everywhere")
