"""Which text to train on, and how it is cut. Torch-free."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, its tokenizer and its validation part."""

    data: str = ""
    """Text file (.txt), rows with a text (.jsonl, .parquet), folder of them, token file (.bin), what
    llm.tasks.tokenize wrote, or the name of a set that llm.tasks.download lists."""
    val: str | None = None
    """Validation text of the same kinds; default: the named set's own, else a part of the data."""
    val_fraction: float = 0.1
    """Share held out when there is no --val: the end of one document, or whole documents of many."""
    tokenizer: str | None = None
    """char, byte, bpe:SIZE, gpt2, cl100k_base, o200k_base, or a folder or tokenizer.json; default: the model's own,
    else bpe:4096."""
    document_separator: str = "<|endoftext|>"
    """A line of a .txt file that equals it ends a document."""
    raw_dtype: Literal["uint16", "uint32"] | None = None
    """Read .bin files as plain streams of such ids, without a header."""
    context: int | None = None
    """Tokens in a training window; default: the model's context length."""
    windows: Literal["stream", "documents"] = "stream"
    """What a window holds: a stretch of the stream, or one document (or a part of it), which then sees no other."""
    limit: int | None = None
    """Use only the first N documents, for a quick try."""

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction} must lie between 0 and 1; 0.1 is usual")
        if self.context is not None and self.context < 1:
            raise ValueError(f"context={self.context} must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit} must be at least 1")
