"""Train a language model on text, from nothing or from the weights of another."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm.config import load, preset_names
from llm.data.config import DataConfig
from llm.models.config import ModelConfig, QwenConfig, model_preset, preset_table
from llm.tasks import entry
from llm.train.config import RouterConfig, TrainConfig
from llm.train.run import RunConfig, find_run, keep_settings, open_run, record_environment

if TYPE_CHECKING:
    from llm.data.corpus import Corpus
    from llm.models.decoder import Decoder
    from llm.runtime import World
    from llm.tokenizers.tokenizer import Tokenizer
    from llm.train.samples import SampleWriter

log = logging.getLogger("llm.tasks.pretrain")   # started as a command, __name__ is "__main__", which nobody hears


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """The texts written at each validation, into samples.txt."""

    sample_prompt: str = ""
    """What they begin with; default: the beginning of a document."""
    sample_tokens: int = 200
    """Their length in tokens; 0 writes none."""
    sample_temperature: float = 0.8
    """Their temperature."""

    def __post_init__(self) -> None:
        for name in ("sample_tokens", "sample_temperature"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Train a language model on text, from nothing or from the weights of another.

    python -m llm.tasks.pretrain --data my.txt --tokenizer char --steps 500
    """

    config: str | None = None
    """Settings to start from: a preset of presets/runs, or a TOML file such as a run.toml."""
    model: str = "qwen-tiny"
    """A preset (trains from nothing), or a run, checkpoint or Hugging Face folder (goes on from its weights)."""
    init: Literal["standard", "copying"] = "standard"
    """Initial weights of a model trained from nothing; copying lets small models learn to repeat names sooner."""
    architecture: ModelConfig = field(default_factory=QwenConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    routers: RouterConfig = field(default_factory=RouterConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    run: RunConfig = field(default_factory=RunConfig)


def parse(argv: Sequence[str] | None = None) -> PretrainConfig:
    """The settings that a command line asks for."""
    return load(PretrainConfig, argv, prog="python -m llm.tasks.pretrain", choose_model=choose_model,
                resume_file=lambda name: find_run("pretrain", name) / "run.toml")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(argv)
    with begin(config) as world:
        with open_run("pretrain", config.run, world) as folder:
            stop_signal = pretrain(config, folder, world)
        if world.is_main:   # before they part: torchrun ends all when the first has gone with a status
            print(folder, flush=True)
    return 128 + stop_signal if stop_signal else 0


def begin(config: PretrainConfig) -> "World":
    """Settle device and precision, and meet the other processes if there are several."""
    from llm.runtime import start  # here, not above: --help must not wait for torch

    return start(device=config.train.device, precision=config.train.precision, threads=config.train.threads,
                 parallel=config.train.parallel)


def choose_model(name: str) -> Mapping[str, Any]:
    """What `--model` fixes: the architecture of a preset or of a folder."""
    if is_folder(name):
        from llm.checkpoint import find_checkpoint, read_config

        return {"architecture": read_config(find_checkpoint(name))}
    return {"architecture": model_preset(name)}


def is_folder(name: str) -> bool:
    """Whether `--model` names weights to go on from. A preset wins over a folder of its name; ./NAME is the folder."""
    return name not in preset_names("models") and (Path(name).is_dir() or Path(name).suffix == ".gguf")


def pretrain(config: PretrainConfig, folder: Path, world: "World") -> int | None:
    """Train in a run folder; returns the signal that ended it early, if one did."""
    from llm.data.datasets import TokenWindows
    from llm.models.profile import format_bytes, profile_model
    from llm.objectives.language import NextToken
    from llm.runtime import peak_memory
    from llm.train.logger import trackers
    from llm.train.trainer import Trainer

    check_experts(config.architecture, config.routers)
    with world.main_first():   # it may download
        model, corpus = model_and_corpus(config, world)
    tokenizer, vocab_size = corpus.tokenizer, model.config.vocab_size
    context = config.data.context or model.config.context_length
    if context >= len(corpus.train):
        raise ValueError(f"--context {context} is longer than the training text, which has {len(corpus.train)} tokens; "
                         f"give more text, or --context {len(corpus.train) - 1} at most")
    hashes = {"data": corpus.fingerprint, "tokenizer": tokenizer.fingerprint if tokenizer else None}
    world.agree("data and tokenizer", hashes)
    if world.is_main:
        record_environment(folder, hashes=hashes)
    rows = -(-config.train.batch_size // (config.train.accumulate * world.size))
    profile = profile_model(model.config, rows=rows, context=context, precision=world.precision,
                            device_type=world.device.type, use_checkpointing=config.train.activation_checkpointing)
    processes = f"{world.size} processes on {world.device.type}, each" if world.size > 1 else str(world.device)
    log.info("%s on %s in %s: %s", config.model, processes, world.precision, profile)
    trainer = Trainer(
        model,
        NextToken(tokenizer.byte_counts if tokenizer else None, balance=config.routers.balance,
                  router_z=config.routers.router_z),
        train=TokenWindows(corpus.train, context=context, vocab_size=vocab_size,
                           document_end=document_end(config.data, tokenizer)),
        val=TokenWindows(corpus.val, context=context, vocab_size=vocab_size, is_shifted=False,
                         document_end=document_end(config.data, tokenizer)),
        config=config.train,
        folder=folder,
        tokenizer=tokenizer,
        world=world,
        loggers=trackers(folder, config, tensorboard=config.run.tensorboard and world.is_main,
                         wandb=config.run.wandb and world.is_main),
        after_eval=sample_writer(config.samples, tokenizer),
    )
    if config.run.resume:
        trainer.resume()
    if world.is_main:
        keep_settings(folder, config)
    memory_before = peak_memory(world.device)
    state = trainer.fit()
    speed = state.tokens / max(state.elapsed_s, 1e-9)
    log.info("%d steps, %s tokens, %.0f s of training: %s tokens/s, %.0f GFLOP/s; memory grew by %s to %s", state.step,
             f"{state.tokens:,}", state.elapsed_s, f"{speed:,.0f}", speed * profile.flops_per_token / 1e9,
             format_bytes(peak_memory(world.device) - memory_before), format_bytes(peak_memory(world.device)))
    return trainer.stop_signal


def model_and_corpus(config: PretrainConfig, world: "World") -> "tuple[Decoder, Corpus]":
    """What to train and on what: each brings something the other needs, the vocabulary or the tokenizer."""
    import torch

    from llm.checkpoint import load as load_model
    from llm.data.corpus import load_corpus
    from llm.models.build import build_model
    from llm.models.init import init_copying

    if not is_folder(config.model):
        data = replace(config.data, tokenizer=config.data.tokenizer or preset_table(config.model).get("tokenizer"))
        corpus = load_corpus(data)
        architecture = replace(config.architecture, vocab_size=corpus.vocab_size,
                               context_length=config.data.context or config.architecture.context_length)
        check_size(architecture, world)
        generator = torch.Generator().manual_seed(config.train.seed)
        model = build_model(architecture, dropout=config.train.dropout, generator=generator)
        if config.init == "copying":
            init_copying(model, generator)
        return model, corpus

    if config.init != "standard":
        raise ValueError(f"--init {config.init} is for a model trained from nothing; --model {config.model} brings its "
                         "weights, leave --init out")
    if choose_model(config.model)["architecture"] != config.architecture:
        raise ValueError(f"--model {config.model} brings its own architecture; leave the architecture's flags out")
    model, tokenizer = load_model(config.model, dropout=config.train.dropout)
    if tokenizer is None and not config.data.tokenizer and Path(config.data.data).suffix != ".bin":
        raise ValueError(f"--model {config.model} has no tokenizer.json; name its --tokenizer")
    corpus = load_corpus(config.data, tokenizer=tokenizer)
    if corpus.vocab_size > model.config.vocab_size:
        raise ValueError(f"the tokenizer has {corpus.vocab_size} ids, but --model {config.model} knows only "
                         f"{model.config.vocab_size}; use the tokenizer that it was trained with")
    if (config.data.context or 0) > model.config.context_length:
        raise ValueError(f"--context {config.data.context} exceeds the model's "
                         f"context_length={model.config.context_length}")
    return model, corpus


def check_size(model: ModelConfig, world: "World") -> None:
    """Refuse a model that no step of training can fit, before torch's allocator does so in its own words."""
    from llm.models.build import empty_model
    from llm.models.profile import format_bytes
    from llm.runtime import total_memory

    there = total_memory(world.device)
    try:
        # a weight, its gradient and AdamW's two moments, each in float32
        needed = 16 * sum(parameter.numel() for parameter in empty_model(model).parameters())
    except RuntimeError:   # more than 64 bits can count
        needed = 2**64
    if there is not None and needed > there:
        raise ValueError(f"dim={model.dim}, num_layers={model.num_layers}: weights, gradients and AdamW take "
                         f"{'more than' if needed == 2**64 else 'about'} {format_bytes(needed)}, but "
                         f"{world.device.type} has {format_bytes(there)} in all; choose smaller numbers")


def check_experts(architecture: ModelConfig, routers: RouterConfig) -> None:
    """Complain about weights of the routers' losses where there are no routers."""
    for name in ("balance", "router_z"):
        if not architecture.expert_count and getattr(routers, name) != getattr(RouterConfig(), name):
            raise ValueError(f"{name}={getattr(routers, name)} has no effect on a model without experts; leave it out, "
                             "or choose --num-experts")


def document_end(config: DataConfig, tokenizer: "Tokenizer | None") -> int | None:
    """The id at which windows of whole documents are cut; None for windows of the stream."""
    if config.windows == "stream":
        return None
    if tokenizer is None or tokenizer.eos_id is None:
        raise ValueError("--windows documents needs a tokenizer with an end-of-text token; char has none")
    return tokenizer.eos_id


def sample_writer(config: SampleConfig, tokenizer: "Tokenizer | None") -> "SampleWriter | None":
    """Writes samples.txt, if it is wanted and there is a tokenizer."""
    from llm.train.samples import SampleWriter

    if tokenizer is None or not config.sample_tokens:
        return None
    try:
        tokenizer.encode(config.sample_prompt)   # complain now rather than at the first validation
    except ValueError as error:
        raise ValueError(f"--sample-prompt {config.sample_prompt!r}: {error}") from error
    return SampleWriter(config.sample_prompt, num_tokens=config.sample_tokens, temperature=config.sample_temperature)


if __name__ == "__main__":
    entry(main, is_for_several=True)
