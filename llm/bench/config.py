"""What to measure. Torch-free; one dataclass for each command of `llm.tasks.bench`."""

import os
from dataclasses import dataclass, field
from typing import Literal

from llm.data.labelled_sets import TINYWORLD
from llm.models.config import GPTConfig, ModelConfig
from llm.train.run import FolderConfig

Switch = Literal["false", "true"]
Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """On what to measure."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads; default torch's choice."""
    clock: Clock = "wall"
    """wall: seconds; cpu: processor seconds of all threads, for a machine that is busy with other work too."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchConfig:
    """Measure whole training steps: forward, backward, clipping, AdamW.

    python -m llm.tasks.bench train --model gpt-tiny --precision fp32 bf16 --against transformers
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = "gpt-tiny"
    """A model preset; the architecture's flags change it."""
    architecture: ModelConfig = field(default_factory=GPTConfig)
    vocab_size: int | None = None
    """Tokens in the vocabulary; default: the preset's own, else 4096."""
    context: int = 256
    """Tokens in a row."""
    batch_size: int = 8
    """Rows in a step."""
    steps: int = 20
    """Timed steps of each program, in turns; 0 measures memory only."""
    precision: tuple[Literal["auto", "fp32", "bf16", "fp16"], ...] = ("auto",)
    """Of matrix products, one or several."""
    compile: tuple[Switch, ...] = ("false",)
    """torch.compile, one or both."""
    activation_checkpointing: tuple[Switch, ...] = ("false",)
    """Recompute activations in the backward, one or both."""
    against: Literal["transformers"] | None = None
    """Also measure the same model in transformers (extra `test`), step by step in turns."""
    defaults: bool = False
    """Both as they come: ours with precision auto; transformers in fp32, with its own dropout."""
    memory: Literal["none", "step", "head"] = "step"
    """Peak memory, each in a fresh process: of a step, or also of one without the head, and of the head alone."""
    profile: bool = False
    """Also record where the time goes: a trace for chrome://tracing or Perfetto, and tables."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    run: FolderConfig = field(default_factory=FolderConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "context", "batch_size", "vocab_size")
        at_least(self, 0, "steps")
        not_empty(self, "precision", "compile", "activation_checkpointing")
        if not self.steps and self.memory == "none" and not self.profile:
            raise ValueError("steps=0 with memory=none measures nothing; give one of them")
        changed = [name for name in ("precision", "compile", "activation_checkpointing")
                   if getattr(self, name) != type(self).__dataclass_fields__[name].default]
        if self.defaults and changed:
            raise ValueError(f"defaults measures both as they come; leave {' and '.join(changed)} out")
        if self.defaults and self.against is None:
            raise ValueError("defaults compares two programs; add --against transformers")


@dataclass(frozen=True, kw_only=True)
class GenerateBenchConfig:
    """Measure writing: reading the prompt and each further token apart, greedily, with a cache.

    python -m llm.tasks.bench generate --model gpt2-124m --batch-size 1 8 --against transformers
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = "gpt-tiny"
    """A model preset; the architecture's flags change it."""
    architecture: ModelConfig = field(default_factory=GPTConfig)
    vocab_size: int | None = None
    """Tokens in the vocabulary; default: the preset's own, else 4096."""
    batch_size: tuple[int, ...] = (1, 8)
    """Rows written at once, one or several numbers."""
    prompt_tokens: int = 32
    """Length of the prompts."""
    new_tokens: int = 64
    """Tokens written behind each."""
    rounds: int = 5
    """How often each program writes them, in turns."""
    precision: tuple[Literal["auto", "fp32", "bf16", "fp16"], ...] = ("auto",)
    """Of matrix products, one or several."""
    against: Literal["transformers"] | None = None
    """Also measure `generate` of transformers (extra `test`) on the same weights, in turns."""
    memory: Literal["none", "peak"] = "peak"
    """Peak memory, each in a fresh process."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    run: FolderConfig = field(default_factory=FolderConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "vocab_size", "prompt_tokens", "rounds")
        at_least(self, 2, "new_tokens")
        not_empty(self, "precision", "batch_size")
        if min(self.batch_size) < 1:
            raise ValueError(f"batch_size={min(self.batch_size)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class DataBenchConfig:
    """Measure the way of the data: tokenizing text, and reading windows from the token file it becomes.

    python -m llm.tasks.bench data --megabytes 16 --tokenizer bpe:4096 --workers 2
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    data: str | None = None
    """A text file, or a folder of them; default: stories of tinyworld, made on the spot."""
    megabytes: float = 8.0
    """How much of those stories."""
    tokenizer: str = "bpe:4096"
    """bpe:SIZE (learned from the text), char, byte, gpt2, cl100k_base, o200k_base, or a saved one."""
    workers: int = os.cpu_count() or 1
    """Processes that tokenize, besides a single one."""
    model: str = "gpt-tiny"
    """A model preset, whose training the windows must feed; the architecture's flags change it."""
    architecture: ModelConfig = field(default_factory=GPTConfig)
    context: int = 256
    """Tokens in a window."""
    batch_size: int = 8
    """Windows in a batch."""
    steps: int = 10
    """Timed batches and training steps."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    run: FolderConfig = field(default_factory=FolderConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "workers", "context", "batch_size", "steps")
        if not self.megabytes > 0:
            raise ValueError(f"megabytes={self.megabytes} must be above 0")
        if self.machine.clock == "cpu":
            raise ValueError("clock=cpu does not see the processes that tokenize; leave it out")
        if self.data is not None and self.megabytes != type(self).__dataclass_fields__["megabytes"].default:
            raise ValueError(f"megabytes={self.megabytes} is for the text made on the spot, not for data={self.data}; "
                             "leave it out")


@dataclass(frozen=True, kw_only=True)
class ClassifyBenchConfig:
    """Measure how many texts a second a classifier learns from, and how many it labels.

    python -m llm.tasks.bench classify --data rows.csv --precision fp32 --against transformers
    """

    config: str | None = None
    """A TOML file with any of these settings."""
    model: str = "gpt-tiny"
    """A model preset; the architecture's flags change it."""
    architecture: ModelConfig = field(default_factory=GPTConfig)
    data: str = TINYWORLD
    """Labelled rows, a file or a name, as in llm.tasks.classify."""
    text_column: str = "text"
    """Column of the text; a number from 1 where there is no header line."""
    label_column: str = "label"
    """Column of the label, likewise."""
    tokenizer: str = "bpe:4096"
    """bpe:SIZE (learned from the texts), byte, gpt2, cl100k_base, o200k_base, or a saved one."""
    texts: int = 256
    """How many of the training rows are read in a pass."""
    batch_size: tuple[int, ...] = (8,)
    """Texts read at once, one or several numbers."""
    turns: int = 5
    """How often each program goes through them, in turns."""
    precision: tuple[Literal["auto", "fp32", "bf16", "fp16"], ...] = ("auto",)
    """Of matrix products, one or several."""
    against: Literal["transformers"] | None = None
    """Also measure the same classifier in transformers (extra `test`), pass by pass in turns."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    run: FolderConfig = field(default_factory=FolderConfig)

    def __post_init__(self) -> None:
        at_least(self, 1, "texts", "turns")
        not_empty(self, "precision", "batch_size")
        if min(self.batch_size) < 1:
            raise ValueError(f"batch_size={min(self.batch_size)} must be at least 1")


def at_least(config: object, least: int, *names: str) -> None:
    """ValueError naming the first of these settings that is below the least; None is left alone."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")


def not_empty(config: object, *names: str) -> None:
    """ValueError for a list of settings without any."""
    for name in names:
        if not getattr(config, name):
            raise ValueError(f"{name} is empty; give one value or several")
