"""One classifier from one set of rows: tokenizer, model, teachers, warm-up on the texts, training, best checkpoint."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from llm.checkpoint import CheckpointStore, find_checkpoint, load_weights, save
from llm.checkpoint import load as load_model
from llm.classification.augment import Versions
from llm.classification.baselines import LogisticRegression, character_ngrams
from llm.classification.config import BPE_DROPOUT, DEFAULT_TOKENIZER, NEW_CONTEXT, ClassifyConfig
from llm.classification.judge import beliefs, encode
from llm.classification.teachers import Splices, Teachers
from llm.data.corpus import make_tokenizer
from llm.data.datasets import LabelledTexts, TokenWindows
from llm.data.division import balanced_weights
from llm.data.labelled import Labelled
from llm.data.labelled_sets import Parts
from llm.models.build import build_model
from llm.models.classifier import Classifier
from llm.models.config import preset_table
from llm.models.decoder import Decoder
from llm.nn.lora import eject, inject, merge
from llm.objectives.classification import Classification
from llm.objectives.language import NextToken
from llm.runtime import World
from llm.tokenizers.dropout import has_merges
from llm.tokenizers.ends import ends, with_end
from llm.tokenizers.tokenizer import Tokenizer
from llm.train.logger import trackers
from llm.train.trainer import Trainer

log = logging.getLogger(__name__)

PAD = "<|pad|>"


class Fitted(NamedTuple):
    """A trained classifier and what it believes of each part's rows."""

    model: Classifier
    tokenizer: Tokenizer
    probabilities: dict[str, np.ndarray]   # part to (rows, classes)
    lengths: dict[str, list[int]]          # part to the tokens that are read of each row
    num_cut: dict[str, int]                # part to the rows that are longer than that
    num_trained: int                       # parameters that learned
    train_s: float                         # seconds in training steps, those of warm-up and of teachers met included
    texts_per_s: float                     # in prediction
    stop_signal: int | None


def fit(config: ClassifyConfig, parts: Parts, folder: Path, world: World, *, is_folder: bool,
        begin: Callable[[], None]) -> Fitted:
    """Train on one part, choose by another, and judge all.

    Args:
        config: the settings; its seed is that of this fit.
        parts: the rows.
        folder: where metrics and checkpoints go.
        is_folder: whether `config.model` names weights to go on from.
        begin: called before the first step, when nothing of what was asked for can turn out impossible any more.

    Raises:
        ValueError: for settings that do not fit rows, model, tokenizer or the run to be resumed.
    """
    generator = torch.Generator().manual_seed(config.train.seed)
    decoder, tokenizer = new_decoder(config, parts.train, generator, is_folder=is_folder)
    context = tokenizer.max_length
    assert context is not None
    encoded = {name: encode(part.texts, tokenizer, context=context) for name, part in parts._asdict().items()}
    rows = {name: ids for name, (ids, _) in encoded.items()}
    num_cut = {name: count for name, (_, count) in encoded.items()}
    warming = None   # built before the classifier freezes a part of the decoder: it teaches all of it
    if config.objective.warm_up:
        warming = warm_up_trainer(config, decoder, tokenizer, parts.train, folder / "warm-up", world)
    model = Classifier(decoder, labels=parts.names, pad_id=tokenizer.pad_id, generator=generator)
    freeze(model, config, generator)
    num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    mean_length = float(np.mean([len(row) for row in rows["train"]]))
    version: Versions | Splices | None = versions(config, parts.train.texts, tokenizer, context=context,
                                                  is_folder=is_folder)
    weights = balanced_weights(parts.train.labels, parts.names) if config.data.class_balance == "weights" else None
    numbers = {name: place for place, name in enumerate(parts.names)}
    classes = {name: [numbers[label] for label in part.labels] for name, part in parts._asdict().items()}
    read = dict(rows)
    if config.objective.teachers:   # who also say what to think of texts that have no label
        plain, count = rows["train"], len(rows["train"])
        version = Splices(version or (lambda number, rng: plain[number]), count, tokenizer, context=context)
        read["train"], classes["train"] = [*plain, *plain], 2 * classes["train"]
    datasets = {name: LabelledTexts(read[name], classes[name],
                                    has_targets=name == "train" and config.objective.language > 0,
                                    version=version if name == "train" else None)
                for name in read if read[name]}
    objective = Classification(
        weights, label_smoothing=config.objective.label_smoothing, token_weight=config.objective.language / mean_length,
        balance=config.routers.balance / mean_length, router_z=config.routers.router_z / mean_length)
    trainer = Trainer(
        model, objective, train=datasets["train"], val=datasets["val"], config=config.train, folder=folder,
        tokenizer=tokenizer, world=world,
        loggers=trackers(folder, config, tensorboard=config.run.tensorboard, wandb=config.run.wandb),
        base=find_checkpoint(config.model) if config.objective.tune == "lora" else None,
    )
    if config.run.resume:
        trainer.resume()
    begin()
    train_s, stop_signal = 0.0, None
    if config.objective.teachers and not trainer.is_finished:
        # whose chance must not become ours, which a resumed run has just taken up again
        with torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []):
            objective.teacher, train_s, stop_signal = find_teachers(config, parts, tokenizer, folder, world,
                                                                        is_folder=is_folder)
    if warming is not None and stop_signal is None:
        seconds, stop_signal = warm_up(warming, decoder)
        train_s += seconds
        log.info("warm-up: %d steps on the texts of %d rows", warming.state.step, len(parts.train))
        warming = None   # frees what its optimizer remembers
    if stop_signal is None:
        train_s += trainer.fit().elapsed_s
        stop_signal = trainer.stop_signal
    if stop_signal is None:
        load_weights(model, find_checkpoint(folder))
        if config.objective.tune == "lora":
            keep_merged(model, tokenizer, folder)
    model.eval()
    started = time.perf_counter()
    probabilities = {name: beliefs(model, part, world=world) for name, part in rows.items()}
    texts_per_s = sum(map(len, rows.values())) / (time.perf_counter() - started)
    return Fitted(model, tokenizer, probabilities, {name: [*map(len, part)] for name, part in rows.items()}, num_cut,
                  num_trained, train_s, texts_per_s, stop_signal)


def find_teachers(config: ClassifyConfig, parts: Parts, tokenizer: Tokenizer, folder: Path, world: World, *,
                  is_folder: bool) -> tuple[Teachers, float, int | None]:
    """Fit those a classifier learns from: classifiers like itself, each in its own folder, and logistic regression.

    Args:
        config: of the classifier, with one teacher at least.
        tokenizer: the classifier's, which theirs equal, since they are learned from the same texts.

    Returns:
        Them, the seconds they took, and the signal that ended it early, if one did.
    """
    numbers = [parts.names.index(label) for label in parts.train.labels]
    regression = LogisticRegression(character_ngrams, num_classes=len(parts.names)).fit(parts.train.texts, numbers)
    models: list[Classifier] = []
    settings = replace(config, objective=replace(config.objective, teachers=0),
                       run=replace(config.run, tensorboard=False, wandb=False))
    seconds = 0.0
    for number in range(1, config.objective.teachers + 1):
        log.info("teacher %d of %d", number, config.objective.teachers)
        seed = (config.train.seed + 1_000_000 * number) % 2**63   # which no --seeds reaches
        fitted = fit(replace(settings, train=replace(config.train, seed=seed)), parts, folder / f"teacher-{number}",
                     world, is_folder=is_folder, begin=lambda: None)
        assert fitted.tokenizer.fingerprint == tokenizer.fingerprint
        models.append(fitted.model)
        seconds += fitted.train_s
        if fitted.stop_signal is not None:
            break
    return Teachers(models, [regression], tokenizer), seconds, fitted.stop_signal


def new_decoder(
    config: ClassifyConfig, rows: Labelled, generator: torch.Generator, *, is_folder: bool
) -> tuple[Decoder, Tokenizer]:
    """What reads the texts, new or somebody's; and a tokenizer that pads with no text and knows the context."""
    if is_folder:
        decoder, own = load_model(config.model, dropout=config.train.dropout)
        if own is None and config.tokenizer is None:
            raise ValueError(f"--model {config.model} has no tokenizer.json; name its --tokenizer")
        if own is not None and config.tokenizer is not None:
            raise ValueError(f"--model {config.model} brings its own tokenizer; leave --tokenizer out")
        tokenizer = with_pad(own or make_tokenizer(config.tokenizer or "", list))
        if config.objective.end_of_text and not ends(tokenizer).behind:
            tokenizer = with_end(tokenizer)
        decoder.grow(tokenizer.vocab_size)
        tokenizer.max_length = config.context or decoder.config.context_length
        return decoder, tokenizer
    name = config.tokenizer or preset_table(config.model).get("tokenizer", DEFAULT_TOKENIZER)
    if name == "char":
        raise ValueError("--tokenizer char cannot read a character that no training text has; use byte or bpe:SIZE")
    # the pattern takes numbers digit by digit, so that a new telephone number looks like the known ones
    tokenizer = with_pad(make_tokenizer(name, lambda: rows.texts, pattern="qwen2"))
    if config.objective.end_of_text:
        tokenizer = with_end(tokenizer)
    tokenizer.max_length = config.context or NEW_CONTEXT
    architecture = replace(config.architecture, vocab_size=tokenizer.vocab_size, context_length=tokenizer.max_length)
    return build_model(architecture, dropout=config.train.dropout, generator=generator), tokenizer


def versions(config: ClassifyConfig, texts: Sequence[str], tokenizer: Tokenizer, *, context: int,
             is_folder: bool) -> Versions | None:
    """How the training texts change from epoch to epoch, if they do."""
    rate = config.objective.bpe_dropout
    if rate is None:
        rate = 0.0 if is_folder or not has_merges(tokenizer) else BPE_DROPOUT
    if not rate and not config.objective.token_dropout:
        return None
    return Versions(texts, tokenizer, context=context, bpe_dropout=rate, token_dropout=config.objective.token_dropout)


def with_pad(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with a token of its own for padding, which is no text and does not end one.

    Where it names none, a control token that is used for nothing else is taken: the model has weights for it already,
    and adapters trained upon it need no base with one row more. Without any, one is added.

    Raises:
        ValueError: for a tokenizer that lacks it and cannot get one.
    """
    if tokenizer.pad_id is not None and tokenizer.pad_id not in (tokenizer.eos_id, tokenizer.bos_id):
        return tokenizer
    if type(tokenizer) is not Tokenizer or PAD in tokenizer.vocabulary.text_tokens:
        raise ValueError("the tokenizer has no token for padding only, and cannot get one; name one as pad_token in "
                         "its tokenizer_config.json")
    vocabulary = tokenizer.vocabulary
    used = {tokenizer.bos_id, tokenizer.eos_id, *ends(tokenizer).around([])}
    spare = [name for name, token_id in vocabulary.special_tokens.items()
             if token_id not in used and name not in (tokenizer.chat_template or "")]
    if spare:   # the last of the reserved ones, unless one is meant for it
        name = max(spare, key=lambda name: ("pad" in name.casefold(), vocabulary.special_tokens[name]))
        return Tokenizer(vocabulary, **{**tokenizer.settings, "pad_token": name})
    if PAD not in vocabulary.special_tokens:
        source, pad_id = vocabulary.source, tokenizer.vocab_size
        if source is not None:   # the file that it was read from, which is what is saved again
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            token = {"id": pad_id, "content": PAD, **flags, "special": True}
            source = {**source, "added_tokens": [*source.get("added_tokens", []), token]}
        vocabulary = replace(vocabulary, special_tokens={**vocabulary.special_tokens, PAD: pad_id}, source=source)
    return Tokenizer(vocabulary, **{**tokenizer.settings, "pad_token": PAD})


def warm_up_trainer(
    config: ClassifyConfig, decoder: Decoder, tokenizer: Tokenizer, rows: Labelled, folder: Path, world: World
) -> Trainer:
    """What teaches the decoder the language of the training rows' texts, one text a window, without a label."""
    if tokenizer.eos_id is None:
        raise ValueError(f"--warm-up {config.objective.warm_up} needs a tokenizer with an end-of-text token")
    tokens = np.concatenate([[tokenizer.eos_id], *(tokenizer.encode_document(text) for text in rows.texts)])
    windows = TokenWindows(tokens, context=decoder.config.context_length, document_end=tokenizer.eos_id)
    settings = replace(config.train, steps=None, epochs=config.objective.warm_up, patience=0, eval_every=0,
                       save_every=0, save_every_epochs=0, keep=1)
    objective = NextToken(tokenizer.byte_counts, balance=config.routers.balance, router_z=config.routers.router_z)
    trainer = Trainer(decoder, objective, train=windows, config=settings, folder=folder, tokenizer=tokenizer,
                      world=world)
    if config.run.resume:
        trainer.resume()
    return trainer


def warm_up(trainer: Trainer, decoder: Decoder) -> tuple[float, int | None]:
    """Let the whole decoder learn for a while, also what is frozen for the labels.

    Returns:
        The seconds it took, and the signal that ended it early, if one did.
    """
    frozen = [parameter for parameter in decoder.parameters() if not parameter.requires_grad]
    decoder.requires_grad_(True)
    state = trainer.fit()
    for parameter in frozen:
        parameter.requires_grad_(False)
    return state.elapsed_s, trainer.stop_signal


def freeze(model: Classifier, config: ClassifyConfig, generator: torch.Generator) -> None:
    """Let only those weights learn that `tune` names; the output head only where the texts are predicted too."""
    decoder, blocks = model.decoder, model.decoder.blocks
    count = config.objective.num_blocks_tuned(len(blocks))
    if count > len(blocks):
        raise ValueError(f"--tune {config.objective.tune}: the model has only {len(blocks)} blocks")
    if config.objective.tune != "all":
        decoder.requires_grad_(False)
        for block in list(blocks)[len(blocks) - count :]:
            block.requires_grad_(True)
        decoder.final_norm.requires_grad_(count > 0)
    if decoder.head is not None:
        decoder.head.requires_grad_(config.objective.tune == "all" and config.objective.language > 0)
    if config.objective.tune == "lora":
        lora = config.lora
        inject(decoder, rank=lora.lora_rank, alpha=lora.lora_alpha, dropout=lora.lora_dropout,
               targets=lora.lora_targets or None, last_blocks=lora.lora_last_blocks or None, generator=generator)
        learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        log.info("adapters and scores: %s parameters learn", f"{learning:,}")


def keep_merged(model: Classifier, tokenizer: Tokenizer, folder: Path) -> None:
    """Merge the adapters into the model, and keep it in `checkpoints/merged/` as one that needs no base."""
    merge(model)
    eject(model)
    CheckpointStore(folder / "checkpoints").write_beside("merged", lambda into: save(model, into, tokenizer=tokenizer))
