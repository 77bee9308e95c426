"""From ordinary text to ids, on `tiktoken.Encoding`; whatever looks like a control token in it is text.

Left out: control tokens and text tokens, which are taken out of the text before (tokenizer.py).
"""

import unicodedata
from collections.abc import Iterator

import tiktoken

from llm.tokenizers import patterns
from llm.tokenizers.vocabulary import Vocabulary


class Encoder:
    """Turns text into the ids of a vocabulary.

    Args:
        vocabulary: which ids a text becomes.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        # Control tokens are left out: they are looked for longest first, before the text is normalized.
        self._encoding = tiktoken.Encoding(
            "llm", pat_str=vocabulary.pattern, mergeable_ranks=vocabulary.ranks, special_tokens={})
        self._missing_bytes = bytes(byte for byte in range(256) if bytes([byte]) not in vocabulary.ranks)

    def __call__(self, text: str) -> list[int]:
        """The ids of a text.

        Raises:
            ValueError: for a character outside the alphabet of a closed vocabulary.
        """
        if self.vocabulary.is_closed:
            self._check_alphabet(text)
            return self._encoding.encode(text, disallowed_special=())
        text = self.normalized(text)
        try:
            if len(data := text.encode()) != len(data.translate(None, self._missing_bytes)):
                return self._encode_words(text)
            return self._encoding.encode(text, disallowed_special=())
        except ValueError:   # tiktoken gives up on a run of some hundred thousand spaces (`encode_ordinary` panics)
            return self._encode_words(text)

    def normalized(self, text: str) -> str:
        """The text as it is cut into words: composed where the vocabulary asks for it, lone surrogates as U+FFFD."""
        if self.vocabulary.is_nfc:
            text = unicodedata.normalize("NFC", text)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def words(self, text: str) -> Iterator[bytes]:
        """The words of a normalized text, without the bytes that the vocabulary lacks, as `tokenizers` does."""
        words = (word.encode() for word in patterns.split(text, self.vocabulary.pattern))
        return filter(None, (word.translate(None, self._missing_bytes) for word in words))

    def _encode_words(self, text: str) -> list[int]:
        """The long way round, word by word."""
        return [token_id for word in self.words(text) for token_id in self._encoding._encode_single_piece(word)]

    def _check_alphabet(self, text: str) -> None:
        known = self.vocabulary.ranks
        unknown = sorted(letter for letter in set(text) if letter.encode("utf-8", "surrogatepass") not in known)
        if unknown:
            named = ", ".join(f"{letter!r} (U+{ord(letter):04X})" for letter in unknown[:5])
            raise ValueError(
                f"{len(unknown)} characters of the text are not in the tokenizer's alphabet of {len(known)}: {named}; "
                "use --tokenizer byte, or train on text that has them"
            )
