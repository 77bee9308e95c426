"""One tokenizer class for everything: an exact byte-level BPE on `tiktoken.Encoding`.

It comes from its own training (bpe.py), from a name that tiktoken knows, from a `tokenizer.json` or a `.tiktoken` file
(formats.py), or from nothing: a character tokenizer is a BPE without merges whose words are single characters; a byte
tokenizer is one whose alphabet is the 256 bytes. All are saved as `tokenizer.json`, which transformers' AutoTokenizer
reads with the same ids. Torch-free.

Left out: tokenizers that tiktoken cannot reproduce (foreign.py), chat templates (chat.py). Read next: formats.py.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm.tokenizers import bpe, folders, formats, patterns, rankfiles
from llm.tokenizers.encoder import Encoder
from llm.tokenizers.vocabulary import END_OF_TEXT, ONE_CHARACTER, WHOLE_TEXT, NotExact, Vocabulary

# The encodings of tiktoken and the pattern of each.
NAMED = {"gpt2": "gpt2", "r50k_base": "gpt2", "p50k_base": "gpt2", "cl100k_base": "cl100k", "o200k_base": "o200k"}


class Tokenizer:
    """Turns text into ids and ids into text, exactly.

    Make one with `train`, `named`, `load`, `from_tiktoken`, `character_level` or `byte_level`.

    Args:
        vocabulary: which ids a text becomes.
        bos_token: the control token that begins a document, if there is one.
        eos_token: the one that ends it; `<|endoftext|>` where the vocabulary has it and nothing else is said.
        pad_token: the one that fills up short rows; `eos_token` if not given.
        chat_template: the Jinja template that came with a folder, kept to be saved again.
        max_length: the tokens of a text that its model is given at most, transformers' `model_max_length`. Kept, and
            for others to heed: `encode` gives all.
    """

    def __init__(self, vocabulary: Vocabulary, *, bos_token: str | None = None, eos_token: str | None = None,
                 pad_token: str | None = None, chat_template: str | None = None, max_length: int | None = None):
        if eos_token is None and END_OF_TEXT in vocabulary.special_tokens:
            eos_token = END_OF_TEXT
        named = {bos_token, eos_token, pad_token} & set(vocabulary.text_tokens)
        if named:   # as transformers has it: a token with such a part is a control token
            added = vocabulary.special_tokens | vocabulary.text_tokens
            is_special = {token: token in named or token in vocabulary.special_tokens for token in added}
            vocabulary = replace(
                vocabulary, special_tokens={token: added[token] for token in added if is_special[token]},
                text_tokens={token: added[token] for token in added if not is_special[token]})
        self.vocabulary = vocabulary
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token or eos_token
        self.chat_template, self.max_length = chat_template, max_length
        for name in ("bos_token", "eos_token", "pad_token"):
            if (token := getattr(self, name)) is not None and self._special_id(token) is None:
                raise ValueError(f"{name}={token!r} is not one of the {len(self.special_tokens)} special tokens")

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        pattern: str = "gpt2",
        special_tokens: Iterable[str] = (END_OF_TEXT,),
        workers: int = 1,
    ) -> "Tokenizer":
        """Learn a byte-level BPE vocabulary from texts.

        Args:
            texts: documents; see `bpe.train`.
            vocab_size: 256 bytes + merges + special tokens. A text with too few pairs gives a smaller vocabulary.
            pattern: what tokens may not cross, a name of `patterns.PATTERNS`; "" for nothing.
            special_tokens: control tokens; they get the last ids, in this order.
            workers: processes that count words.

        Raises:
            ValueError: for a string in place of texts, texts with nothing to learn from, an unknown pattern, a
                vocabulary too small, or a special token that is empty, double or a single character (which ordinary
                text could spell).

        Example:
            >>> tokenizer = Tokenizer.train(["low lower lowest"], vocab_size=261)
            >>> tokenizer.encode("slow lower"), tokenizer.eos_id
            ([82, 257, 259, 81], 260)
        """
        if isinstance(texts, str):
            raise ValueError("texts is a single string, whose characters would count as texts; give a list: [text]")
        if pattern and pattern not in patterns.PATTERNS:
            raise ValueError(f"pattern={pattern!r} is not one of {', '.join(patterns.PATTERNS)}, or '' for none")
        names = list(special_tokens)
        if bad := [name for name in names if len(name) < 2 or names.count(name) > 1]:
            raise ValueError(f"special_tokens={names}: {bad[0]!r} must be two characters or more, and given once")
        merges = bpe.train(texts, vocab_size, pattern=pattern, special_tokens=names, workers=workers)
        if not merges and vocab_size > 256 + len(names):
            raise ValueError("the texts hold no two characters side by side, so no merge can be learned; give text, or "
                             "use Tokenizer.byte_level()")
        ranks = bpe.ranks(merges)
        special_ids = {name: len(ranks) + place for place, name in enumerate(names)}
        return cls(Vocabulary(ranks, patterns.PATTERNS.get(pattern, WHOLE_TEXT), special_ids))

    @classmethod
    def named(cls, name: str) -> "Tokenizer":
        """One of OpenAI's vocabularies, which tiktoken downloads once, or finds in `TIKTOKEN_CACHE_DIR`.

        Args:
            name: gpt2, r50k_base, p50k_base, cl100k_base or o200k_base.

        Raises:
            ValueError: for another name.
            OSError: if the file is not there and cannot be fetched; says what to do.
        """
        if name not in NAMED:
            raise ValueError(f"name={name!r} is not one of {', '.join(NAMED)}; for a file: Tokenizer.load(path)")
        from tiktoken_ext import openai_public

        try:
            table = openai_public.ENCODING_CONSTRUCTORS[name]()
        except OSError as error:   # requests' errors are OSErrors
            raise OSError(
                f"the vocabulary {name} is not in tiktoken's cache and cannot be downloaded ({error}); without a "
                "network, set TIKTOKEN_CACHE_DIR to a copy of another machine's cache, or read a .tiktoken file with "
                "Tokenizer.load(path)"
            ) from error
        return cls(Vocabulary(table["mergeable_ranks"], patterns.PATTERNS[NAMED[name]], table["special_tokens"]))

    @classmethod
    def from_tiktoken(cls, path: str | Path, *, pattern: str | None = None,
                      special_tokens: dict[str, int] | None = None, sha256: str | None = None) -> "Tokenizer":
        """Read a `.tiktoken` file of ranks; the arguments are those of `rankfiles.read_tiktoken`."""
        return cls(rankfiles.read_tiktoken(Path(path), pattern=pattern, special_tokens=special_tokens, sha256=sha256))

    @classmethod
    def character_level(cls, text: str) -> "Tokenizer":
        """One token per character of `text`, in the order of their code points; no special tokens.

        Example:
            >>> tokenizer = Tokenizer.character_level("banana")
            >>> tokenizer.encode("nab"), tokenizer.vocab_size
            ([2, 0, 1], 3)
        """
        if not text:
            raise ValueError("the text is empty; a character tokenizer takes its alphabet from it")
        alphabet = sorted(set(text))
        if halves := [character for character in alphabet if "\ud800" <= character <= "\udfff"]:
            raise ValueError(f"{halves[0]!r} is half of a surrogate pair and no character; read the text as UTF-8")
        ranks = {character.encode(): place for place, character in enumerate(alphabet)}
        return cls(Vocabulary(ranks, ONE_CHARACTER, is_closed=True))

    @classmethod
    def byte_level(cls) -> "Tokenizer":
        """One token per byte of UTF-8, id = byte, and `<|endoftext|>` = 256: any text in any language.

        Example:
            >>> Tokenizer.byte_level().encode("hé")
            [104, 195, 169]
        """
        ranks = {bytes([byte]): byte for byte in range(256)}
        return cls(Vocabulary(ranks, ONE_CHARACTER, {END_OF_TEXT: 256}))

    @property
    def special_tokens(self) -> dict[str, int]:
        """Control tokens, text -> id. Ordinary text never becomes one."""
        return self.vocabulary.special_tokens

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, V."""
        return len(self.token_bytes)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a document, None if there is none."""
        return self._special_id(self.bos_token)

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, None for characters."""
        return self._special_id(self.eos_token)

    @property
    def pad_id(self) -> int | None:
        """The id that fills up short rows, None for characters."""
        return self._special_id(self.pad_token)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id, V of them; empty for ids that stand for nothing."""
        added = {text.encode(): token_id for text, token_id in self._added_tokens.items()}
        tables = [self.vocabulary.ranks, self.vocabulary.unreachable, added]
        tokens = [b""] * (1 + max(token_id for table in tables for token_id in table.values()))
        for table in tables:
            for token, token_id in table.items():
                tokens[token_id] = token
        return tokens

    @property
    def byte_counts(self) -> list[int]:
        """How many bytes of text each id stands for; 0 for control tokens."""
        control = set(self.special_tokens.values())
        return [0 if token_id in control else len(token) for token_id, token in enumerate(self.token_bytes)]

    @property
    def unused_ids(self) -> list[int]:
        """Ids that decode to nothing; generation never samples them."""
        return [token_id for token_id, token in enumerate(self.token_bytes) if not token]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides ids: equal fingerprints mean equal ids, whatever file a tokenizer came from."""
        table = self.vocabulary
        tokens = [sorted((i, token.hex()) for token, i in part.items()) for part in (table.ranks, table.unreachable)]
        name = next((name for name, pattern in patterns.PATTERNS.items() if pattern == table.pattern), table.pattern)
        rules: list[Any] = [name, sorted(table.special_tokens.items()), table.is_closed, table.is_nfc]
        if table.text_tokens:
            rules.append(sorted(table.text_tokens.items()))
        return hashlib.sha256(json.dumps([tokens, rules]).encode()).hexdigest()

    def encode(self, text: str, *, allowed_special: Iterable[str] | Literal["all"] = ()) -> list[int]:
        """The ids of a text.

        Args:
            text: any text.
            allowed_special: special tokens that may be recognised, or "all"; the text of all others stays text.

        Raises:
            ValueError: for a character outside a character tokenizer's alphabet, which is named; or for a name in
                `allowed_special` that is no special token.

        Example:
            >>> tokenizer = Tokenizer.byte_level()
            >>> len(tokenizer.encode("<|endoftext|>")), tokenizer.encode("<|endoftext|>", allowed_special="all")
            (13, [256])
        """
        allowed = set(self.special_tokens if allowed_special == "all" else allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise ValueError(f"allowed_special holds {sorted(unknown)}, not among {[*self.special_tokens]}")
        looked_for = allowed | set(self.vocabulary.text_tokens)
        if not looked_for:
            return self._encode_text(text)
        longest_first = "|".join(re.escape(token) for token in sorted(looked_for, key=len, reverse=True))
        ids: list[int] = []
        for place, piece in enumerate(re.split(f"({longest_first})", text)):   # text, token, text, token, ..., text
            ids.extend([self._added_tokens[piece]] if place % 2 else self._encode_text(piece))
        return ids

    def first_ids(self, text: str, count: int) -> list[int]:
        """`encode(text)[:count]`; of a long text only what is read is encoded, up to the end of a word."""
        can_cut = self.vocabulary.pattern in (ONE_CHARACTER, *patterns.PATTERNS.values())
        can_cut &= not any(map(patterns.last_cut, self.vocabulary.text_tokens))
        ids: list[int] = []
        for piece in patterns.pieces(text, size=count) if can_cut else [text]:
            ids += self.encode(piece)
            if len(ids) >= count:
                break
        return ids[:count]

    def encode_document(self, text: str) -> np.ndarray:
        """The ids of a whole document, with the end-of-text id behind it where there is one.

        Returns:
            (length,) int64.
        """
        ids = self.encode(text)
        return np.array(ids if self.eos_id is None else [*ids, self.eos_id], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        return b"".join(map(self._bytes_of, ids)).decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of ids piece by piece as they arrive; a character is held back until its bytes are complete.

        Example:
            >>> list(Tokenizer.byte_level().stream("né".encode()))
            ['n', 'é']
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token_id in ids:
            if piece := decoder.decode(self._bytes_of(token_id)):
                yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    def readable(self, token_id: int) -> str:
        """One token as a person can read it: text in quotes, part of a character as bytes, control tokens bare.

        Example:
            >>> tokenizer = Tokenizer.byte_level()
            >>> tokenizer.readable(32), tokenizer.readable(228), tokenizer.readable(256)
            ("' '", "b'\\\\xe4'", '<|endoftext|>')
        """
        token = self._bytes_of(token_id)
        if token_id in self.special_tokens.values():
            return token.decode()
        if not token:
            return "(unused)"
        try:
            return repr(token.decode())
        except UnicodeDecodeError:
            return repr(token)

    def show(self, text: str | Iterable[int]) -> None:
        """Print each token of a text, or of ids, on a line of its own: its id, and what it stands for.

        Example:
            >>> Tokenizer.train(["low lower lowest"], vocab_size=261).show("slow 低")
                82  's'
               257  'low'
               220  ' '
               160  b'\\xe4'
               121  b'\\xbd'
               236  b'\\x8e'
        """
        for token_id in self.encode(text) if isinstance(text, str) else text:
            print(f"{token_id:>6}  {self.readable(token_id)}")

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into a folder, for `load` and for AutoTokenizer."""
        folders.write(Path(folder), self._to_json(), self.settings)

    @property
    def settings(self) -> dict[str, Any]:
        """All but the vocabulary, as the class takes it."""
        return {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token,
                "chat_template": self.chat_template, "max_length": self.max_length}

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json`, the one in a folder, or one of OpenAI's `.tiktoken` files.

        Control tokens, length and chat template are taken from the files beside it. A tokenizer that tiktoken cannot
        reproduce id by id comes back as a `foreign.ForeignTokenizer`, which needs the package `tokenizers`.

        Raises:
            ValueError: if the file is missing or damaged.
            ImportError: if the tokenizer needs the package `tokenizers` and it is not installed; says why it does.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"{path} does not exist; a tokenizer is a tokenizer.json or a folder with one")
        if path.suffix == ".tiktoken":
            return cls.from_tiktoken(path)
        table, settings = folders.read(path)
        return cls.from_json(table, where=str(path), **settings)

    @classmethod
    def from_json(cls, table: dict[str, Any], *, where: str, **settings: Any) -> "Tokenizer":
        """The tokenizer that the table of a tokenizer.json describes.

        Args:
            table: the parsed file.
            where: what to call it in errors.
            settings: control tokens and the rest, as for the class.

        Raises:
            ValueError: if it is damaged.
            ImportError: if the tokenizer needs the package `tokenizers` and it is not installed; says why it does.
        """
        try:
            return cls(formats.read_json(table), **settings)
        except NotExact as error:
            from llm.tokenizers.foreign import ForeignTokenizer  # it is a Tokenizer, and so imports this file

            return ForeignTokenizer(table, reason=f"{where} cannot be reproduced exactly: {error}", **settings)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{where} is damaged, or no tokenizer ({type(error).__name__}: {error})") from error

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.vocabulary)

    @cached_property
    def _added_tokens(self) -> dict[str, int]:
        return self.special_tokens | self.vocabulary.text_tokens

    def _encode_text(self, text: str) -> list[int]:
        return self._encoder(text)

    def _special_id(self, token: str | None) -> int | None:
        return None if token is None else self.special_tokens.get(token)

    def _bytes_of(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self.token_bytes[token_id]

    def _to_json(self) -> dict[str, Any]:
        return formats.write_json(self.vocabulary)
