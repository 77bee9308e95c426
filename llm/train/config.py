"""The settings of a training run. Torch-free; the trainer itself is in `trainer.py`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train: length, batch, optimizer, precision, and how often to look and to save.

    Example:
        >>> TrainConfig(steps=10, epochs=2)
        Traceback (most recent call last):
        ValueError: steps=10 and epochs=2: give one of them, and None for the other (--epochs None) if a preset sets it
    """

    steps: int | None = None
    """Optimizer steps in all; default: one epoch."""
    epochs: int | None = None
    """Passes over the data, instead of --steps."""
    batch_size: int = 16
    """Samples in one optimizer step, over all processes."""
    accumulate: int = 1
    """Micro-batches that a step is cut into, to save memory; the result is the same."""
    lr: float = 1e-3
    """Peak learning rate."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for all parameters, or muon for the matrices of the blocks and adamw for the rest."""
    muon_lr: float = 0.02
    """Peak learning rate of muon's matrices; --lr stays that of the rest."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """What the learning rate does after the warmup; wsd is warmup, stable, decay."""
    warmup: int | None = None
    """Steps of linear warmup; default: a twentieth of the run, at most 100."""
    min_lr_ratio: float = 0.1
    """Where cosine, linear and wsd end, as a share of the peak."""
    decay_fraction: float = 0.2
    """Share of the run in which wsd decays."""
    beta1: float = 0.9
    """AdamW's memory of the gradient."""
    beta2: float = 0.95
    """AdamW's memory of its square."""
    weight_decay: float = 0.1
    """Decay of matrices and embeddings; vectors are left alone."""
    clip: float = 1.0
    """Longest gradient norm; 0 never clips."""
    dropout: float = 0.0
    """Share of activations dropped while training."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of matrix products; auto is bf16 where the hardware has it."""
    compile: bool = False
    """torch.compile every block; falls back with a warning where it cannot."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward: less memory, about a third more time."""
    eval_every: int = 50
    """Steps between validations; 0 validates at the end only."""
    eval_tokens: int | None = None
    """Validate on at most this many tokens; default all."""
    save_every: int = 0
    """Steps between checkpoints; 0: at a new best, at the end, and when interrupted."""
    save_every_epochs: int = 0
    """Epochs between checkpoints, besides."""
    save_best: bool = True
    """Save whenever the validation loss is the lowest so far."""
    keep: int = 3
    """Newest checkpoints to keep, besides the best; 0 keeps all."""
    patience: int = 0
    """Stop after this many validations in a row without a new best; 0 never does."""
    max_skipped: int = 10
    """Stop after this many steps in a row without a usable gradient."""
    seed: int = 1
    """Of weights, data order and dropout."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads of each process; default torch's choice."""
    parallel: Literal["auto", "none", "ddp"] = "auto"
    """How the processes that torchrun starts work together: ddp gives each the whole model, none refuses several;
    auto is what fits their number."""

    def __post_init__(self) -> None:
        found = []
        if self.steps is not None and self.epochs is not None:
            found.append(f"steps={self.steps} and epochs={self.epochs}: give one of them, and None for the other "
                         "(--epochs None) if a preset sets it")
        for name in ("steps", "epochs", "batch_size", "accumulate", "max_skipped"):
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name}={value} must be at least 1")
        for name in ("warmup", "eval_every", "save_every", "save_every_epochs", "keep", "patience", "seed",
                     "weight_decay", "clip"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                found.append(f"{name}={value} must be at least 0")
        for name in ("lr", "muon_lr"):
            if not getattr(self, name) > 0:
                found.append(f"{name}={getattr(self, name)} must be above 0")
        for name in ("lr", "muon_lr", "weight_decay"):
            if getattr(self, name) == float("inf"):
                found.append(f"{name}=inf must be finite; the first step would make every weight infinite")
        if self.accumulate > self.batch_size:
            found.append(f"accumulate={self.accumulate} exceeds batch_size={self.batch_size}; a step cannot be cut "
                         "finer than its samples")
        for name in ("beta1", "beta2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name}={getattr(self, name)} must lie in [0, 1)")
        for name in ("min_lr_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if self.muon_lr != 0.02 and self.optimizer != "muon":
            found.append(f"muon_lr={self.muon_lr} has no effect with optimizer={self.optimizer}; leave it out")
        if self.decay_fraction != 0.2 and self.schedule != "wsd":
            found.append(f"decay_fraction={self.decay_fraction} is for schedule=wsd, not {self.schedule}; leave it out")
        if self.patience and not self.save_best:
            found.append(f"patience={self.patience} with save_best=False would keep weights that have become worse; "
                         "add --save-best")
        if self.seed >= 2**63:
            found.append(f"seed={self.seed} must be below 2^63")
        if self.eval_tokens is not None and self.eval_tokens < 1:
            found.append(f"eval_tokens={self.eval_tokens} must be at least 1")
        if found:
            raise ValueError("; ".join(found))


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Adapters beside frozen weights, where a run trains some; see `llm/nn/lora.py`."""

    lora_rank: int = 8
    """Of adapters: how much each can change, in dimensions."""
    lora_alpha: float = 16.0
    """Of adapters: their strength; what one adds is multiplied by alpha / rank."""
    lora_dropout: float = 0.0
    """Of adapters: share of their inputs that is dropped while training."""
    lora_targets: tuple[str, ...] = ()
    """Layers that get adapters, such as q_proj v_proj; default: all linear layers of attention and feed-forward."""
    lora_last_blocks: int = 0
    """Only so many blocks at the end get adapters; 0: all."""

    def __post_init__(self) -> None:
        found = []
        if self.lora_rank < 1:
            found.append(f"lora_rank={self.lora_rank} must be at least 1")
        if not 0 < self.lora_alpha < float("inf"):
            found.append(f"lora_alpha={self.lora_alpha} must be above 0 and finite")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"lora_dropout={self.lora_dropout} must lie in [0, 1)")
        if self.lora_last_blocks < 0:
            found.append(f"lora_last_blocks={self.lora_last_blocks} must be at least 0")
        if found:
            raise ValueError("; ".join(found))


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """The losses of a mixture of experts' routers, beside that of the language."""

    balance: float = 0.01
    """Weight of the loss that keeps experts equally busy."""
    router_z: float = 0.0
    """Weight of the loss that keeps the routers' scores small; 0.001 is usual."""

    def __post_init__(self) -> None:
        for name in ("balance", "router_z"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
