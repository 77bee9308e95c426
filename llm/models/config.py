"""What a model is, in numbers: the architecture of the two families and the published sizes.

Only architecture stands here, nothing of training (dropout is a training setting), and only what some class of
transformers can express: that is what makes every checkpoint open elsewhere. Torch-free.

Read next: `decoder.py`.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from llm.config import Derived, find_preset, merge, read_toml
from llm.models.scaling import RopeScaling


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
        if self.num_heads > 0 and self.dim % self.num_heads:
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
    sliding window besides, Mistral.

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

    def complaints(self) -> list[str]:
        found = super().complaints()
        if self.num_heads > 0 and self.head_dim is None and self.dim % self.num_heads:
            found.append(f"num_heads={self.num_heads} does not divide dim={self.dim}; {_near_divisors(self)} "
                         "or set head_dim")
        elif self.num_heads > 0 and self.head_width % 2:
            found.append(f"head_dim={self.head_width} is odd; RoPE turns pairs, choose an even width")
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            found.append(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; choose one "
                         "that does, 1 or more")
        if self.head_dim is not None and self.head_dim < 1:
            found.append(f"head_dim={self.head_dim} must be at least 1; leave it out for dim / num_heads")
        if self.use_qk_norm and self.use_qkv_bias:
            found.append("use_qk_norm and use_qkv_bias together are no published model; choose one")
        if not 0 < self.rope_theta < float("inf"):
            found.append(f"rope_theta={self.rope_theta} must be positive; 10000 is usual")
        if not 0 <= self.norm_eps < 1:
            found.append(f"norm_eps={self.norm_eps} must lie in [0, 1); 1e-6 is usual")
        if self.num_heads > 0:
            found += self.rope_scaling.complaints(context_length=self.context_length, head_dim=self.head_width)
        if self.sliding_window is not None and self.sliding_window < 1:
            found.append(f"sliding_window={self.sliding_window} must be at least 1; leave it out to see everything")
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
    divisors = [number for number in range(1, config.dim + 1) if config.dim % number == 0]
    below = [number for number in divisors if number < config.num_heads]
    above = [number for number in divisors if number > config.num_heads]
    return "choose " + " or ".join(str(number) for number in below[-1:] + above[:1])
