"""Label texts: train a classifier from nothing or from another model's weights, judge it, use it."""

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.classification.config import ClassifyConfig
from llm.config import load
from llm.data.labelled import LABELLED_SUFFIXES, Labelled, read_labelled
from llm.data.labelled_sets import Parts, check_labels, divide_rows, load_parts
from llm.tasks import entry
from llm.tasks.pretrain import choose_model as choose_architecture
from llm.tasks.pretrain import is_folder
from llm.train.run import find_run, keep_settings, open_run, record_environment

if TYPE_CHECKING:
    from llm.classification.fit import Fitted
    from llm.classification.judge import Judgement
    from llm.runtime import World

log = logging.getLogger("llm.tasks.classify")   # started as a command, __name__ is "__main__", which nobody hears


def parse(argv: Sequence[str] | None = None) -> ClassifyConfig:
    """The settings that a command line asks for."""
    return load(ClassifyConfig, argv, prog="python -m llm.tasks.classify", choose_model=choose_architecture,
                resume_file=lambda name: find_run("classify", name) / "run.toml")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    from llm.runtime import start  # here, not above: --help must not wait for torch

    if config.predict is not None:
        return predict(config)
    world = start(device=config.train.device, precision=config.train.precision, threads=config.train.threads,
                  parallel="none")
    with open_run("classify", config.run, world) as folder:
        stop_signal = classify(config, folder, world)
    print(folder, flush=True)
    return 128 + stop_signal if stop_signal else 0


def classify(config: ClassifyConfig, folder: Path, world: "World") -> int | None:
    """Train, judge and report in a run folder; returns the signal that ended it early, if one did."""
    from llm.classification.fit import fit

    parts = load_parts(config.data)
    record_environment(folder, hashes={"data": fingerprint(parts)})
    keep_settings(folder, config)
    found: list[dict[str, dict[str, Any]]] = []
    for name, seed, job in jobs(config, parts):
        settings = replace(config, train=replace(config.train, seed=seed))
        fitted = fit(settings, job, folder / name, world, is_folder=is_folder(config.model))
        if fitted.stop_signal is not None:
            return fitted.stop_signal
        judged = judge(settings, job, fitted)
        write_predictions(folder / name / "predictions.csv", job, judged)
        found.append({part: judgement.numbers() for part, judgement in judged.items()})
        last = found[-1].get("test", found[-1]["val"])
        log.info("%s: %d errors in %d rows, accuracy %.2f%%, %.0f s", name or "test", last["errors"], last["rows"],
                 100 * last["accuracy"], fitted.train_s)
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return None


def jobs(config: ClassifyConfig, parts: Parts) -> Iterator[tuple[str, int, Parts]]:
    """What is to be fitted: a folder's name, the seed, the rows."""
    seeds = range(config.train.seed, config.train.seed + config.seeds)
    if not config.folds:
        for seed in seeds:
            yield (f"seed-{seed}" if config.seeds > 1 else ""), seed, parts
        return
    everything = parts.train + parts.val + parts.test
    folds = divide_rows(everything, [1.0] * config.folds, seed=config.data.split_seed)
    for seed in seeds:
        for number, test in enumerate(folds):
            rest = sum((fold for place, fold in enumerate(folds) if place != number), Labelled([], [], []))
            train, val = divide_rows(rest, [1 - config.data.val_fraction, config.data.val_fraction], seed=seed)
            job = Parts(train, val, test)
            check_labels(job)
            yield f"seed-{seed}_fold-{number + 1}", seed, job


def judge(config: ClassifyConfig, parts: Parts, fitted: "Fitted") -> "dict[str, Judgement]":
    """The judgement of each part that has rows, with a threshold chosen on validation for two classes."""
    import numpy as np

    from llm.classification.judge import Judgement

    names = parts.names
    positive = positive_class(config, parts)
    truth = {name: np.array([names.index(label) for label in part.labels]) for name, part in parts._asdict().items()}
    return {name: Judgement(truth[name], fitted.probabilities[name], names, positive) for name in truth
            if len(truth[name])}


def positive_class(config: ClassifyConfig, parts: Parts) -> int:
    """The number of the class that is looked for."""
    wanted = config.objective.positive
    if wanted is not None:
        if wanted not in parts.names:
            raise ValueError(f"--positive {wanted} is not one of the labels {', '.join(parts.names)}")
        return parts.names.index(wanted)
    counts = Counter(parts.train.labels)
    return min(range(len(parts.names)), key=lambda number: (counts[parts.names[number]], -number))


def fingerprint(parts: Parts) -> str:
    """sha256 over all rows of all parts."""
    import hashlib

    return hashlib.sha256(json.dumps([[part.texts, part.labels] for part in parts]).encode()).hexdigest()


def write_predictions(path: Path, parts: Parts, judged: "Mapping[str, Judgement]") -> None:
    """predictions.csv: each row of validation and test with label, prediction and probabilities."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "place", "label", "predicted", *(f"p({name})" for name in parts.names), "text"])
        for name, judgement in judged.items():
            part: Labelled = getattr(parts, name)
            for number, text in enumerate(part.texts):
                writer.writerow([name, part.places[number], part.labels[number],
                                 parts.names[judgement.predicted[number]],
                                 *(f"{value:.6f}" for value in judgement.probabilities[number]), text])


def predict(config: ClassifyConfig) -> int:
    """Label a text, or each text of a file, and print the probabilities."""
    from llm.checkpoint import load_classifier
    from llm.classification.judge import beliefs, encode
    from llm.runtime import start

    assert config.predict is not None
    if not is_folder(config.model):
        raise ValueError(f"--predict needs --model RUN, a classifier's run or folder, not {config.model!r}")
    path = Path(config.predict)
    if path.suffix.lower() in LABELLED_SUFFIXES:
        columns = replace(config.data.columns, label=None)
        rows = read_labelled(path, columns)
    elif config.predict.strip():
        rows = Labelled([config.predict], [""], [""])
    else:
        raise ValueError("--predict is empty; give a text or a file")
    world = start(device=config.train.device, precision=config.train.precision, threads=config.train.threads)
    model, tokenizer = load_classifier(config.model, device=world.device)
    if tokenizer is None:
        raise ValueError(f"--model {config.model} has no tokenizer.json beside the classifier")
    ids, num_cut = encode(rows.texts, tokenizer, context=config.context or model.config.context_length)
    if num_cut:
        log.warning("%d texts are longer than the context and were cut", num_cut)
    for text, row in zip(rows.texts, beliefs(model, ids, world=world), strict=True):
        shown = "  ".join(f"{name} {value:.4f}" for name, value in zip(model.labels, row, strict=True))
        print(f"{model.labels[row.argmax()]}\t{shown}\t{' '.join(text.split())}")
    return 0


if __name__ == "__main__":
    entry(main)
