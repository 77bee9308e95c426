"""What the names and numbers in a GGUF file mean: its architectures as our configurations, its tensors as ours.

One table per architecture is used both ways. Three things are not what the names suggest:

- llama.cpp turns neighbouring coordinates in RoPE where Hugging Face and we turn halves, so for the architecture
  `llama` (and only for it) its converters reorder the rows of the query and key projections; `unpaired` puts them back;
- a head that is left out is tied to the embedding; a copy of it counts as tied too;
- numbers are kept in 32 bits: 1e-5 comes back as 9.99999974738e-06 and is taken for the decimal it was.

Anything in the file that our modules would not compute is refused rather than passed over. Read next: `rope.py`.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from llm.interop.gguf import rope
from llm.interop.gguf.container import GGUFFile, shown
from llm.models.config import GPTConfig, ModelConfig, QwenConfig

log = logging.getLogger(__name__)

TRUNK = {
    "token_embd": "embed", "position_embd": "embed_positions", "output_norm": "final_norm", "output": "head",
}
GPT2_BLOCK = {
    "attn_norm": "attention_norm", "attn_qkv": "attention.{qkv}_proj", "attn_output": "attention.out_proj",
    "ffn_norm": "mlp_norm", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
LLAMA_BLOCK = {
    "attn_norm": "attention_norm",
    "attn_q": "attention.q_proj", "attn_k": "attention.k_proj", "attn_v": "attention.v_proj",
    "attn_q_norm": "attention.q_norm", "attn_k_norm": "attention.k_norm", "attn_output": "attention.out_proj",
    "ffn_norm": "mlp_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
BLOCKS = {"gpt2": GPT2_BLOCK, "llama": LLAMA_BLOCK, "qwen2": LLAMA_BLOCK, "qwen3": LLAMA_BLOCK,
          "qwen3moe": LLAMA_BLOCK | {"ffn_gate_inp": "mlp.router"}}
EXPERTS = {f"ffn_{part}_exps": f"mlp.experts.{part}_proj" for part in ("gate", "up", "down")}   # stacked in both

# `{architecture}.KEY` for every KEY that is understood; another may change what the model computes.
GPT2_KEYS = {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
             "attention.head_count_kv", "attention.layer_norm_epsilon", "vocab_size"}
LLAMA_KEYS = {"context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
              "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length",
              "attention.value_length", "attention.sliding_window", "rope.dimension_count", "rope.freq_base",
              "vocab_size", "tensor_data_layout", *rope.KEYS}
EXPERT_KEYS = {"expert_count", "expert_used_count", "expert_feed_forward_length"}


class Row(NamedTuple):
    """One tensor of the file: ours, stacked along the outputs; and for how many heads its rows are paired, if so."""

    theirs: str
    ours: tuple[str, ...]
    paired_heads: int = 0


def architecture_of(config: ModelConfig) -> str:
    """The name under which GGUF knows a model."""
    if isinstance(config, GPTConfig):
        return "gpt2"
    assert isinstance(config, QwenConfig)
    if config.expert_count and config.use_qk_norm and config.norm_topk_prob:
        return "qwen3moe"
    if config.expert_count:
        raise ValueError(f"num_experts={config.num_experts}: of models with experts only those of Qwen3-MoE with "
                         "norm_topk_prob are written as GGUF; save a Hugging Face folder instead")
    return "qwen3" if config.use_qk_norm else "qwen2" if config.use_qkv_bias else "llama"


def rows_of(config: ModelConfig) -> list[Row]:
    """The table of a model with its layers numbered; it may hold rows for parts that this model lacks."""
    architecture = architecture_of(config)
    named = dict(TRUNK)
    for layer in range(config.num_layers):
        named |= {f"blk.{layer}.{theirs}": f"blocks.{layer}.{ours}" for theirs, ours in BLOCKS[architecture].items()}
    experts = [Row(f"blk.{layer}.{theirs}.weight", (f"blocks.{layer}.{ours}",))
               for layer in range(config.num_layers if config.expert_count else 0) for theirs, ours in EXPERTS.items()]
    paired = {"attn_q": config.num_heads, "attn_k": config.kv_heads} if architecture == "llama" else {}
    return [
        Row(f"{theirs}.{kind}", tuple(f"{ours.replace('{qkv}', letter)}.{kind}"
                                      for letter in ("qkv" if "{qkv}" in ours else "-")),
            paired.get(theirs.rpartition(".")[2], 0))
        for theirs, ours in named.items() for kind in ("weight", "bias")
    ] + experts


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """(H D, ...) rows of a projection, reordered so that coordinate i and i + D/2 of a head become neighbours."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def unpaired(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of `paired`.

    Example:
        >>> unpaired(paired(np.arange(8), 2), 2)
        array([0, 1, 2, 3, 4, 5, 6, 7])
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def read_config(file: GGUFFile) -> ModelConfig:
    """The configuration of the model in a file, its sizes held against the tensors.

    Raises:
        ValueError: for an architecture or a setting that our modules do not compute, and for sizes that are not those
            of the tensors.
    """
    architecture = file.value("general.architecture", str)
    if architecture not in BLOCKS:
        raise file.error(f"its architecture {shown(architecture)} is not supported; choose a model of "
                         f"{', '.join(BLOCKS)}")
    if (kind := file.value("general.type", str, "model")) != "model":
        raise file.error(f"it holds a {shown(kind)}, not a model; give the model's own file")
    known = GPT2_KEYS if architecture == "gpt2" else LLAMA_KEYS
    numbers = _Numbers(file, architecture, known | EXPERT_KEYS if architecture == "qwen3moe" else known)
    try:
        config = _read_gpt2(numbers) if architecture == "gpt2" else _read_llama(numbers)
    except ValueError as error:   # complaints of the configuration itself do not know the file
        raise error if str(error).startswith(str(file.path)) else file.error(str(error)) from error
    _check_sizes(file, config)
    return config


class _Numbers:
    """The values `{architecture}.KEY` of a file."""

    def __init__(self, file: GGUFFile, architecture: str, known: set[str]):
        self.file, self.architecture = file, architecture
        for key in file.metadata:
            start, _, rest = key.partition(".")
            if start == architecture and rest not in known:
                raise file.error(f"{shown(key)} = {shown(file.metadata[key])} is not supported, and may change what "
                                 "the model computes; choose a model without it")

    def whole(self, key: str, default: int | None = None) -> int:
        found: int = self.file.value(f"{self.architecture}.{key}", int, default)
        if found < 1:
            raise self.file.error(f"'{self.architecture}.{key}' = {found} must be at least 1; it is damaged")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        found: float = self.file.value(f"{self.architecture}.{key}", float, default)
        if not found > 0:
            raise self.file.error(f"'{self.architecture}.{key}' = {found} must be positive; it is damaged")
        return float(str(np.float32(found)))   # the shortest decimal of these 32 bits

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.file.metadata

    def only(self, key: str, *allowed: Any) -> None:
        found = self.file.metadata.get(f"{self.architecture}.{key}", allowed[0])
        if type(found) is not type(allowed[0]) or found not in allowed:
            raise self.file.error(f"'{self.architecture}.{key}' = {shown(found)} is not supported; "
                                  f"only {' or '.join(map(repr, allowed))} is")

    @property
    def vocab_size(self) -> int:
        rows = _shape(self.file, "token_embd.weight")[0]
        self.only("vocab_size", rows)
        return rows

    @property
    def is_tied(self) -> bool:
        if "output.weight" not in self.file.tensors:
            return True
        embedding, head = (self.file.tensors[name] for name in ("token_embd.weight", "output.weight"))
        return (embedding.shape, embedding.kind) == (head.shape, head.kind) and np.array_equal(
            self.file.raw("token_embd.weight"), self.file.raw("output.weight"))


def _read_gpt2(numbers: _Numbers) -> GPTConfig:
    heads = numbers.whole("attention.head_count")
    numbers.only("attention.head_count_kv", heads)
    return GPTConfig(
        vocab_size=numbers.vocab_size, context_length=numbers.whole("context_length"),
        num_layers=numbers.whole("block_count"), num_heads=heads, dim=numbers.whole("embedding_length"),
        mlp_dim=numbers.whole("feed_forward_length"), norm_eps=numbers.real("attention.layer_norm_epsilon"),
        tie_embeddings=numbers.is_tied,
    )


def _read_llama(numbers: _Numbers) -> QwenConfig:
    dim, heads = numbers.whole("embedding_length"), numbers.whole("attention.head_count")
    head_dim = numbers.whole("attention.key_length", max(1, dim // heads))
    numbers.only("attention.value_length", head_dim)
    numbers.only("rope.dimension_count", head_dim)
    theta = numbers.real("rope.freq_base", 10_000.0)
    window = numbers.whole("attention.sliding_window") if numbers.has("attention.sliding_window") else None
    widths: dict[str, Any]
    if numbers.architecture == "qwen3moe":
        widths = {"num_experts": numbers.whole("expert_count"), "experts_per_token": numbers.whole("expert_used_count"),
                  "moe_dim": numbers.whole("expert_feed_forward_length")}
    else:
        widths = {"mlp_dim": numbers.whole("feed_forward_length")}
    return QwenConfig(
        vocab_size=numbers.vocab_size,
        num_layers=numbers.whole("block_count"), num_heads=heads, dim=dim,
        num_kv_heads=numbers.whole("attention.head_count_kv", heads), head_dim=head_dim,
        use_qk_norm=numbers.architecture in ("qwen3", "qwen3moe"), use_qkv_bias=numbers.architecture == "qwen2",
        rope_theta=theta, norm_eps=numbers.real("attention.layer_norm_rms_epsilon"), tie_embeddings=numbers.is_tied,
        sliding_window=window, **widths, **rope.read_scaling(
            numbers.file, numbers.architecture, head_dim=head_dim, theta=theta,
            context=numbers.whole("context_length")),
    )


def _shape(file: GGUFFile, name: str) -> tuple[int, ...]:
    if name not in file.tensors:
        raise file.error(f"it has no tensor {name!r}; it is damaged, or one part of several: give a whole file")
    return file.tensors[name].shape


def _check_sizes(file: GGUFFile, config: ModelConfig) -> None:
    """Hold every size against a tensor, before a model of such a size is made."""
    inner, kv = config.num_heads * config.head_width, config.kv_heads * config.head_width
    expected: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, config.dim),
                                            "blk.0.attn_output.weight": (config.dim, inner)}
    if isinstance(config, QwenConfig) and config.expert_count:
        expected |= {"blk.0.ffn_up_exps.weight": (config.expert_count, config.expert_width, config.dim)}
    else:
        expected |= {"blk.0.ffn_up.weight": (config.mlp_width, config.dim)}
    if config.family == "gpt":
        expected |= {"position_embd.weight": (config.context_length, config.dim)}
    else:
        expected |= {"blk.0.attn_k.weight": (kv, config.dim)}
    for name, shape in expected.items():
        if (found := _shape(file, name)) != shape:
            raise file.error(f"the tensor {name!r} has shape {found}, and by its settings it must be {shape}; "
                             "it is damaged")
    _shape(file, f"blk.{config.num_layers - 1}.attn_norm.weight")


def config_values(config: ModelConfig) -> dict[str, Any]:
    """The values that describe a configuration, from which `read_config` makes it again.

    Raises:
        ValueError: if GGUF has no words for it.
    """
    name = architecture_of(config)
    values: dict[str, Any] = {
        "context_length": config.context_length, "embedding_length": config.dim, "block_count": config.num_layers,
        "feed_forward_length": config.mlp_width, "attention.head_count": config.num_heads,
        "vocab_size": config.vocab_size,
    }
    if isinstance(config, GPTConfig):
        values["attention.layer_norm_epsilon"] = config.norm_eps
    else:
        assert isinstance(config, QwenConfig)
        values |= {
            "attention.head_count_kv": config.kv_heads, "attention.key_length": config.head_width,
            "attention.value_length": config.head_width, "attention.layer_norm_rms_epsilon": config.norm_eps,
            "rope.dimension_count": config.head_width, "rope.freq_base": config.rope_theta,
            **rope.scaling_values(config),
        }
        if config.expert_count:
            values |= {"expert_count": config.expert_count, "expert_used_count": config.experts_per_token,
                       "expert_feed_forward_length": config.expert_width}
        if config.sliding_window is not None:
            log.warning("llama.cpp does not know a sliding window for %s: after %d tokens it computes something else",
                        name, config.sliding_window)
            values["attention.sliding_window"] = config.sliding_window
    return {"general.architecture": name, **{f"{name}.{key}": value for key, value in values.items()}}


def read_state(file: GGUFFile, config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The tensors of a file as our state dict in float32, made one at a time.

    Args:
        file: where they are.
        config: what `read_config` said of it.
        shapes: the names and shapes of our state dict.

    Raises:
        ValueError: naming every missing tensor, wrong shape and unknown tensor.
    """
    state: dict[str, np.ndarray] = {}
    wrong: list[str] = []
    unknown = set(file.tensors) - {rope.FACTORS} - ({"output.weight"} if config.tie_embeddings else set())
    for row in rows_of(config):
        if row.ours[0] not in shapes:
            continue
        unknown.discard(row.theirs)
        if row.theirs not in file.tensors:
            wrong.append(f"{row.theirs} is missing")
            continue
        parts = [shapes[name] for name in row.ours]
        expected = (sum(shape[0] for shape in parts), *parts[0][1:])
        if (found := file.tensors[row.theirs].shape) != expected:
            wrong.append(f"{row.theirs} has shape {found}, not {expected}")
        elif not wrong:   # no need to read what will not be used
            tensor = file.read(row.theirs)
            if row.paired_heads:
                tensor = unpaired(tensor, row.paired_heads)
            borders = np.cumsum([shape[0] for shape in parts])[:-1]
            # copies: parts of one array could not be saved or freed one by one
            state |= zip(row.ours, [part.copy() for part in np.split(tensor, borders)] if len(borders) else [tensor],
                         strict=True)
    wrong += [f"{shown(name)} is not part of such a model" for name in sorted(unknown)]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise file.error(f"its tensors do not fit its settings: {'; '.join(wrong[:8])}{more}")
    return state


def tensors_to_write(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[tuple[int, ...], Callable[[Callable[[str], np.ndarray]], np.ndarray]]]:
    """Every tensor of the file to be: its shape, and how to make it from ours.

    Args:
        config: the model's.
        shapes: the names and shapes of our state dict.
    """
    table: dict[str, Any] = {}
    used: set[str] = set()
    for row in rows_of(config):
        if row.ours[0] in shapes:
            rows = sum(shapes[name][0] for name in row.ours)
            table[row.theirs] = ((rows, *shapes[row.ours[0]][1:]), _maker(row))
            used.update(row.ours)
    assert not set(shapes) - used, f"no row for {sorted(set(shapes) - used)}"
    if isinstance(config, QwenConfig) and config.rope_scaling.kind == "llama3":
        factors = rope.llama3_factors(config.rope_scaling, head_dim=config.head_width, theta=config.rope_theta)
        table[rope.FACTORS] = (factors.shape, lambda values: factors)
    return table


def _maker(row: Row) -> Callable[[Callable[[str], np.ndarray]], np.ndarray]:
    def make(values: Callable[[str], np.ndarray]) -> np.ndarray:
        tensor = np.concatenate([values(name) for name in row.ours]) if len(row.ours) > 1 else values(row.ours[0])
        return paired(tensor, row.paired_heads) if row.paired_heads else tensor
    return make
