"""What a model costs before it is trained: parameters, arithmetic per token, memory of a step.

Parameters and arithmetic follow from the configuration; the memory of activations is found by running one
micro-batch on tensors without data and adding up what autograd would keep for the backward.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llm.losses import CACHE_BYTES, CHUNK_BYTES, chunk_size
from llm.models.build import build_model, empty_model
from llm.models.config import ModelConfig, QwenConfig
from llm.nn import MoE
from llm.runtime import DTYPES, Precision


@dataclass(frozen=True)
class Profile:
    """The costs of one model and micro-batch; sizes in bytes."""

    num_parameters: int
    num_embedding_parameters: int     # of token and position embeddings and an untied head
    num_active_parameters: int        # that one token meets: of the experts only those that it visits
    flops_per_token: float            # forward and backward
    weight_bytes: int                 # float32
    gradient_bytes: int               # float32
    optimizer_bytes: int              # AdamW's two moments, float32
    activation_bytes: int             # kept for the backward, low-precision copies of weights included
    head_bytes: int                   # the logits that exist at a time, while the loss is computed

    @property
    def training_bytes(self) -> int:
        """The most that a training step holds at once."""
        steady = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes
        return steady + self.activation_bytes + self.head_bytes

    def __str__(self) -> str:
        parts = {"weights": self.weight_bytes, "gradients": self.gradient_bytes, "AdamW": self.optimizer_bytes,
                 "activations": self.activation_bytes, "logits": self.head_bytes}
        memory = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
        active = (f", {self.num_active_parameters:,} active in one token"
                  if self.num_active_parameters < self.num_parameters else "")
        return (f"{self.num_parameters:,} parameters ({self.num_embedding_parameters:,} of them embeddings{active}), "
                f"{self.flops_per_token / 1e6:,.1f} MFLOP per token, "
                f"about {format_bytes(self.training_bytes)} to train ({memory})")


def profile_model(
    config: ModelConfig,
    *,
    rows: int,
    context: int,
    precision: Precision = "fp32",
    device_type: str = "cpu",
    use_checkpointing: bool = False,
) -> Profile:
    """Estimate the costs of training a model.

    Args:
        config: the architecture, with its vocabulary size.
        rows: texts in a micro-batch.
        context: tokens in a text.
        precision: of matrix products.
        device_type: where it will run; which attention kernel runs depends on it.
        use_checkpointing: recompute each block in the backward.

    Example:
        >>> from llm.models.config import GPTConfig
        >>> config = GPTConfig(vocab_size=50257, context_length=1024, num_layers=12, num_heads=12, dim=768)
        >>> profile_model(config, rows=1, context=1024).num_parameters   # GPT-2 "124M"
        124439808
    """
    parameters = dict(empty_model(config).named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    embedding = sum(parameter.numel() for name, parameter in parameters.items() if name.startswith(("embed", "head")))
    is_wide = precision == "fp32"
    item_bytes = DTYPES[precision].itemsize
    chunk = chunk_size(config.vocab_size, most=rows * context, item_bytes=item_bytes) * config.vocab_size
    at_once = CACHE_BYTES if device_type == "cpu" else CHUNK_BYTES   # in float32, where a chunk is not
    saved = _saved_bytes(config, rows, context, precision, device_type, use_checkpointing)
    return Profile(
        num_parameters=total,
        num_embedding_parameters=embedding,
        num_active_parameters=sum(active_size(config, parameter) for parameter in parameters.values()),
        flops_per_token=flops_per_token(config, context),
        weight_bytes=4 * total,
        gradient_bytes=4 * total,
        optimizer_bytes=8 * total,
        activation_bytes=saved,
        head_bytes=item_bytes * chunk + (0 if is_wide else min(4 * chunk, at_once)),
    )


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Floating-point operations of one forward and backward, per token.

    Two operations per weight of every matrix in the forward and twice as many in the backward, and the products of
    attention with its T keys, counted as if they were not causal, as is usual.

    Paper: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.

    Example:
        >>> from llm.models.config import GPTConfig
        >>> config = GPTConfig(vocab_size=50257, num_layers=12, num_heads=12, dim=768)
        >>> round(flops_per_token(config, 1024) / 1e6)
        854
    """
    matrices = sum(active_size(config, parameter) for name, parameter in empty_model(config).named_parameters()
                   if parameter.dim() >= 2 and not name.startswith(("embed", "head")))
    head = config.vocab_size * config.dim
    attention = 2 * config.num_layers * config.num_heads * config.head_width * context
    return 6.0 * (matrices + head + attention)


def active_size(config: ModelConfig, parameter: Tensor) -> int:
    """How many numbers of a parameter one token meets: of stacked experts only those of the experts it visits."""
    if isinstance(config, QwenConfig) and parameter.dim() == 3:
        return parameter.numel() // config.expert_count * config.experts_per_token
    return parameter.numel()


def format_bytes(size: float) -> str:
    """A size for people: 1,234,567 as "1.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _equal_shares(num_experts: int, experts: Tensor) -> list[int]:
    """How many tokens each expert gets, where there are no data to say otherwise."""
    return [(experts.numel() + expert) // num_experts for expert in range(num_experts)]


def _saved_bytes(config: ModelConfig, rows: int, context: int, precision: Precision, device_type: str,
                 use_checkpointing: bool) -> int:
    """What autograd keeps between the forward and the backward of one micro-batch, parameters left out."""
    kept: dict[int, int] = {}   # storage to bytes: views of one storage count once
    holders: list[Tensor] = []  # keeps the storages alive, so that their addresses stay distinct

    def pack(tensor: Tensor) -> Tensor:
        holders.append(tensor)
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(), torch.device(device_type):
        model = build_model(config)
        model.use_checkpointing = use_checkpointing
        for part in model.modules():
            if isinstance(part, MoE):
                part.group_sizes = partial(_equal_shares, part.router.out_features)   # type: ignore[method-assign]
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        autocast = torch.autocast(device_type, dtype=DTYPES[precision], enabled=precision != "fp32")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            model(torch.zeros(rows, context, dtype=torch.int64))
    return sum(size for storage, size in kept.items() if storage not in weights)
