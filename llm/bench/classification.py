"""`bench classify`: how many texts a second a classifier learns from and judges, beside transformers.

Both programs get the same weights and the same rows. Theirs takes the rows in the order given and pads each batch to
its longest text, as its users do; ours reads texts of like lengths together, as `llm.tasks.classify` does. So their
batches differ, and what is timed is not a step but a pass over all rows. Before that both are given the same batches:
loss and scores must be equal.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm.bench.config import ClassifyBenchConfig
from llm.bench.measure import Timing, speedup, take_turns, watch_of, worlds
from llm.bench.steps import SEED, SETTINGS, transformers
from llm.bench.table import format_table
from llm.bench.training import with_sizes
from llm.checkpoint import save
from llm.classification.fit import with_pad
from llm.classification.judge import batches_by_length, beliefs, encode
from llm.data.corpus import make_tokenizer
from llm.data.datasets import LabelledTexts
from llm.data.labelled_sets import LabelledConfig, load_parts
from llm.data.plan import plan
from llm.models.build import build_model
from llm.models.classifier import Classifier
from llm.models.config import ModelConfig
from llm.objectives.classification import Classification
from llm.runtime import World
from llm.train.plain import PlainLoop
from llm.train.trainer import Trainer

log = logging.getLogger(__name__)

Row = dict[str, Any]
Passes = dict[str, Callable[[], object]]   # what is done with all rows: "train" and "predict"

CLOSE = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.01}   # as far apart may two programs' losses and probabilities be


class Rows:
    """Texts as ids with their classes, and the batches in which each program reads them.

    Args:
        ids: of each text.
        labels: (texts,) class numbers.
        pad_id: an id that no text holds.
        num_classes: how many classes there are.
    """

    def __init__(self, ids: Sequence[Sequence[int]], labels: Sequence[int], *, pad_id: int, num_classes: int):
        self.ids = ids
        self.data = LabelledTexts(ids, labels)
        self.pad_id = pad_id
        self.num_classes = num_classes
        self.lengths = self.data.lengths(SEED, 0)

    def in_given_order(self, batch_size: int) -> list[np.ndarray]:
        """The row numbers of each batch of a program that takes them as they come."""
        numbers = np.arange(len(self.ids))
        return [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]

    def padded(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """A batch with what a model of transformers wants to know: where texts end, as mask and as padding id."""
        batch = self.data.batch(numbers, seed=SEED, epoch=0)
        is_real = torch.arange(batch["input_ids"].shape[1]) < batch["lengths"][:, None]   # (B, T)
        return {"input_ids": batch["input_ids"].where(is_real, self.pad_id), "attention_mask": is_real.long(),
                "labels": batch["labels"]}

    def padding(self, batches: Sequence[np.ndarray]) -> float:
        """The share of all that is read in these batches which is padding."""
        read = sum(len(numbers) * int(self.lengths[numbers].max()) for numbers in batches)
        return 1 - int(self.lengths.sum()) / read


def bench_classification(config: ClassifyBenchConfig) -> list[Row]:
    """Measure every precision and batch size asked for.

    Returns:
        A row for each program of each combination, in unrounded numbers.

    Raises:
        ValueError: if nothing that was asked for can be measured here, there are too few rows, or transformers is
            wanted and missing.
    """
    if config.against:
        transformers()   # complains before anything is measured
    texts, architecture = prepare(config)
    watch = watch_of(config.machine)
    found: list[Row] = []
    for world in worlds(config.precision, config.machine):
        for batch_size in config.batch_size:
            ours = new_classifier(architecture, texts)
            theirs = peer_classifier(ours).to(world.device) if config.against else None
            ours = ours.to(world.device)
            if theirs is not None:
                check_same_work(ours, theirs, texts, batch_size, world)
            programs = {"ours": our_passes(ours, texts, batch_size, world)}
            if theirs is not None:
                programs["transformers"] = their_passes(theirs, texts, batch_size, world)
            times = {task: take_turns({name: passes[task] for name, passes in programs.items()}, turns=config.turns,
                                      warmup=1, watch=watch) for task in ("train", "predict")}
            found += rows_of(times, texts, batch_size, world.precision)
            log.info("%s, %d texts in a batch", world.precision, batch_size)
    return found


def prepare(config: ClassifyBenchConfig) -> tuple[Rows, ModelConfig]:
    """The rows as ids, and the architecture with the tokenizer's vocabulary."""
    parts = load_parts(LabelledConfig(data=config.data, text_column=config.text_column,
                                      label_column=config.label_column))
    if len(parts.train) < config.texts:
        raise ValueError(f"--texts {config.texts}: --data {config.data} has {len(parts.train)} training rows; ask for "
                         "fewer")
    chosen = parts.train.take(range(config.texts))
    tokenizer = with_pad(make_tokenizer(config.tokenizer, lambda: parts.train.texts, pattern="qwen2"))
    assert tokenizer.pad_id is not None
    ids, _ = encode(chosen.texts, tokenizer, context=config.architecture.context_length)
    architecture = with_sizes(config.architecture, tokenizer.vocab_size, 1)
    return Rows(ids, [parts.names.index(label) for label in chosen.labels], pad_id=tokenizer.pad_id,
                num_classes=len(parts.names)), architecture


def new_classifier(architecture: ModelConfig, texts: Rows) -> Classifier:
    """The model that both programs begin with."""
    generator = torch.Generator().manual_seed(SEED)
    return Classifier(build_model(architecture, generator=generator), labels=[*map(str, range(texts.num_classes))],
                      pad_id=texts.pad_id, generator=generator)


def peer_classifier(ours: Classifier) -> nn.Module:
    """The same model in transformers, without dropout: our checkpoint is one of its own."""
    with tempfile.TemporaryDirectory() as folder:
        save(ours, Path(folder))
        return transformers().AutoModelForSequenceClassification.from_pretrained(folder)


def our_passes(model: Classifier, texts: Rows, batch_size: int, world: World) -> Passes:
    """Training and judging all rows as `llm.tasks.classify` does it."""
    objective = Classification()   # plain: without a language loss, smoothing or class weights
    trainer = Trainer(model, objective, train=texts.data, config=replace(SETTINGS, batch_size=batch_size), world=world)
    steps = len(texts.in_given_order(batch_size))

    def train() -> None:
        model.train()
        for _ in range(steps):
            trainer.train_step()

    def predict() -> np.ndarray:
        return beliefs(model.eval(), texts.ids, world=world, batch_size=batch_size)

    return {"train": train, "predict": predict}


def their_passes(model: Any, texts: Rows, batch_size: int, world: World) -> Passes:
    """The same with the shortest loops around a model of transformers."""
    loop = PlainLoop(model, lambda model, batch: model(**batch).loss, config=SETTINGS, world=world)

    def batches() -> Iterator[dict[str, Tensor]]:
        for numbers in texts.in_given_order(batch_size):
            yield world.to_device(texts.padded(numbers))

    def train() -> None:
        model.train()
        for batch in batches():
            loop.train_step(batch)

    def predict() -> np.ndarray:
        return their_beliefs(model, batches(), world)

    return {"train": train, "predict": predict}


@torch.no_grad()
def their_beliefs(model: Any, batches: Iterator[dict[str, Tensor]], world: World) -> np.ndarray:
    """(texts, classes) probabilities, as `beliefs` gives them."""
    model.eval()
    found = []
    with world.autocast():   # once, as `beliefs` does: the weights are cast but once
        for batch in batches:
            scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            found.append(scores.double().softmax(-1).cpu().numpy())
    return np.concatenate(found)


def check_same_work(ours: Classifier, theirs: Any, texts: Rows, batch_size: int, world: World) -> None:
    """Two programs that do not compute the same have no times to compare.

    Raises:
        RuntimeError: if the loss of the first batch, or the probabilities of any text, differ.
    """
    numbers = texts.in_given_order(batch_size)
    with torch.no_grad(), world.autocast():
        batch = world.to_device(texts.data.batch(numbers[0], seed=SEED, epoch=0))
        loss = float(Classification()(ours.eval(), batch).loss_sum) / len(numbers[0])
        their_loss = float(theirs.eval()(**world.to_device(texts.padded(numbers[0]))).loss)
    believed = beliefs(ours, texts.ids, world=world, batch_size=batch_size)
    apart = np.abs(believed - their_beliefs(theirs, (world.to_device(texts.padded(n)) for n in numbers), world)).max()
    if max(abs(loss - their_loss), apart) > CLOSE[world.precision]:
        raise RuntimeError(f"the two programs do not compute the same: losses {loss} and {their_loss}, probabilities "
                           f"{apart:.2g} apart; please report this")


def rows_of(times: dict[str, dict[str, Timing]], texts: Rows, batch_size: int, precision: str) -> list[Row]:
    """What the times of all passes say: a row for each program.

    Args:
        times: "train" and "predict" to program to the seconds of its passes.
        texts: that were read.
        batch_size: in how many at a time.
        precision: of matrix products.
    """
    given = texts.padding(texts.in_given_order(batch_size))
    padding = {
        "ours": {"train": texts.padding(plan(texts.lengths, batch_size=batch_size, seed=SEED, epoch=0,
                                             sort_by_length=True)),
                 "predict": texts.padding(batches_by_length(texts.lengths, batch_size))},
        "transformers": {"train": given, "predict": given}}
    found: list[Row] = []
    for program in times["train"]:
        row: Row = {"program": program, "precision": precision, "batch_size": batch_size}
        for task, timings in times.items():
            row |= {f"{task}_texts_per_s": len(texts.ids) / timings[program].median,
                    f"{task}_padding": padding[program][task], f"{task}_s": timings[program].seconds}
        found.append(row)
    if len(found) == 2:
        for task, timings in times.items():
            found[0][f"{task}_times_as_fast"] = speedup(timings["ours"], timings["transformers"])._asdict()
    return found


def show_classification(rows: list[Row]) -> str:
    """The rows as a table; spreads are the middle half."""
    shown = []
    for row in rows:
        cells = {"program": row["program"], "precision": row["precision"], "batch": str(row["batch_size"])}
        for task in ("train", "predict"):
            cells[f"{task} texts/s"] = f"{row[f'{task}_texts_per_s']:,.1f}"
            cells[f"{task} padding"] = f"{row[f'{task}_padding']:.0%}"
            if ratio := row.get(f"{task}_times_as_fast"):
                cells[f"{task} times as fast"] = f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
        shown.append(cells)
    return format_table(shown)
