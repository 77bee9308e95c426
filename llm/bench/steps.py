"""The training steps that are compared: our Trainer's, and a plain loop around the same model in transformers.

Both start from the same weights, see the same rows of random ids, clip, and step AdamW with the same settings; a test
holds them equal, loss by loss. Ours is what `llm.tasks.pretrain` runs, bookkeeping included; theirs is the shortest
loop there is (`llm/train/plain.py`). Read next: `training.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llm.bench.measure import peak_allocation
from llm.interop import hf_config, huggingface
from llm.losses import next_token_loss_sum
from llm.models.build import build_model
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.objectives.language import NextToken
from llm.runtime import DTYPES, Precision, World, peak_memory, start
from llm.train.config import TrainConfig
from llm.train.plain import PlainLoop
from llm.train.trainer import Trainer

Program = Literal["ours", "transformers"]

SEED = 1
SETTINGS = TrainConfig(steps=10**9, schedule="constant", warmup=0)   # the rest as it comes: AdamW, clipping at 1


@dataclass(frozen=True, kw_only=True)
class Job:
    """A program, a model and a batch: plain values, which can be sent to another process."""

    program: Program
    architecture: ModelConfig
    batch_size: int
    context: int
    precision: Precision
    device: str
    threads: int | None = None
    is_compiled: bool = False
    is_checkpointed: bool = False
    is_untouched: bool = False     # transformers as it comes, with the dropout of its configuration
    has_head: bool = True          # else a head of one column: the same step without the vocabulary's part

    @property
    def world(self) -> World:
        """Where the job runs."""
        return start(device=self.device, precision=self.precision, threads=self.threads)


class RandomText:
    """Rows of random ids, equal for equal jobs; without a head every target is the only column there is."""

    sort_by_length = False

    def __init__(self, job: Job):
        shape = (job.batch_size, job.context + 1)
        self.ids = torch.randint(job.architecture.vocab_size, shape, generator=torch.Generator().manual_seed(SEED))
        self.targets = self.ids[:, 1:] if job.has_head else torch.zeros_like(self.ids[:, 1:])

    def lengths(self, seed: int, epoch: int) -> np.ndarray:
        """All rows are as long."""
        return np.full(len(self.ids), self.ids.shape[1] - 1)

    def batch(self, sample_ids: np.ndarray, *, seed: int, epoch: int) -> dict[str, Tensor]:
        """The rows asked for, as `TokenWindows` would give them."""
        return {"input_ids": self.ids[sample_ids, :-1], "targets": self.targets[sample_ids]}


def build_step(job: Job) -> Callable[[], float]:
    """What takes one training step of the job each time it is called, and returns the loss before it.

    Raises:
        ValueError: if the program is not installed.
        RuntimeError: if the model was to be compiled and cannot be.
    """
    return _our_step(job) if job.program == "ours" else _their_step(job)


def step_memory(job: Job) -> int:
    """By how many bytes a training step of the job raises the peak of this process, which should be a fresh one.

    Two steps are taken: from the second on, the optimizer's state is there while the gradients are computed. What a
    tiny step of the same kind needs, such as imported modules, is not counted.
    """
    tiny = build_step(replace(job, architecture=smallest(job.architecture), batch_size=1, context=8))
    tiny()
    before = peak_memory(job.world.device)
    step = build_step(job)
    for _ in range(2):
        step()
    return peak_memory(job.world.device) - before


def head_memory(job: Job) -> int:
    """The peak of what our head and loss allocate, gradients included, on hidden states of the job's shape.

    The difference between a step and one without a head can be less than this: the gradients of an embedding, which
    come at another moment, use the room again.
    """
    world, shape = job.world, (job.architecture.vocab_size, job.architecture.dim)
    hidden = torch.zeros(job.batch_size, job.context, shape[1], device=world.device, dtype=DTYPES[job.precision],
                         requires_grad=True)
    weight = torch.zeros(shape, device=world.device, requires_grad=True)
    targets = torch.zeros(job.batch_size, job.context, dtype=torch.int64, device=world.device)
    return peak_allocation(lambda: torch.autograd.grad(next_token_loss_sum(hidden, weight, targets), (hidden, weight)),
                           world.device)


def smallest(architecture: ModelConfig) -> ModelConfig:
    """A model of the same kind that takes no room."""
    sizes = {"vocab_size": 8, "context_length": 8, "num_layers": 1, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8,
             "dim": 8, "moe_dim" if architecture.expert_count else "mlp_dim": 8}
    known = {field.name for field in fields(architecture)}
    return replace(architecture, **{name: size for name, size in sizes.items() if name in known})   # type: ignore[arg-type]


def transformers() -> ModuleType:
    """The library we compare with.

    Raises:
        ValueError: if it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ValueError("transformers, to compare with, is not installed; it is in the extra `test`: "
                         "pip install 'llm-training[test]'") from error
    transformers.logging.set_verbosity_error()   # it warns of a setting that no one made
    transformers.logging.disable_progress_bar()
    return transformers


def peer_model(ours: Decoder, *, is_untouched: bool = False) -> nn.Module:
    """The same model with the same weights in transformers; GPT2LMHeadModel for GPT, Qwen3ForCausalLM for Qwen.

    Args:
        ours: the model.
        is_untouched: leave dropout as the class has it, instead of switching it off.

    Raises:
        ValueError: if transformers is not installed.
    """
    library = transformers()
    table = hf_config.to_config(ours.config, eos_id=None)
    if is_untouched:
        table = {key: value for key, value in table.items() if not key.endswith(("_pdrop", "_dropout"))}
    theirs = library.AutoModelForCausalLM.from_config(library.AutoConfig.for_model(**table))
    tensors = _stacked(huggingface.to_tensors(ours.state_dict(), ours.config), theirs.state_dict())
    missing, unexpected = theirs.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)   # tied: the embedding's
    return theirs


def _stacked(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the names on disk to those in memory, where transformers 5 stacks experts, and their gate on top of up."""
    for name, place in expected.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            prefix, _, last = name.rpartition(".")
            parts = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
            tensors[name] = torch.stack([torch.cat([tensors.pop(f"{prefix}.{expert}.{part}.weight") for part in parts])
                                         for expert in range(len(place))])
    return tensors


def peer_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The mean loss of a transformers model on a batch of ours, whose targets are shifted already."""
    targets = batch["targets"].contiguous()   # its loss function takes no views
    return model(input_ids=batch["input_ids"], labels=targets, shift_labels=targets, use_cache=False).loss


def _our_step(job: Job) -> Callable[[], float]:
    model = build_model(job.architecture, generator=torch.Generator().manual_seed(SEED))
    if not job.has_head:
        model.head = nn.Linear(job.architecture.dim, 1, bias=False)
    config = replace(SETTINGS, batch_size=job.batch_size, activation_checkpointing=job.is_checkpointed)
    objective = NextToken(balance=0.0)   # theirs does not balance experts unless asked
    trainer = Trainer(model, objective, train=RandomText(job), config=config, world=job.world)
    model.train()
    if job.is_compiled:
        trainer.compile()
        if model.blocks[0]._compiled_call_impl is None:
            raise RuntimeError("torch.compile does not work here; leave --compile true out")
    return lambda: trainer.train_step()["loss"]


def _their_step(job: Job) -> Callable[[], float]:
    ours = build_model(job.architecture, generator=torch.Generator().manual_seed(SEED))
    theirs: Any = peer_model(ours, is_untouched=job.is_untouched)
    del ours
    if not job.has_head:
        theirs.lm_head = nn.Linear(job.architecture.dim, 1, bias=False)
        theirs.config.vocab_size = 1   # what its loss function goes by
    if job.is_checkpointed:
        # its name in transformers 4
        enable = getattr(theirs, "activation_checkpointing_enable", None) or theirs.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if job.is_compiled:
        theirs.compile()
    loop = PlainLoop(theirs, peer_loss, config=SETTINGS, world=job.world)
    batch = job.world.to_device(RandomText(job).batch(np.arange(job.batch_size), seed=0, epoch=0))
    return lambda: loop.train_step(batch)
