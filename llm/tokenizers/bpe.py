"""Byte pair encoding, the training half: which bytes, and then which tokens, should be glued together.

Start with the 256 bytes. Count every pair of neighbours, glue the most frequent pair into a new token, and repeat until
the vocabulary is full (Gage 1994; Sennrich et al. 2016, arXiv:1508.07909; on bytes: Radford et al. 2019). Counting anew
after every merge would take hours on a book, so three things are done once and then kept up to date:

- words: pairs never cross words (patterns.py), so each distinct word stands once, with its count as weight;
- pair counts: a merge changes only the pairs next to it;
- places: each pair knows where it may be found, so a merge visits only those places.

The merges are those of Hugging Face `tokenizers`, one by one: highest count first, then the smallest (left id, right
id), ids in the order of its byte alphabet. Left out: encoding, which is tiktoken's work (tokenizer.py), and files
(formats.py). Read next: tokenizer.py.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from llm.parallel import map_in_order
from llm.tokenizers import patterns

Merge = tuple[bytes, bytes]

# GPT-2 writes bytes as visible characters: printable ones as themselves, the other 68 as the characters from 256 on.
# Ids follow these characters, so '!' is token 0 and the space, written 'Ġ', is token 220.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_ID: tuple[int, ...] = (*_PRINTABLE, *_OTHERS)
CHARACTER_OF_BYTE: dict[int, str] = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + i) for i, b in enumerate(_OTHERS)}

_WALL = -1   # between words: no pair reaches across
_HOLE = -2   # inside a token: no pair starts here


def spell(token: bytes) -> str:
    """A token in GPT-2's visible characters, as vocabulary files write it.

    Example:
        >>> spell(" é".encode())
        'ĠÃ©'
    """
    return "".join(CHARACTER_OF_BYTE[byte] for byte in token)


def ranks(merges: Iterable[Merge]) -> dict[bytes, int]:
    """Token -> id: the 256 bytes first, then one token a merge. This is what `tiktoken.Encoding` takes.

    Example:
        >>> table = ranks([(b"a", b"b")])
        >>> table[b"!"], table[b"ab"]
        (0, 256)
    """
    tokens = [bytes([byte]) for byte in BYTE_OF_ID] + [left + right for left, right in merges]
    return {token: rank for rank, token in enumerate(tokens)}


def train(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (),
    workers: int = 1,
) -> list[Merge]:
    """Learn the merges of a byte-level BPE vocabulary.

    Args:
        texts: documents; a long one may come in pieces from `patterns.read_pieces`.
        vocab_size: the size of the whole vocabulary: 256 bytes + merges + special tokens.
        pattern: a name of `patterns.PATTERNS`, or a regular expression; "" lets merges cross anything.
        special_tokens: control tokens that the caller will add. No merge ever spells one, so that no text from outside
            can come out as a control token.
        workers: processes that count words; the result is the same for any number.

    Returns:
        The merges in order, each a pair of tokens; fewer than asked for if the text holds no more pairs.

    Raises:
        ValueError: if `vocab_size` has no room for the bytes and special tokens, or a text holds a lone surrogate.

    Paper: Sennrich et al. 2016, arXiv:1508.07909, algorithm 1.

    Example:
        >>> train(["low lower lowest"], vocab_size=260)
        [(b'l', b'o'), (b'lo', b'w'), (b' ', b'low'), (b' low', b'e')]
    """
    num_merges = vocab_size - len(BYTE_OF_ID) - len(special_tokens)
    if num_merges < 0:
        raise ValueError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {len(special_tokens)} special tokens "
            f"need at least {vocab_size - num_merges}"
        )
    return learn_merges(count_words(texts, pattern, workers=workers), num_merges, avoid=special_tokens)


def count_words(texts: Iterable[str], pattern: str, *, workers: int = 1) -> dict[bytes, int]:
    """Count the distinct words of all texts. Memory grows with the distinct words, not with the texts.

    Args:
        texts: any number of texts of any length, read lazily.
        pattern: as for `train`.
        workers: processes; 1 counts in this one. A script that asks for more needs the usual
            `if __name__ == "__main__":`, since processes are spawned.

    Returns:
        Word in UTF-8 -> how often it occurs; the same for any number of workers.

    Raises:
        ValueError: if a text holds a lone surrogate, which has no UTF-8 form.

    Example:
        >>> count_words(["to be or not to be"], "gpt2")
        {b'to': 1, b' be': 2, b' or': 1, b' not': 1, b' to': 1}
    """
    expression = patterns.resolve(pattern) if pattern else ""
    if expression in patterns.PATTERNS.values():   # only for these is it known where a cut changes no word
        texts = itertools.chain.from_iterable(map(patterns.pieces, texts))
    counts: Counter[str] = Counter()
    if workers == 1:
        for text in texts:   # straight into the one counter: a second beside it would cost half as much memory again
            counts.update(patterns.split(text, expression))
    else:
        for part in map_in_order(partial(_count, expression=expression), _batches(texts), workers=workers):
            counts.update(part)
    return {_encode(word): count for word, count in counts.items()}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Short texts in batches, so that a worker gets something worth its journey."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= patterns.PIECE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    yield batch


def _count(texts: list[str], expression: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(patterns.split(text, expression))
    return counts


def _encode(word: str) -> bytes:
    try:
        return word.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds a lone surrogate, U+{ord(word[error.start]):04X}, in {word[:40]!r}; surrogates have no "
            "UTF-8 form: read the source with errors='replace', or drop it"
        ) from error


def learn_merges(words: Mapping[bytes, int], num_merges: int, *, avoid: Collection[str] = ()) -> list[Merge]:
    """Learn merges from counted words.

    Args:
        words: word -> count, from `count_words`.
        num_merges: how many merges to learn, >= 0.
        avoid: strings that no token may be spelled like.

    Returns:
        The merges in order.

    Example:
        >>> learn_merges({b"hug": 10, b"pug": 5, b"pun": 12}, 3)   # "pu" and "ug" were 17 and 15
        [(b'p', b'u'), (b'pu', b'n'), (b'h', b'u')]
    """
    corpus = _Corpus(words, num_merges=num_merges)
    avoid = set(avoid)
    merges: list[Merge] = []
    counts = dict(corpus.byte_pairs())
    # The heap's counts may be too high, since most merges lower the counts of others. A pair is put right when it comes
    # up: nothing raises a count later, because every new pair holds the new token.
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    while heap and len(merges) < num_merges:
        count, pair = heapq.heappop(heap)
        current = counts.get(pair, 0)
        if current != -count:
            if current:
                heapq.heappush(heap, (-current, pair))
            continue
        # No token is ever made twice, of other parts: while its two ends are borders, what lies between them changes as
        # if it stood alone, so it is cut the same way wherever it occurs. Only a special token can be in the way.
        left, right = corpus.tokens[pair >> 32], corpus.tokens[pair & 0xFFFFFFFF]
        if avoid and spell(left + right) in avoid:
            continue   # the pair stays two tokens for good
        merges.append((left, right))
        lost, found = corpus.merge(pair)
        for key, less in lost:
            if counts[key] == less:
                del counts[key]
            else:
                counts[key] -= less
        counts.pop(pair, None)
        for key, count in found:
            counts[key] = count
            heapq.heappush(heap, (-count, key))
    return merges


class _Corpus:
    """The distinct words, end to end in one array of ids; merges happen in place.

    A token of n bytes occupies n cells: its id stands in the first and in the last of them, so that a neighbour finds
    it from either side and steps over it by its length. No links are needed. " low" + "er", say, before and after they
    become token 300 (| is a wall, . a hole):

        |  265   .   . 265 270 270 |          |  300   .   .   .   . 300 |

    A pair is one integer, left id * 2^32 + right id: it sorts as the tuple would.
    """

    def __init__(self, words: Mapping[bytes, int], *, num_merges: int) -> None:
        self.tokens = [bytes([byte]) for byte in BYTE_OF_ID]
        self.sizes = np.ones(len(BYTE_OF_ID) + num_merges, dtype=np.int64)   # bytes per token
        text = np.frombuffer(b"\0".join([b"", *words, b""]), dtype=np.uint8)
        cells = np.fromiter(map(len, words), dtype=np.int64, count=len(words)) + 1   # a word and the wall before it
        self.ids = np.argsort(np.array(BYTE_OF_ID)).astype(np.int32)[text]
        self.ids[np.append(0, np.cumsum(cells))] = _WALL
        counts = np.fromiter(words.values(), dtype=np.int64, count=len(words))
        self.weights = np.append(np.repeat(counts, cells), 0)   # at each cell, the count of its word
        # Where the pairs are: pairs in ascending order and the cell at which each starts, in [0] for pairs of bytes, in
        # [n] for the pairs born with token 255 + n. Places are never removed; `merge` passes over those that are gone.
        self.places: list[tuple[np.ndarray, np.ndarray]] = []

    def byte_pairs(self) -> Iterator[tuple[int, int]]:
        """Every pair of neighbouring bytes with its count."""
        starts = np.flatnonzero((self.ids[:-1] >= 0) & (self.ids[1:] >= 0))
        return self._enter(_pair(self.ids[starts], self.ids[starts + 1]), starts)

    def merge(self, pair: int) -> tuple[Iterator[tuple[int, int]], Iterator[tuple[int, int]]]:
        """Turn every occurrence of a pair into the next new token.

        Returns:
            Two series of (pair, count): what its neighbours lost, what they gained. The pair's own count is void.
        """
        left, right, new = pair >> 32, pair & 0xFFFFFFFF, len(self.tokens)
        ids, size_left = self.ids, len(self.tokens[left])
        size = size_left + len(self.tokens[right])
        self.tokens.append(self.tokens[left] + self.tokens[right])
        self.sizes[new] = size

        pairs, places = self.places[max(0, max(left, right) - len(BYTE_OF_ID) + 1)]
        starts = places[np.searchsorted(pairs, pair) : np.searchsorted(pairs, pair, side="right")].astype(np.int64)
        starts = starts[(ids[starts] == left) & (ids[starts + size_left] == right)]
        if left == right:
            starts = _first_of_overlapping(starts, size_left)

        old_before, old_after = ids[starts - 1], ids[starts + size]
        ids[starts + size_left - 1] = ids[starts + size_left] = _HOLE
        ids[starts] = ids[starts + size - 1] = new
        before, after = ids[starts - 1], ids[starts + size]
        # Where two occurrences touch, the second one speaks for the pair between them.
        has_before, has_after = before != _WALL, (after != _WALL) & (after != new)
        weights = self.weights[starts]
        weights = np.concatenate([weights[has_before], weights[has_after]])
        lost = np.concatenate([_pair(old_before[has_before], left), _pair(right, old_after[has_after])])
        gained = np.concatenate([_pair(before[has_before], new), _pair(new, after[has_after])])
        cells = np.concatenate([(starts - self.sizes[before])[has_before], starts[has_after]])
        return _sums(*_sorted(lost, weights)), self._enter(gained, cells)

    def _enter(self, pairs: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, int]]:
        pairs, starts = _sorted(pairs, starts)
        small = np.int32 if len(self.ids) < 2**31 else np.int64
        self.places.append((pairs, starts.astype(small)))
        return _sums(pairs, self.weights[starts])


def _pair(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray:
    return np.left_shift(left, 32, dtype=np.int64) | right


def _sorted(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")   # stable: the places of one pair stay in reading order
    return keys[order], values[order]


def _sums(keys: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Sum the values of equal keys; the keys are sorted."""
    if not len(keys):
        return iter(())
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    return zip(keys[starts].tolist(), np.add.reduceat(values, starts).tolist(), strict=True)


def _first_of_overlapping(starts: np.ndarray, size: int) -> np.ndarray:
    """In a run like "aaaaa" the pair "aa" starts at 0, 1, 2 and 3; read from the left, it is merged at 0 and 2."""
    begins_run = np.append(True, np.diff(starts) != size)
    order = np.arange(len(starts))
    order_in_run = order - np.maximum.accumulate(np.where(begins_run, order, 0))
    return starts[order_in_run % 2 == 0]
