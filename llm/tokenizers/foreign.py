"""Tokenizers that tiktoken cannot reproduce: SentencePiece models (Llama 2, early Mistral, Gemma), WordPiece, Unigram.

They run on the package `tokenizers`, which reads every tokenizer.json; the rest of the library sees a `Tokenizer`. What
is different: the bytes of a single id are only as good as they can be (a leading space may belong to the whole text),
so that `decode` and `stream` ask the package. Left out: training them. Read next: formats.py, on what is reproduced.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from llm.tokenizers.tokenizer import Tokenizer
from llm.tokenizers.vocabulary import Vocabulary


class ForeignTokenizer(Tokenizer):
    """A Tokenizer on the package `tokenizers`.

    Args:
        table: the parsed tokenizer.json.
        reason: why it is here; part of the error where `tokenizers` is not installed.
        settings: control tokens and the rest, as for `Tokenizer`.

    Raises:
        ImportError: if the package is missing.
        ValueError: if the package cannot read the table either.
    """

    def __init__(self, table: dict[str, Any], *, reason: str, **settings: Any):
        try:
            import tokenizers
        except ImportError as error:
            raise ImportError(f"{reason}. It needs the package tokenizers: pip install 'llm-training[hf]'") from error
        try:
            self._engine = tokenizers.Tokenizer.from_str(json.dumps(table))
        except Exception as error:   # the package raises nothing more precise
            raise ValueError(f"{reason}; and the package tokenizers cannot read it: {error}") from error
        self._engine.no_truncation()
        self._engine.no_padding()
        special_tokens = {token["content"]: token["id"] for token in table.get("added_tokens", []) if token["special"]}
        super().__init__(Vocabulary({}, "", special_tokens, source=table), **settings)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id by itself; a word-initial mark counts as a space."""
        ids = self._engine.get_vocab(with_added_tokens=True)
        tokens = [b""] * (1 + max(ids.values()))
        for text, token_id in ids.items():
            is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
            tokens[token_id] = bytes.fromhex(text[3:5]) if is_byte else text.replace("▁", " ").encode()
        return tokens

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the tokenizer.json."""
        return hashlib.sha256(json.dumps(self._to_json(), sort_keys=True).encode()).hexdigest()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids."""
        ids = list(ids)
        for token_id in ids:
            self._bytes_of(token_id)   # the package passes over ids that it does not know
        return self._engine.decode(ids, skip_special_tokens=False)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids piece by piece as they arrive; the end is held back while it may change."""
        seen: list[int] = []
        shown = ""
        for token_id in ids:
            seen.append(token_id)
            text = self.decode(seen)
            if text.startswith(shown) and not text.endswith("\ufffd"):   # an incomplete character ends in U+FFFD
                if piece := text[len(shown) :]:
                    yield piece
                shown = text
        if rest := self.decode(seen)[len(shown) :]:
            yield rest

    def _encode_text(self, text: str) -> list[int]:
        self._engine.encode_special_tokens = True   # i.e. encode their text; `encode` has taken out those allowed
        return self._engine.encode(text, add_special_tokens=False).ids
