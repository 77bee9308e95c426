"""What a model is, in numbers: the architecture of the two families and the published sizes.

Only architecture stands here, nothing of training (dropout is a training setting), and only what some class of
transformers can express: that is what makes every checkpoint open elsewhere. Torch-free.

Read next: `decoder.py`.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from llm.config import Derived, find_preset, merge, read_toml
from llm.models.scaling import RopeScaling

MOST = 2**32 - 1   # of any size; what is larger is a damaged file

@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What both families have in common."""

    family: ClassVar[str] = ""

    vocab_size: Derived[int] = 0   # V, from the tokenizer; 0 until one is known
    context_length: Derived[int] = 256   # the longest text in tokens; a new model takes it from --context
    num_layers: int = 4
    """Blocks, one attention and one feed-forward layer each."""
    num_heads: int = 4
    """Query heads, H."""
    dim: int = 256
    """Width of the residual stream, C."""
    mlp_dim: int | None = None
    """Width inside the feed-forward layer; default 4 x dim (GPT) or 3 x dim (Qwen)."""
    tie_embeddings: bool = True
    """Use the input embedding as the output head too."""

    def __post_init__(self) -> None:
        complaints = self.complaints()
        if complaints:
            raise ValueError("; ".join(complaints))

    def complaints(self) -> list[str]:
        """Everything wrong with these numbers, each with value, rule and remedy."""
        sizes = {"num_layers": self.num_layers, "num_heads": self.num_heads, "dim": self.dim,
                 "context_length": self.context_length, "mlp_dim": self.mlp_width}
        found = [f"{name}={value} must be at least 1" for name, value in sizes.items() if value < 1]
        found += [f"{name}={value} must be at most {MOST:,}" for name, value in sizes.items() if value > MOST]
        if self.vocab_size < 0:
            found.append(f"vocab_size={self.vocab_size} must be at least 1")
        return found

    @property
    def mlp_width(self) -> int:
        """`mlp_dim`, or the family's usual width."""
        raise AssertionError("a family defines it")

    @property
    def head_width(self) -> int:
        """D, the width of one attention head."""
        return self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        """G, the number of key/value heads."""
        return self.num_heads

    @property
    def window(self) -> int | None:
        """How many tokens a token sees, itself included; None: all before it."""
        return None

    @property
    def stretches_from(self) -> int | None:
        """The length from which on a token's key depends on how long its text is; None: it never does."""
        return None

    @property
    def expert_count(self) -> int:
        """E, the number of experts in each block; 0 for a dense model."""
        return 0


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelConfig):
    """GPT-2: learned positions, LayerNorm, biases everywhere, GELU.

    Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".

    Example:
        >>> GPTConfig(vocab_size=65, num_layers=2, num_heads=4, dim=64).head_width
        16
    """

    family: ClassVar[str] = "gpt"

    norm_eps: float = 1e-5
    """Added to the variance in LayerNorm."""

    def complaints(self) -> list[str]:
        found = super().complaints()
        if self.num_heads > 0 and 0 < self.dim <= MOST and self.dim % self.num_heads:
            found.append(f"num_heads={self.num_heads} does not divide dim={self.dim}; {_near_divisors(self)}")
        if not 0 <= self.norm_eps < 1:
            found.append(f"norm_eps={self.norm_eps} must lie in [0, 1); 1e-5 is usual")
        return found

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim if self.mlp_dim is not None else 4 * self.dim


@dataclass(frozen=True, kw_only=True)
class QwenConfig(ModelConfig):
    """Qwen and its kin: RoPE, RMSNorm, grouped-query attention, SwiGLU.

    Norms on queries and keys make it Qwen3; without them and with biases it is Qwen2; with neither, Llama, and with a
    sliding window besides, Mistral. With experts it is Qwen3-MoE, or without norms, Qwen2-MoE.

    Paper: Qwen team 2025, arXiv:2505.09388, section 2.

    Example:
        >>> QwenConfig(vocab_size=65, num_heads=8, num_kv_heads=2, dim=64).kv_heads
        2
    """

    family: ClassVar[str] = "qwen"

    num_kv_heads: int | None = 2
    """Key/value heads, G, a divisor of the query heads."""
    head_dim: int | None = None
    """Width of one head, D, even; default dim / num_heads."""
    use_qk_norm: bool = True
    """RMSNorm on each query and key head (Qwen3)."""
    use_qkv_bias: bool = False
    """Biases on the q, k and v projections (Qwen2); not together with use_qk_norm."""
    rope_theta: float = 10_000.0
    """Base of the RoPE wavelengths."""
    rope_scaling: Derived[RopeScaling] = field(default_factory=RopeScaling)   # for longer texts than were trained on
    sliding_window: int | None = None
    """A token sees itself and the sliding_window - 1 tokens before it (Mistral); default: all before it."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    num_experts: int | None = None
    """Experts in each block, E; default: one feed-forward layer for all tokens."""
    experts_per_token: int = 2
    """How many of them each token visits, K."""
    moe_dim: int | None = None
    """Width inside one expert; default 3 x dim / experts_per_token, which costs what the dense layer costs."""
    shared_expert_dim: int | None = None
    """Width of an expert that every token visits besides (Qwen2-MoE)."""
    norm_topk_prob: bool = True
    """Let the weights of a token's experts add up to 1."""

    def complaints(self) -> list[str]:
        found = super().complaints()
        if found:   # what follows is about how the sizes fit each other
            return found
        if self.head_dim is None and self.dim % self.num_heads:
            found.append(f"num_heads={self.num_heads} does not divide dim={self.dim}; {_near_divisors(self)} "
                         "or set head_dim")
        elif self.head_width < 1 or self.head_width % 2:
            found.append(f"head_dim={self.head_width} must be at least 2 and even, since RoPE turns pairs; leave it "
                         "out for dim / num_heads")
        is_llama = not (self.use_qk_norm or self.use_qkv_bias or self.sliding_window or self.num_experts)
        if is_llama and self.head_dim is not None and self.dim % self.num_heads:
            found.append(f"num_heads={self.num_heads} does not divide dim={self.dim}, which transformers' Llama wants "
                         f"even with a head_dim; {_near_divisors(self)}")
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            found.append(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; choose one "
                         "that does, 1 or more")
        if self.use_qk_norm and self.use_qkv_bias:
            found.append("use_qk_norm and use_qkv_bias together are no published model; choose one")
        if not 0 < self.rope_theta < float("inf"):
            found.append(f"rope_theta={self.rope_theta} must be positive; 10000 is usual")
        if not 0 <= self.norm_eps < 1:
            found.append(f"norm_eps={self.norm_eps} must lie in [0, 1); 1e-6 is usual")
        found += self.rope_scaling.complaints(context_length=self.context_length, head_dim=self.head_width)
        if self.sliding_window is not None and self.sliding_window < 1:
            found.append(f"sliding_window={self.sliding_window} must be at least 1; leave it out to see everything")
        return found + self._expert_complaints()

    def _expert_complaints(self) -> list[str]:
        plain = {"experts_per_token": 2, "moe_dim": None, "shared_expert_dim": None, "norm_topk_prob": True}
        if self.num_experts is None:
            return [f"{name}={getattr(self, name)} has no effect without num_experts; leave it out"
                    for name, default in plain.items() if getattr(self, name) != default]
        found = []
        if not 1 <= self.experts_per_token <= self.num_experts:
            found.append(f"experts_per_token={self.experts_per_token} must lie between 1 and "
                         f"num_experts={self.num_experts}")
        elif self.expert_width < 1:
            found.append(f"moe_dim={self.moe_dim} must be at least 1")
        if self.mlp_dim is not None:
            found.append(f"mlp_dim={self.mlp_dim} has no effect with num_experts={self.num_experts}; set moe_dim")
        if self.use_qk_norm and self.shared_expert_dim is not None:
            found.append(f"shared_expert_dim={self.shared_expert_dim} with use_qk_norm is no published model: "
                         "Qwen3-MoE has no shared expert, Qwen2-MoE no norms")
        if not self.use_qk_norm and (self.shared_expert_dim or 0) < 1:
            found.append(f"shared_expert_dim={self.shared_expert_dim} must be at least 1: without use_qk_norm, experts "
                         "are those of Qwen2-MoE")
        if not self.use_qk_norm and self.sliding_window is not None:
            found.append(f"sliding_window={self.sliding_window}: Qwen2-MoE cannot have it in all layers; leave it out")
        return found

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim if self.mlp_dim is not None else 3 * self.dim

    @property
    def head_width(self) -> int:
        return self.head_dim if self.head_dim is not None else self.dim // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads if self.num_kv_heads is not None else self.num_heads

    @property
    def window(self) -> int | None:
        return self.sliding_window

    @property
    def stretches_from(self) -> int | None:
        return self.rope_scaling.trained_context if self.rope_scaling.kind == "dynamic" else None

    @property
    def expert_count(self) -> int:
        return self.num_experts or 0

    @property
    def expert_width(self) -> int:
        """Width inside one expert."""
        return self.moe_dim if self.moe_dim is not None else 3 * self.dim // self.experts_per_token


FAMILIES: dict[str, type[ModelConfig]] = {config.family: config for config in (GPTConfig, QwenConfig)}


def model_preset(name: str) -> ModelConfig:
    """The architecture of `presets/models/NAME.toml`, or of such a file given by path.

    Raises:
        ValueError: for an unknown name, with the nearest ones.

    Example:
        >>> model_preset("gpt2-124m").num_layers
        12
    """
    table = preset_table(name)
    family = table.pop("family", "qwen")
    if family not in FAMILIES:
        raise ValueError(f"{name}: family = {family!r}; choose from {', '.join(FAMILIES)}")
    table.pop("tokenizer", None)
    return merge(FAMILIES[family](), table, where=name)


def preset_table(name: str) -> dict[str, Any]:
    """The raw table of a model preset; besides the architecture it may name a `tokenizer`."""
    return read_toml(find_preset("models", name))


def _near_divisors(config: ModelConfig) -> str:
    small = [number for number in range(1, math.isqrt(config.dim) + 1) if config.dim % number == 0]
    divisors = small + [config.dim // number for number in reversed(small)]
    below = [number for number in divisors if number < config.num_heads]
    above = [number for number in divisors if number > config.num_heads]
    return "choose " + " or ".join(str(number) for number in below[-1:] + above[:1])
