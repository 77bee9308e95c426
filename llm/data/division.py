"""Who learns from what, and who is tested on what: splits that keep duplicates together and classes in proportion.

A text that differs from another only in digits, case, punctuation or white space would be recognised rather than
judged, so such texts never stand on two sides of a split.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np


def skeleton(text: str) -> str:
    """What is left of a text without case, punctuation, white space and the values of digits; never empty.

    Example:
        >>> skeleton("WIN £100 now!"), skeleton("win 500, now")
        ('win 000 now', 'win 000 now')
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.sub(r"[\W_]+", " ", re.sub(r"\d", "0", plain)).strip()
    return words or " ".join(text.split())


def divide(texts: Sequence[str], labels: Sequence[str], shares: Sequence[float], *, seed: int) -> list[list[int]]:
    """Rows to parts, each of about its share of every class; texts of one skeleton stay together.

    Args:
        texts, labels: of each row.
        shares: of each part, positive; only their ratios count.
        seed: of the random order.

    Returns:
        For each part its row numbers, ascending.

    Raises:
        ValueError: if a part would stay empty.

    Example:
        >>> divide(["a", "b", "a!", "c", "A?", "d"], ["x", "x", "x", "x", "x", "x"], [1, 1], seed=1)
        [[0, 2, 4], [1, 3, 5]]
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for number, text in enumerate(texts):
        groups[skeleton(text)].append(number)
    order = list(groups.values())
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    order = sorted((order[place] for place in rng.permutation(len(order))), key=len, reverse=True)
    wanted = {label: [count * share / sum(shares) for share in shares] for label, count in Counter(labels).items()}
    held: dict[str, list[float]] = {label: [0.0] * len(shares) for label in wanted}
    parts: list[list[int]] = [[] for _ in shares]
    for group in order:   # the largest first, each to where most of its class is still missing
        label = labels[group[0]]
        missing = [want - have for want, have in zip(wanted[label], held[label], strict=True)]
        place = int(np.argmax(missing))
        parts[place] += group
        for number in group:
            held[labels[number]][place] += 1
    if empty := [number for number, part in enumerate(parts) if not part]:
        raise ValueError(f"part {empty[0] + 1} of the split would be empty: {len(order)} different texts are too few; "
                         "give more, or the parts as files of their own")
    return [sorted(part) for part in parts]


def undersample(labels: Sequence[str], *, seed: int) -> list[int]:
    """The numbers of rows, ascending, of which each class has as many as the rarest; which ones is drawn.

    Example:
        >>> [["a", "a", "b"][number] for number in undersample(["a", "a", "b"], seed=1)]
        ['a', 'b']
    """
    rng = np.random.Generator(np.random.PCG64([seed, 8]))
    least = min(Counter(labels).values())
    array = np.array(labels)
    chosen = [rng.permutation(np.flatnonzero(array == label))[:least] for label in sorted(set(labels))]
    return sorted(int(number) for number in np.concatenate(chosen))


def balanced_weights(labels: Sequence[str], names: Sequence[str]) -> list[float]:
    """A weight for each class, such that all classes weigh the same in sum and a row weighs 1 on average.

    Example:
        >>> balanced_weights(["a", "a", "a", "b"], ["a", "b"])
        [0.6666666666666666, 2.0]
    """
    counts = Counter(labels)
    return [len(labels) / (len(names) * counts[name]) for name in names]
