"""From `--data` to ids: which tokenizer, which validation part, and the two streams of tokens.

Text is tokenized in memory; for more text than fits, make a token file first. Next: `datasets.py`.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm.data.config import DataConfig
from llm.data.download import own_validation, resolve
from llm.data.records import read_documents, split_documents
from llm.data.tokenfile import open_token_file, token_dtype
from llm.tokenizers.tokenizer import NAMED, Tokenizer

log = logging.getLogger(__name__)

DEFAULT_TOKENIZER = "bpe:4096"


class Corpus(NamedTuple):
    """Training and validation tokens with the tokenizer that they belong to."""

    train: np.ndarray              # (count,) uint16 or uint32
    val: np.ndarray                # (count,) likewise
    vocab_size: int
    tokenizer: Tokenizer | None    # None for a raw stream of ids whose tokenizer nobody named

    @property
    def fingerprint(self) -> str:
        """sha256 over the ids, so that a resumed run notices that its data have changed."""
        digest = hashlib.sha256()
        for tokens in (self.train, self.val):
            digest.update(len(tokens).to_bytes(8, "little"))
            for start in range(0, len(tokens), 1 << 24):   # in pieces: the streams may be memory maps of any size
                digest.update(np.ascontiguousarray(tokens[start : start + (1 << 24)]).tobytes())
        return digest.hexdigest()


def load_corpus(config: DataConfig, *, tokenizer: Tokenizer | None = None) -> Corpus:
    """Read, tokenize and split.

    Args:
        config: what to read.
        tokenizer: the one that a model to be trained on brings along; `config.tokenizer` may not contradict it.

    Raises:
        ValueError: for missing, empty or unreadable data, and for a tokenizer that does not fit it.
    """
    path = existing_path(config.data, "--data")
    if config.val is None and (own := own_validation(config.data)) is not None:
        config = replace(config, val=str(own))
    if (path / "train.bin").is_file():   # a folder of `prepare`
        config = replace(config, val=config.val or str(path / "val.bin"))
        path = path / "train.bin"
    if config.val is not None and config.val_fraction != DataConfig().val_fraction:
        raise ValueError(f"--val-fraction {config.val_fraction} has no effect, since {config.val} is the validation "
                         "part; leave it out, or give data that is not divided yet")
    if config.val is not None and _is_token_file(path) != _is_token_file(existing_path(config.val, "--val")):
        raise ValueError(f"--data {path} and --val {config.val}: one is a token file, the other is text; give both as "
                         "token files (.bin) or both as text")
    corpus = (_from_token_file if _is_token_file(path) else _from_text)(path, config, tokenizer)
    share = len(corpus.val) / (len(corpus.train) + len(corpus.val))
    if config.val is None and not config.val_fraction / 2 <= share <= 2 * config.val_fraction:
        log.warning("%.0f%% of the tokens are held out, not %.0f%%: whole documents are, and these are few or of very "
                    "different length; give --val FILE to choose", 100 * share, 100 * config.val_fraction)
    for part, tokens in (("training", corpus.train), ("validation", corpus.val)):
        if len(tokens) < 2:
            raise ValueError(f"{path} gives {_count(len(tokens), 'token')} for {part}, and one to read and one to "
                             "predict are the least; give more text, --val FILE or another --val-fraction")
    return corpus


def _from_text(path: Path, config: DataConfig, tokenizer: Tokenizer | None) -> Corpus:
    if config.raw_dtype is not None:
        raise ValueError(f"--raw-dtype {config.raw_dtype} is for streams of ids, files that end in .bin; {path} is "
                         "read as text: leave it out, or rename the file")
    documents = read_documents(path, separator=config.document_separator)
    if config.limit is not None:
        if len(documents) == 1:
            raise ValueError(f"--limit {config.limit} counts documents, and {path} is a single one; separate documents "
                             f"by lines of {config.document_separator!r}, or cut the file")
        documents = documents[: config.limit]
    if config.val is None:
        train, val = split_documents(documents, fraction=config.val_fraction)
    else:
        train, val = documents, read_documents(existing_path(config.val, "--val"), separator=config.document_separator)
    if tokenizer is None:
        tokenizer = _fitted(config.tokenizer or DEFAULT_TOKENIZER, train, val)
    elif config.tokenizer:
        _check_same(config.tokenizer, _fitted(config.tokenizer, train, val), tokenizer)
    log.info("%s: %s, %s characters for training, %s for validation", path, _count(len(documents), "document"),
             f"{sum(map(len, train)):,}", f"{sum(map(len, val)):,}")
    return Corpus(_encode(train, tokenizer), _encode(val, tokenizer), tokenizer.vocab_size, tokenizer)


def make_tokenizer(
    name: str, texts: Callable[[], Iterable[str]], *, pattern: str = "gpt2", workers: int = 1
) -> Tokenizer:
    """The tokenizer that `--tokenizer` names.

    Args:
        name: char or bpe:SIZE (both learned from the texts), byte, one of tiktoken's names, or a saved tokenizer.
        texts: gives the texts to learn from; called only if there is something to learn.
        pattern, workers: for bpe:SIZE, as in `Tokenizer.train`.

    Raises:
        ValueError: if it is none of them.
    """
    if name == "char":
        return Tokenizer.character_level("".join(set().union(*texts())))
    if name == "byte":
        return Tokenizer.byte_level()
    if name in NAMED:
        return Tokenizer.named(name)
    if name.startswith("bpe:"):
        size = name.removeprefix("bpe:")
        if not size.isdecimal():
            raise ValueError(f"--tokenizer {name}: {size!r} is no vocabulary size; write {DEFAULT_TOKENIZER}, say")
        return Tokenizer.train(texts(), int(size), pattern=pattern, workers=workers)
    if Path(name).exists():
        return Tokenizer.load(name)
    raise ValueError(f"--tokenizer {name} is none of char, byte, bpe:SIZE, {', '.join(NAMED)}, and there is no such "
                     "folder or file; name a folder with a tokenizer.json, or the file itself")


def _fitted(name: str, train: list[str], val: list[str]) -> Tokenizer:
    """The tokenizer for a split text: an alphabet must cover all of it, merges are learned from the training part."""
    return make_tokenizer(name, lambda: train + val if name == "char" else train)


def _from_token_file(path: Path, config: DataConfig, tokenizer: Tokenizer | None) -> Corpus:
    if config.limit is not None:
        raise ValueError(f"--limit counts documents; {path} is a token file: cut it when it is made")
    if config.tokenizer and (config.tokenizer == "char" or config.tokenizer.startswith("bpe:")):
        raise ValueError(f"--tokenizer {config.tokenizer} is learned from a text, and {path} holds ids; name the "
                         "tokenizer.json that they were made with")
    file = open_token_file(path, raw_dtype=config.raw_dtype)
    beside = path.with_name("tokenizer.json")
    if config.tokenizer:
        named = make_tokenizer(config.tokenizer, list)
        _check_same(config.tokenizer, named, tokenizer or named)
        tokenizer = named
    elif tokenizer is None and beside.is_file():
        tokenizer = Tokenizer.load(beside)
    if config.val is None:
        cut = int(len(file.tokens) * (1 - config.val_fraction))
        train, val = file.tokens[:cut], file.tokens[cut:]
    else:
        other = open_token_file(existing_path(config.val, "--val"), raw_dtype=config.raw_dtype)
        if other.fingerprint != file.fingerprint:
            raise ValueError(f"--val {config.val} was written with another tokenizer than {path}; write both with one")
        train, val = file.tokens, other.tokens
    if tokenizer is not None and file.fingerprint not in (None, tokenizer.fingerprint):
        raise ValueError(f"{path} was written with another tokenizer (sha256 {str(file.fingerprint)[:12]}..., not "
                         f"{tokenizer.fingerprint[:12]}...); tokenize the text again, or name the right --tokenizer")
    highest = int(max(train.max(initial=0), val.max(initial=0)))
    vocab_size = tokenizer.vocab_size if tokenizer is not None else file.vocab_size or highest + 1
    if highest >= vocab_size:
        raise ValueError(f"{path} holds id {highest}, but the vocabulary has only {vocab_size} ids; check --tokenizer "
                         "and --raw-dtype")
    return Corpus(train, val, vocab_size, tokenizer)


def _check_same(name: str, named: Tokenizer, models: Tokenizer) -> None:
    """The tokenizer that was asked for, held against the one that the model was trained with."""
    if named.fingerprint != models.fingerprint:
        raise ValueError(f"--tokenizer {name} is not the tokenizer that the model was trained with, and its ids would "
                         "mean other text; leave --tokenizer out")


def _is_token_file(path: Path) -> bool:
    return path.suffix.lower() == ".bin" and not path.is_dir()


def _encode(documents: list[str], tokenizer: Tokenizer) -> np.ndarray:
    dtype = token_dtype(tokenizer.vocab_size)
    return np.concatenate([tokenizer.encode_document(document).astype(dtype) for document in documents])


def existing_path(name: str, flag: str) -> Path:
    """The file or folder that a flag names; ValueError if there is none."""
    if not name:
        raise ValueError(f"{flag} is missing; name a text file, a folder of them or a token file")
    try:
        return resolve(name, kind="text")
    except ValueError as error:
        raise ValueError(f"{flag} {error}") from error


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
