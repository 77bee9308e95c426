"""Label texts: train a classifier from nothing or from another model's weights, judge it, use it."""

import csv
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.classification.config import (
    POSITIVE_NAMES,
    ClassifyConfig,
    ObjectiveConfig,
    fine_recipe,
    lora_recipe,
    recipe,
)
from llm.config import load
from llm.data.labelled import LABELLED_SUFFIXES, Labelled, read_labelled
from llm.data.labelled_sets import TINYWORLD, Parts, balance, check_labels, divide_rows, load_parts
from llm.tasks import entry
from llm.tasks.pretrain import check_experts, is_folder
from llm.tasks.pretrain import choose_model as choose_architecture
from llm.train.run import find_run, keep_settings, open_run, record_environment

if TYPE_CHECKING:
    from llm.classification.judge import Judgement
    from llm.runtime import World

log = logging.getLogger("llm.tasks.classify")   # started as a command, __name__ is "__main__", which nobody hears

FOR_PREDICTION = ("config", "model", "predict", "context", "text-column", "use-quotes", "device", "precision",
                  "threads")   # the flags that have an effect there


def parse(argv: Sequence[str] | None = None) -> ClassifyConfig:
    """The settings that a command line asks for."""
    argv = list(sys.argv[1:] if argv is None else argv)
    asked = {word.split("=")[0].replace("_", "-") for word in argv}
    if "--train-file" in asked and "--data" not in asked:
        argv += ["--data", TINYWORLD]   # the default: files of one's own replace the data that a preset names

    def read(words: list[str], choose: Callable[[str], Mapping[str, Any]]) -> ClassifyConfig:
        return load(ClassifyConfig, words, prog="python -m llm.tasks.classify", choose_model=choose,
                    resume_file=lambda name: find_run("classify", name) / "run.toml")

    plain = [word for word in argv if word not in ("-h", "--help")]
    config = read(plain, choose_model)
    is_training = config.predict is None
    is_made, is_lora = is_training and config.data.is_made, is_training and config.objective.tune == "lora"
    if is_made or is_lora or plain != argv:   # which have other recipes, of which --help tells, and ends
        config = read(argv, lambda name: choose_model(name, is_made=is_made, is_lora=is_lora))
    if not is_training:
        check_prediction(config, asked)
    return config


def check_prediction(config: ClassifyConfig, asked: Iterable[str]) -> None:
    """Make sure that there is a classifier's folder to predict with, and no flag that is for training only."""
    known = {f"--{name}" for name in FOR_PREDICTION}
    found = sorted({word for word in asked if word.startswith("--")} - known)
    if not is_folder(config.model):
        raise ValueError(f"--predict needs --model RUN, a classifier's run or folder, not {config.model!r}")
    if found:
        raise ValueError(f"{', '.join(found)} cannot be used with --predict, which trains nothing; leave "
                         f"{'it' if len(found) == 1 else 'them'} out")


def choose_model(name: str, *, is_made: bool = False, is_lora: bool = False) -> Mapping[str, Any]:
    """What `--model` fixes: the architecture, and for weights that know a language already how they are trained on.

    Args:
        name: a preset or a folder.
        is_made: whether the rows are made on the spot: instead of a few again and again, many are then read once.
        is_lora: whether only adapters of those weights learn.
    """
    check_is_one(name)
    fixed = {**choose_architecture(name), "train": recipe(), "objective": ObjectiveConfig()}
    if is_folder(name):
        fixed["train"] = lora_recipe() if is_lora else fine_recipe()
        fixed["objective"] = ObjectiveConfig(language=0.0, token_dropout=0.1 if is_lora else 0.0, tune="last-2")
    if is_made:
        fixed["train"] = replace(fixed["train"], epochs=1, eval_every=200)
        fixed["objective"] = replace(fixed["objective"], bpe_dropout=0.0, token_dropout=0.0)
    return fixed


def check_is_one(name: str) -> None:
    """Complain about a run of --seeds or --folds, whose classifiers stand in folders of their own."""
    found = [path.parent for path in Path(name).glob("seed-*/checkpoints")]
    if is_folder(name) and found and not Path(name, "checkpoints").exists():
        found.sort(key=lambda path: (len(path.name), path.name))
        raise ValueError(f"--model {name} holds several classifiers; name one: {', '.join(map(str, found[:8]))}"
                         f"{', ...' if len(found) > 8 else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    from llm.runtime import start  # here, not above: --help must not wait for torch

    if config.predict is not None:
        return predict(config)
    world = start(device=config.train.device, precision=config.train.precision, threads=config.train.threads,
                  parallel=config.train.parallel)
    with open_run("classify", config.run, world) as folder:
        stop_signal = classify(config, folder, world)
    print(folder, flush=True)
    return 128 + stop_signal if stop_signal else 0


def classify(config: ClassifyConfig, folder: Path, world: "World") -> int | None:
    """Train, judge and report in a run folder; returns the signal that ended it early, if one did."""
    from llm.classification.fit import fit
    from llm.classification.report import OURS, judge_all, judged_part, write_report, write_summary

    check_experts(config.architecture, config.routers)
    check_model(config)
    parts = load_parts(config.data, is_pooled=config.folds > 0)
    positive = positive_class(config, parts)
    record_environment(folder, hashes={"data": fingerprint(parts), **base_hash(config)})
    done = []
    for name, seed, job in [*jobs(config, parts)]:   # all splits before the first training: one may be impossible
        settings = replace(config, train=replace(config.train, seed=seed))
        fitted = fit(settings, job, folder / name, world, is_folder=is_folder(config.model),
                     begin=partial(keep_settings, folder, config))
        if fitted.stop_signal is not None:
            return fitted.stop_signal
        judged = judge_all(settings, job, fitted, positive)
        write_report(folder / name, settings, job, fitted, judged)
        write_predictions(folder / name / "predictions.csv", job, {part: found[OURS] for part, found in judged.items()})
        done.append((name, seed, judged))
        part = judged_part(judged)
        for who, judgement in judged[part].items():
            found = judgement.numbers()
            log.info("%s%s: %s %.2f%% right, %s in %s", f"{name}, " if name else "", part, who,
                     100 * found["accuracy"], counted(found["errors"], "error"), counted(found["rows"], "row"))
    if len(done) > 1:
        found = write_summary(folder, done)
        log.info("mean accuracy %.2f%%, errors of each seed in %d rows: %s", 100 * found["mean"], found["rows"],
                 ", ".join(map(str, found["errors"])))
    return None


def counted(count: int, word: str) -> str:
    """A number and what is counted, as people write it.

    Example:
        >>> counted(1, "row"), counted(2000, "row")
        ('1 row', '2,000 rows')
    """
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def jobs(config: ClassifyConfig, parts: Parts) -> Iterator[tuple[str, int, Parts]]:
    """What is to be fitted: a folder's name, the seed, the rows."""
    seeds = range(config.train.seed, config.train.seed + config.seeds)
    if not config.folds:
        for seed in seeds:
            yield (f"seed-{seed}" if config.seeds > 1 else ""), seed, parts
        return
    everything = parts.train + parts.val + parts.test
    try:
        folds = divide_rows(everything, [1.0] * config.folds, seed=config.data.split_seed)
    except ValueError as error:
        raise ValueError(f"--folds {config.folds} would leave a fold empty, as texts that differ only in digits, case "
                         f"or punctuation stay together: {len(everything)} rows are too few; choose fewer folds, or "
                         "give more rows") from error
    for seed in seeds:
        for number, test in enumerate(folds):
            rest = sum((fold for place, fold in enumerate(folds) if place != number), Labelled([], [], []))
            train, val = divide_rows(rest, [1 - config.data.val_fraction, config.data.val_fraction], seed=seed)
            job = Parts(train, val, test)
            check_labels(job)
            yield f"seed-{seed}_fold-{number + 1}", seed, balance(job, config.data)


def positive_class(config: ClassifyConfig, parts: Parts) -> int:
    """The number of the class that is looked for."""
    wanted = config.objective.positive
    if wanted is not None:
        if wanted not in parts.names:
            raise ValueError(f"--positive {wanted} is not one of the labels {', '.join(parts.names)}")
        return parts.names.index(wanted)
    plain = [name.casefold() for name in parts.names]
    for name in POSITIVE_NAMES:
        if name in plain:
            return plain.index(name)
    counts = Counter(parts.train.labels)
    return min(range(len(parts.names)), key=lambda number: (counts[parts.names[number]], -number))


def check_model(config: ClassifyConfig) -> None:
    """Complain about weights that are a classifier's already, and about settings that the model leaves no room for."""
    from llm.checkpoint import find_checkpoint
    from llm.interop import hf_config, peft
    from llm.interop.shards import read_json

    if not is_folder(config.model):
        if config.architecture.context_length != choose_architecture(config.model)["architecture"].context_length:
            raise ValueError(f"context_length={config.architecture.context_length} has no effect, as a new model has "
                             "room for as much as it reads of a text; give --context instead")
        return
    folder = find_checkpoint(config.model)
    if peft.is_adapter(folder):
        is_finished = peft.read_adapter(folder).is_classifier
    else:   # of a .gguf file there is no config.json
        file = folder / "config.json"
        is_finished = file.is_file() and hf_config.classifier_labels(read_json(file)) is not None
    if is_finished:
        raise ValueError(f"--model {config.model} is a finished classifier, and those are not trained further; start "
                         "from the model that it was trained from (`model` in its run.toml), or label texts with it: "
                         "--predict")
    if choose_architecture(config.model)["architecture"] != config.architecture:
        raise ValueError(f"--model {config.model} brings its own architecture; leave the architecture's flags out")
    reach = config.architecture.context_length
    if (config.context or 0) > reach:
        raise ValueError(f"--context {config.context} exceeds the model's context_length={reach}; give {reach} at most")


def base_hash(config: ClassifyConfig) -> dict[str, str]:
    """sha256 of the weights that adapters are trained on, since the run itself does not keep them; {} without adapters.

    Raises:
        ValueError: if there are none, or they would change.
    """
    from llm.checkpoint import find_checkpoint, weights_hash
    from llm.interop.peft import is_adapter

    if config.objective.tune != "lora":
        return {}
    if not is_folder(config.model):
        raise ValueError(f"--tune lora trains adapters for weights that stay as they are, and --model {config.model} "
                         "begins with random ones; name a folder of trained ones, or --tune all")
    if config.objective.warm_up:
        raise ValueError(f"--warm-up {config.objective.warm_up} would change the weights that --tune lora leaves as "
                         "they are; leave it out")
    base = find_checkpoint(config.model)
    if is_adapter(base):
        raise ValueError(f"--model {base} holds adapters itself; merge them and save the whole model: "
                         "llm.save(llm.load(FOLDER)[0], NEW)")
    return {"base weights": weights_hash(base)}


def fingerprint(parts: Parts) -> str:
    """sha256 over all rows of all parts."""
    import hashlib

    return hashlib.sha256(json.dumps([[part.texts, part.labels] for part in parts]).encode()).hexdigest()


def write_predictions(path: Path, parts: Parts, judged: "Mapping[str, Judgement]") -> None:
    """predictions.csv: each row of each part with label, prediction and probabilities."""
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
    path = Path(config.predict)
    if path.suffix.lower() in LABELLED_SUFFIXES or os.path.isfile(path):   # False for a text too long for a path
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
    reach = model.config.context_length
    if (config.context or 0) > reach:
        raise ValueError(f"--context {config.context} exceeds the model's context_length={reach}; leave it out")
    context = config.context or min(tokenizer.max_length or reach, reach)
    ids, num_cut = encode(rows.texts, tokenizer, context=context)
    if num_cut:
        log.warning("%d texts are longer than the context and were cut", num_cut)
    for text, row in zip(rows.texts, beliefs(model, ids, world=world), strict=True):
        shown = "  ".join(f"{name} {value:.4f}" for name, value in zip(model.labels, row, strict=True))
        print(f"{model.labels[row.argmax()]}\t{shown}\t{' '.join(text.split())}")
    return 0


if __name__ == "__main__":
    entry(main)
