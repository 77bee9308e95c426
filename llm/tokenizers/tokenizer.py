"""One tokenizer class for everything: an exact byte-level BPE on `tiktoken.Encoding`, and its two simplest cases.

A character tokenizer is a BPE without merges whose words are single characters; a byte tokenizer is one whose
alphabet is the 256 bytes. Both are saved as `tokenizer.json`, which transformers' AutoTokenizer reads with the
same ids. Torch-free.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

END_OF_TEXT = "<|endoftext|>"
ONE_CHARACTER = r"(?s:.)"   # the pre-tokenizing pattern under which every character is a word


class Tokenizer:
    """Turns text into ids and ids into text, exactly.

    Make one with `character_level`, `byte_level` or `load`, not with the constructor.

    Args:
        ranks: the bytes of each ordinary token to its id.
        pattern: the pre-tokenizing regular expression; tokens never cross the words it finds.
        special_tokens: control tokens, text to id; ordinary text never becomes one.
        is_closed: the vocabulary holds whole characters only, so that text outside of it cannot be written.
    """

    def __init__(
        self, ranks: dict[bytes, int], *, pattern: str, special_tokens: dict[str, int], is_closed: bool = False
    ):
        ids = [*ranks.values(), *special_tokens.values()]
        if not ids or len(set(ids)) < len(ids):   # tiktoken would panic, which is no Exception
            raise ValueError(f"{len(ids)} tokens with {len(set(ids))} different ids; each token needs an id of its own")
        self.ranks = ranks
        self.pattern = pattern
        self.special_tokens = special_tokens
        self.is_closed = is_closed
        self._encoding = tiktoken.Encoding("llm", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special_tokens)

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
        return cls(ranks, pattern=ONE_CHARACTER, special_tokens={}, is_closed=True)

    @classmethod
    def byte_level(cls) -> "Tokenizer":
        """One token per byte of UTF-8, id = byte, and `<|endoftext|>` = 256: any text in any language.

        Example:
            >>> Tokenizer.byte_level().encode("hé")
            [104, 195, 169]
        """
        ranks = {bytes([byte]): byte for byte in range(256)}
        return cls(ranks, pattern=ONE_CHARACTER, special_tokens={END_OF_TEXT: 256})

    @property
    def vocab_size(self) -> int:
        """The highest id plus one, V."""
        return self._encoding.max_token_value + 1

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, None for characters."""
        return self.special_tokens.get(END_OF_TEXT)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id, V of them; empty for ids that stand for nothing."""
        table = [b""] * self.vocab_size
        for token, token_id in self.ranks.items():
            table[token_id] = token
        for text, token_id in self.special_tokens.items():
            table[token_id] = text.encode()
        return table

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
        """sha256 of the canonical tokenizer.json: two tokenizers with equal fingerprints give equal ids."""
        return hashlib.sha256(json.dumps(self._to_json(), sort_keys=True).encode()).hexdigest()

    def encode(self, text: str, *, allowed_special: Iterable[str] = ()) -> list[int]:
        """The ids of a text.

        Args:
            text: any text.
            allowed_special: special tokens that may be recognised; the text of all others stays text.

        Raises:
            ValueError: for a character outside a character tokenizer's alphabet, which is named.
        """
        if self.is_closed:
            self._check_alphabet(text)
        return self._encoding.encode(text, allowed_special=set(allowed_special), disallowed_special=())

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

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` into a folder, for `load` and for AutoTokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {
            # for any other class, or none, AutoTokenizer replaces our ids for some model types
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
        }
        if self.eos_id is not None:
            settings["eos_token"] = settings["pad_token"] = END_OF_TEXT
        _write_json(folder / "tokenizer.json", self._to_json())
        _write_json(folder / "tokenizer_config.json", settings)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json`, or the one in a folder.

        Raises:
            ValueError: if it is missing, damaged, or of a kind that this class cannot reproduce exactly.
        """
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"{path} does not exist; a tokenizer is a tokenizer.json or a folder with one") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        try:
            return cls._from_json(table, path)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged, or no tokenizer ({type(error).__name__}: {error})") from error

    def _check_alphabet(self, text: str) -> None:
        unknown = sorted(letter for letter in set(text) if letter.encode("utf-8", "surrogatepass") not in self.ranks)
        if unknown:
            named = ", ".join(f"{letter!r} (U+{ord(letter):04X})" for letter in unknown[:5])
            raise ValueError(f"{len(unknown)} characters of the text are not in the tokenizer's alphabet of "
                             f"{len(self.ranks)}: {named}; use --tokenizer byte, or train on text that has them")

    def _bytes_of(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"id {token_id} is outside the vocabulary of {self.vocab_size}")
        return self.token_bytes[token_id]

    def _to_json(self) -> dict[str, Any]:
        spelled = _spell_characters if self.is_closed else _spell_bytes
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": token_id, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                 "normalized": False, "special": True}
                for text, token_id in self.special_tokens.items()
            ],
            "normalizer": None,
            "pre_tokenizer": None if self.is_closed else byte_level,
            "post_processor": None,
            "decoder": {"type": "Fuse"} if self.is_closed else byte_level,
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": {spelled(token): token_id for token, token_id in self.ranks.items()}, "merges": [],
            },
        }

    @classmethod
    def _from_json(cls, table: dict[str, Any], path: Path) -> "Tokenizer":
        model, pre_tokenizer = table.get("model", {}), table.get("pre_tokenizer")
        special_tokens = {token["content"]: token["id"] for token in table.get("added_tokens", [])}
        if model.get("type") == "BPE" and not model.get("merges") and table.get("normalizer") is None:
            if pre_tokenizer is None and (table.get("decoder") or {}).get("type") == "Fuse":
                ranks = {text.encode(): token_id for text, token_id in model["vocab"].items()}
                return cls(ranks, pattern=ONE_CHARACTER, special_tokens=special_tokens, is_closed=True)
            if pre_tokenizer and pre_tokenizer.get("type") == "ByteLevel" and not pre_tokenizer.get("use_regex", True):
                ranks = {_unspell_bytes(text): token_id for text, token_id in model["vocab"].items()}
                if len(ranks) == 256 and all(len(token) == 1 for token in ranks):
                    return cls(ranks, pattern=ONE_CHARACTER, special_tokens=special_tokens)
        raise ValueError(f"{path}: a tokenizer of this kind cannot be reproduced exactly; characters and bytes can")


def byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes in `tokenizer.json`, as GPT-2 chose them.

    Example:
        >>> byte_alphabet()[ord("A")], byte_alphabet()[ord(" ")]
        ('A', 'Ġ')
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = [""] * 256
    for byte in printable:
        table[byte] = chr(byte)
    for place, byte in enumerate(others):
        table[byte] = chr(256 + place)   # bytes without a printable form move past the Latin-1 block
    return table


def _spell_bytes(token: bytes) -> str:
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in token)


def _unspell_bytes(text: str) -> bytes:
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    return bytes(byte_of[character] for character in text)


def _spell_characters(token: bytes) -> str:
    return token.decode("utf-8")


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
