"""From `--data` or files to labelled rows for training, validation and testing. Torch-free."""

import logging
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from llm.data.division import divide, undersample
from llm.data.download import resolve
from llm.data.labelled import Columns, Labelled, read_labelled
from llm.data.tinyworld import messages

log = logging.getLogger(__name__)

TINYWORLD = "tinyworld-spam"
TINYWORLD_ROWS = 15_000   # the rule of its messages, a conjunction, takes some thousand examples to be found
SMS = "sms-spam"
SMS_BALANCED = "sms-spam-balanced"
SMS_COLUMNS = Columns(text="2", label="1", use_quotes=False)


@dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """Which texts, and who learns from which."""

    data: str = TINYWORLD
    """One file (.csv, .tsv, .jsonl, .parquet) to be split, or a name: tinyworld-spam (made on the spot), sms-spam (as
    it is), sms-spam-balanced (as "LLMs from scratch" balances and splits it)."""
    train_file: str | None = None
    """Rows to learn from, instead of --data."""
    val_file: str | None = None
    """Rows that choose checkpoint and threshold; default: a part of the training rows."""
    test_file: str | None = None
    """Rows that judge; default: a part of --data, or of --train-file where there is no --val-file either."""
    rows: int = TINYWORLD_ROWS
    """How many messages tinyworld-spam makes."""
    text_column: str = "text"
    """Column of the text, in any case; a number from 1 where there is no header line."""
    label_column: str = "label"
    """Column of the label, likewise."""
    use_quotes: bool | None = None
    """Whether "..." in a table holds separators and line breaks; default: in .csv, not in .tsv."""
    val_fraction: float = 0.1
    """Share of the rows for validation where there is no --val-file."""
    test_fraction: float = 0.2
    """Share of the rows for testing where the rows are split."""
    split_seed: int = 1
    """Of that split."""
    class_balance: Literal["none", "weights", "undersample"] = "none"
    """weights lets rare classes count more in the loss, undersample leaves out rows of frequent ones (training rows
    only: validation and test stay as they are)."""

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(f"val_fraction={self.val_fraction} and test_fraction={self.test_fraction} leave nothing "
                             "to learn from")
        if self.rows < 1:
            raise ValueError(f"rows={self.rows} must be at least 1")
        if self.rows != TINYWORLD_ROWS and not self.is_made:
            raise ValueError(f"rows={self.rows} is for {TINYWORLD}, which is made on the spot, not for rows that are "
                             "there; leave it out")
        if self.split_seed < 0:
            raise ValueError(f"split_seed={self.split_seed} must be at least 0")
        if self.train_file is None and (self.val_file or self.test_file):
            raise ValueError("--val-file and --test-file go with --train-file; name it too")
        if self.train_file is not None and self.data != TINYWORLD:
            raise ValueError(f"--data {self.data} and --train-file {self.train_file}: give one of them")

    @property
    def is_made(self) -> bool:
        """Whether the rows are made on the spot, in any number."""
        return self.train_file is None and self.data == TINYWORLD

    @property
    def columns(self) -> Columns:
        """Where text and label stand in the files."""
        return Columns(text=self.text_column, label=self.label_column, use_quotes=self.use_quotes)


class Parts(NamedTuple):
    """The rows of each part; no test rows is a list without rows."""

    train: Labelled
    val: Labelled
    test: Labelled

    @property
    def names(self) -> list[str]:
        """The classes: integers in their order, words in that of the alphabet."""
        found = set(self.train.labels)
        is_numeric = all(name.removeprefix("-").isdecimal() for name in found)
        return sorted(found, key=lambda name: (int(name), name)) if is_numeric else sorted(found)   # "01" before "1"


def load_parts(config: LabelledConfig, *, is_pooled: bool = False) -> Parts:
    """Read and split; the training rows are then balanced where that is asked for.

    Args:
        config: which rows.
        is_pooled: whether all rows are put together again, and split anew: then all are kept; see `balance`.

    Raises:
        ValueError: for files that cannot be read, a training part with one class, a label that training lacks, or a
            setting without effect.
    """
    check_used(config, is_pooled=is_pooled)
    parts = _from_files(config) if config.train_file is not None else _from_name(config)
    check_labels(parts)
    if not is_pooled:
        parts = balance(parts, config)
    for name, part in parts._asdict().items():
        shares = ", ".join(f"{count:,} {label}" for label, count in sorted(Counter(part.labels).items()))
        log.info("%s: %s rows%s", name, f"{len(part):,}", f" ({shares})" if shares else "")
    return parts


def check_used(config: LabelledConfig, *, is_pooled: bool) -> None:
    """Complain about settings that the rows leave no room for.

    Raises:
        ValueError: for a column of a set that has its own, or a share of rows that are not split.
    """
    is_from_files, has_test = config.train_file is not None, bool(config.val_file or config.test_file)
    unused: dict[str, str] = {}
    if not is_from_files and config.data in (TINYWORLD, SMS, SMS_BALANCED):
        why = f"--data {config.data} has columns of its own"
        unused |= dict.fromkeys(("text_column", "label_column", "use_quotes"), why)
    if is_pooled:
        unused["test_fraction"] = "each of --folds is tested on in turn"
    elif has_test or (not is_from_files and config.data == SMS_BALANCED):
        unused["test_fraction"] = "the rows that judge are not drawn"
    if not is_pooled and (config.val_file or (not is_from_files and config.data == SMS_BALANCED)):
        unused["val_fraction"] = "the validation rows are not drawn"
    plain = LabelledConfig()
    for name, why in unused.items():
        if (value := getattr(config, name)) != getattr(plain, name):
            raise ValueError(f"{name}={value} has no effect, as {why}; leave it out")


def balance(parts: Parts, config: LabelledConfig) -> Parts:
    """The parts with as many training rows of each class as the rarest has, where that is asked for."""
    if config.class_balance != "undersample":
        return parts
    kept = parts.train.take(undersample(parts.train.labels, seed=config.split_seed))
    log.info("undersampled: %d of %d training rows are used", len(kept), len(parts.train))
    return parts._replace(train=kept)


def check_labels(parts: Parts) -> None:
    """Make sure that there is something to tell apart, and that training knows every label.

    Raises:
        ValueError: if not, with the place of the label.
    """
    if len(parts.names) < 2:
        raise ValueError(f"all {len(parts.train)} training rows are labelled {parts.names[0]!r}; there is nothing to "
                         "tell apart: check --label-column, or give rows of another class too")
    for part in (parts.val, parts.test):
        for label, place in zip(part.labels, part.places, strict=True):
            if label not in parts.names:
                raise ValueError(f"{place}: label {label!r} does not occur in the training rows, which have "
                                 f"{', '.join(map(repr, parts.names[:8]))}")


def _from_files(config: LabelledConfig) -> Parts:
    assert config.train_file is not None
    train = read_labelled(Path(config.train_file), config.columns)
    val = read_labelled(Path(config.val_file), config.columns) if config.val_file else None
    test = read_labelled(Path(config.test_file), config.columns) if config.test_file else None
    if val is None and test is None:
        return split(train, config)
    if val is None:
        train, val = divide_rows(train, [1 - config.val_fraction, config.val_fraction], seed=config.split_seed)
    return Parts(train, val, test or Labelled([], [], []))


def _from_name(config: LabelledConfig) -> Parts:
    if config.data == TINYWORLD:
        made = list(messages(config.split_seed, "both", config.rows))
        places = [f"{TINYWORLD}, message {number}" for number in range(1, len(made) + 1)]
        return split(Labelled([row["text"] for row in made], [row["label"] for row in made], places), config)
    if config.data == SMS_BALANCED:
        return book_split(resolve(SMS, kind="labelled"))
    path = resolve(config.data, kind="labelled", others=(TINYWORLD, SMS_BALANCED))
    return split(read_labelled(path, SMS_COLUMNS if config.data == SMS else config.columns), config)


def split(rows: Labelled, config: LabelledConfig) -> Parts:
    """Rows into training, validation and test part."""
    shares = [1 - config.val_fraction - config.test_fraction, config.val_fraction, config.test_fraction]
    return Parts(*divide_rows(rows, shares, seed=config.split_seed))


def divide_rows(rows: Labelled, shares: list[float], *, seed: int) -> list[Labelled]:
    """Rows into parts of these shares, duplicates together and classes in proportion."""
    return [rows.take(numbers) for numbers in divide(rows.texts, rows.labels, shares, seed=seed)]


def book_split(path: Path) -> Parts:
    """The balanced split of "LLMs from scratch" chapter 6: as many ham as spam, shuffled, cut 70 : 10 : 20.

    Read as the book reads it, with pandas' default quoting, which swallows two rows. Some texts stand in several parts;
    the audit says how many.
    """
    import pandas

    table = pandas.read_csv(path, sep="\t", header=None, names=["label", "text"])
    spam, ham = table[table.label == "spam"], table[table.label == "ham"]
    balanced = pandas.concat([ham.sample(len(spam), random_state=123), spam]).sample(frac=1, random_state=123)
    places = [f"{path.name}, row {number + 1}" for number in balanced.index]
    rows = Labelled(balanced.text.tolist(), balanced.label.tolist(), places)
    cuts = [0, int(len(rows) * 0.7), int(len(rows) * 0.7) + int(len(rows) * 0.1), len(rows)]
    return Parts(*(rows.take(range(first, last)) for first, last in pairwise(cuts)))
