"""Ranks and merges: two ways to say which neighbours BPE glues first, and when they say the same.

tiktoken knows only ranks (token -> id; the pair that makes the lowest id is glued first), `tokenizers` only a list of
merges. For what BPE training makes of a text the two agree; `splits` finds the merges behind ranks, and `check_token`
is what must hold for the few tokens that BPE does not make of their own bytes. Read next: `formats.py`.
"""

from collections.abc import Container

from llm.tokenizers.bpe import CHARACTER_OF_BYTE, Merge, spell
from llm.tokenizers.vocabulary import NotExact

# Characters that stand for no byte are sent where Latin-1 cannot follow.
_LATIN_1 = dict.fromkeys(range(256), 0xFFFF) | {ord(text): byte for byte, text in CHARACTER_OF_BYTE.items()}


def unspell(text: str) -> bytes:
    """The bytes behind GPT-2's visible characters; the inverse of `bpe.spell`.

    Raises:
        ValueError: if a character of the text stands for no byte.
    """
    try:
        return text.translate(_LATIN_1).encode("latin-1")
    except UnicodeEncodeError as error:
        raise ValueError(f"{text!r}: {text[error.start]!r} is not in the byte alphabet") from None


def splits(ranks: dict[bytes, int], ways: dict[bytes, list[Merge]] | None = None) -> dict[bytes, Merge]:
    """The two parts that each token was merged from, found again from the ranks alone.

    A token "abcd" was merged from "ab" + "cd" if BPE, given just these bytes, arrives at those two. It does unless some
    earlier merge reaches across the border: if "bc" is a token too, and comes before "ab" and "cd", "ab" is never made.
    What can meet at the border are the tokens along the right edge of "ab" (itself, its right part, that one's right
    part, ...) and along the left edge of "cd", each from its own making until it is merged away.

    Args:
        ranks: token -> id, lower ids merged first.
        ways: the parts to look at, for each token; None looks at all.

    Returns:
        Token -> (left, right), in the order of the ids, for every token that BPE makes of its own bytes. A token
        that is missing here has none: BPE ends elsewhere before it gets there.

    Example:
        >>> splits({b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5})[b"abc"]
        (b'a', b'bc')
    """
    found: dict[bytes, Merge] = {}
    made = {token for token in ranks if len(token) == 1}
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        for left, right in halves(token, made) if ways is None else ways.get(token, []):
            if left in made and right in made and not _is_crossed(left, right, rank, ranks, found):
                found[token] = (left, right)
                made.add(token)
                break
    return found


def halves(token: bytes, tokens: Container[bytes]) -> list[Merge]:
    """Every way to cut a token into two others."""
    cuts = ((token[:border], token[border:]) for border in range(1, len(token)))
    return [(left, right) for left, right in cuts if left in tokens and right in tokens]


def _is_crossed(left: bytes, right: bytes, rank: int, ranks: dict[bytes, int], found: dict[bytes, Merge]) -> bool:
    """Whether two tokens meet at the border of left and right, and are one token, before left and right are made."""
    before, before_ends = left, rank
    while True:
        after, after_ends = right, rank
        while True:
            if (crossing := ranks.get(before + after)) is not None:
                made = [ranks[token] for token in (before, after) if token in found]
                meet = max(crossing, *made) if made else crossing
                # Of equal pairs the leftmost is merged first: hence < on the left side and <= on the right.
                if meet < before_ends and meet <= after_ends:
                    return True
            if after not in found:
                break
            after, after_ends = found[after][0], ranks[after]
        if before not in found:
            return False
        before, before_ends = found[before][1], ranks[before]


def check_token(
    token: bytes, ranks: dict[bytes, int], listed: dict[Merge, int], *, is_whole_word_taken: bool
) -> None:
    """Make sure that the merges of a token that BPE does not make of its own bytes still come to the same as its rank.

    tiktoken glues any two neighbours that together are a token, of equal ones the leftmost first, and takes a whole
    word that is a token as it is. `tokenizers` glues the pairs listed, in their order. For a token that BPE makes of
    its own bytes this is all one: while its two ends are borders, what lies between them changes as if it stood alone,
    and ends in the two parts found by `splits`; so it is enough that these are listed. For other tokens (Llama 3 has
    695) every way to cut them must be listed, and where two ways can overlap in a text, as in a|ba|ab, the left one
    must come first. They can if BPE, given these bytes, ever has just these three side by side.
    """
    ways = halves(token, ranks)
    if not is_whole_word_taken or any(half not in listed for half in ways):
        raise NotExact(f"its merges do not make the token {token!r} of its bytes alone")
    for left, middle in ways:
        for other, right in ways:
            is_late = middle == other and listed[left, middle] > listed[middle, right]
            if is_late and glue(left + middle + right, ranks, ranks[token]) == [left, middle, right]:
                raise NotExact(f"its merges make {token!r} of {middle!r} + {right!r} before {left!r} + {middle!r}")


def glue(word: bytes, ranks: dict[bytes, int], limit: int) -> list[bytes]:
    """BPE in its plainest form: the tokens of a word after all merges of a lower rank than `limit`."""
    tokens = [word[place : place + 1] for place in range(len(word))]
    while len(tokens) > 1:
        rank, place = min((ranks.get(tokens[i] + tokens[i + 1], limit), i) for i in range(len(tokens) - 1))
        if rank >= limit:
            break
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
    return tokens


def write_merges(ranks: dict[bytes, int]) -> tuple[list[list[str]], bool]:
    """The merges in order, and whether some token is not what BPE makes of its bytes."""
    parts = splits(ranks)
    merges: dict[Merge, int] = {}
    has_lost = False
    for token in sorted(ranks, key=ranks.__getitem__):
        is_lost = len(token) > 1 and token not in parts
        for half in halves(token, ranks) if is_lost else [parts[token]] if token in parts else []:
            merges[half] = len(merges)
        if is_lost:
            check_token(token, ranks, merges, is_whole_word_taken=True)
            has_lost = True
    return [[spell(left), spell(right)] for left, right in merges], has_lost
