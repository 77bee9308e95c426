"""The settings of a classifier's run. Torch-free."""

import re
from dataclasses import dataclass, field, replace

from llm.data.labelled_sets import LabelledConfig
from llm.models.config import ModelConfig, QwenConfig
from llm.train.config import LoRAConfig, RouterConfig, TrainConfig
from llm.train.run import RunConfig

DEFAULT_TOKENIZER = "bpe:2048"
NEW_CONTEXT = 256    # of a model trained from nothing
BPE_DROPOUT = 0.2    # likewise
POSITIVE_NAMES = ("spam", "positive", "1", "yes", "true")   # of the class that is looked for, in any case


def recipe() -> TrainConfig:
    """How small models learn to classify from nothing.

    The last weights count, those after the learning rate has run out: a validation part of a hundred rows cannot tell
    which of ten checkpoints is the best. In 24 cross-validations over 1,194 rows, with various settings, the best by it
    made 728 errors in sum, the last 688.
    """
    return TrainConfig(epochs=10, batch_size=16, optimizer="muon", lr=3e-3, schedule="linear", min_lr_ratio=0.0,
                       dropout=0.1, eval_every=50, save_best=False, keep=1)


def fine_recipe() -> TrainConfig:
    """How models that were trained before learn to classify."""
    return TrainConfig(epochs=4, batch_size=8, lr=2e-4, schedule="linear", min_lr_ratio=0.0, weight_decay=0.01,
                       eval_every=50, keep=1)


def lora_recipe() -> TrainConfig:
    """The same by adapters, which bear somewhat larger steps. The last weights count, as with models from nothing.

    SmolLM2-135M, cross-validated over 1,194 balanced rows with a tenth of the tokens left out: 23 errors, five minutes
    of training for each fold on one core that multiplies bf16.
    """
    return replace(fine_recipe(), lr=3e-4, save_best=False)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is asked of the model, besides the labels."""

    label_smoothing: float = 0.05
    """Share of the target that is spread over all classes."""
    language: float = 1.0
    """Weight of the loss of predicting the texts themselves, for a text of mean length, beside 1 for its label."""
    warm_up: int = 0
    """Epochs of predicting the training rows' texts before, without labels."""
    end_of_text: bool = True
    """Put the end-of-text token behind each text, where the class is read; else it is read off the text's last."""
    bpe_dropout: float | None = None
    """Chance of a merge to be left out while a training text is cut into tokens, anew in every epoch; default: 0.2 for
    a model trained from nothing whose tokenizer has merges, else 0."""
    token_dropout: float = 0.2
    """Chance of a token to be left out of a training text, anew in every epoch."""
    teachers: int = 0
    """So many classifiers with seeds of their own learn the labels before, and logistic regression on characters, each
    with one vote; the one that is kept learns from the mean of what they believe of each version of a text, and of
    as many splices of two; 0: from the labels. It needs a logistic regression that is about as good, and with 2
    teachers about five times the time."""
    tune: str = "all"
    """Which weights learn: head, last-block, last-N (blocks, with the final norm), all, or lora: adapters beside the
    weights, which stay as they are."""
    positive: str | None = None
    """Of two classes the one looked for; default: one called spam, positive, 1, yes or true, else the rarer one in
    training, else the later in the alphabet."""

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing={self.label_smoothing} must lie in [0, 1)")
        for name in ("bpe_dropout", "token_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        for name in ("language", "warm_up", "teachers"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        self.num_blocks_tuned(1)

    def num_blocks_tuned(self, num_blocks: int) -> int:
        """How many of a model's blocks learn, counted from the last.

        Raises:
            ValueError: if `tune` is none of its words.
        """
        fixed = {"head": 0, "lora": 0, "last-block": 1, "all": num_blocks}
        if self.tune in fixed:
            return fixed[self.tune]
        if not re.fullmatch(r"last-[1-9]\d*", self.tune):
            raise ValueError(f"tune={self.tune!r} is not one of head, last-block, last-2, last-3, ..., all, lora")
        return int(self.tune.removeprefix("last-"))


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """Label texts: train a classifier from nothing or from another model's weights, judge it, use it.

    python -m llm.tasks.classify --train-file train.csv --test-file test.csv

    python -m llm.tasks.classify --predict "You have won!" --model RUN
    """

    config: str | None = None
    """Settings to start from: a preset of presets/runs, or a TOML file such as a run.toml."""
    model: str = "spam-tiny"
    """A preset (trains from nothing), or a run, checkpoint or Hugging Face folder (goes on from its weights)."""
    tokenizer: str | None = None
    """Of a model from nothing: byte, bpe:SIZE, gpt2, ..., or a folder or tokenizer.json; default bpe:2048, learned from
    the training texts."""
    context: int | None = None
    """Tokens of a text that are read; default: 256, or the model's context length."""
    predict: str | None = None
    """Label a text, or the texts of a file, with --model RUN, instead of training."""
    seeds: int = 1
    """Repeat with as many seeds, and tell mean and spread; each has a folder in that of the run, which cannot be
    resumed."""
    folds: int = 0
    """Cross-validate: put all rows together, and test on each of so many parts in turn, likewise; 0 does not."""
    architecture: ModelConfig = field(default_factory=QwenConfig)
    data: LabelledConfig = field(default_factory=LabelledConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    routers: RouterConfig = field(default_factory=RouterConfig)
    train: TrainConfig = field(default_factory=recipe)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise ValueError(f"context={self.context} must be at least 1")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds={self.folds} must be 2 or more, or 0")
        if self.objective.teachers and self.data.class_balance == "weights":
            raise ValueError(f"teachers={self.objective.teachers}: what they believe is not weighed by class; choose "
                             "--class-balance undersample or none, or leave --teachers out")
        for name, default in vars(LoRAConfig()).items():
            if self.objective.tune != "lora" and (value := getattr(self.lora, name)) != default:
                raise ValueError(f"{name}={value} has no effect with tune={self.objective.tune}; leave it out, or "
                                 "choose --tune lora")
        if self.run.resume and (self.seeds > 1 or self.folds):
            raise ValueError(f"--resume {self.run.resume}: what is trained with --seeds or --folds, here "
                             f"{self.seeds} and {self.folds}, are several classifiers, and cannot be resumed; start a "
                             "new run")
