"""Hugging Face folders: configuration and tensor names of transformers' classes, there and back.

A checkpoint of ours is such a folder, so that AutoModelForCausalLM opens it without a conversion. One table per
transformers class says which of their tensors hold which of ours; reading and writing follow the same rows.
Spellings are those of transformers 4, which version 5 reads too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm.models.config import GPTConfig, ModelConfig, QwenConfig


class Row(NamedTuple):
    """One of their tensors: ours stacked along the outputs, and transposed where they store (in, out)."""

    theirs: str
    ours: tuple[str, ...]
    is_transposed: bool = False


def _same(prefix: str, pairs: Mapping[str, str], *, kinds: tuple[str, ...]) -> list[Row]:
    """Rows for modules that differ only in name."""
    return [Row(f"{prefix}{theirs}.{kind}", (f"blocks.{{i}}.{ours}.{kind}",))
            for ours, theirs in pairs.items() for kind in kinds]


GPT2_TRUNK = [
    Row("transformer.wte.weight", ("embed.weight",)),
    Row("transformer.wpe.weight", ("embed_positions.weight",)),
    Row("transformer.ln_f.weight", ("final_norm.weight",)),
    Row("transformer.ln_f.bias", ("final_norm.bias",)),
    Row("lm_head.weight", ("head.weight",)),
]
QKV = tuple(f"blocks.{{i}}.attention.{letter}_proj" for letter in "qkv")
GPT2_BLOCK = [
    *_same("transformer.h.{i}.", {"attention_norm": "ln_1", "mlp_norm": "ln_2"}, kinds=("weight", "bias")),
    # transformers' Conv1D stores (in, out)
    Row("transformer.h.{i}.attn.c_attn.weight", tuple(f"{name}.weight" for name in QKV), is_transposed=True),
    Row("transformer.h.{i}.attn.c_attn.bias", tuple(f"{name}.bias" for name in QKV)),
    Row("transformer.h.{i}.attn.c_proj.weight", ("blocks.{i}.attention.out_proj.weight",), is_transposed=True),
    Row("transformer.h.{i}.attn.c_proj.bias", ("blocks.{i}.attention.out_proj.bias",)),
    Row("transformer.h.{i}.mlp.c_fc.weight", ("blocks.{i}.mlp.up_proj.weight",), is_transposed=True),
    Row("transformer.h.{i}.mlp.c_fc.bias", ("blocks.{i}.mlp.up_proj.bias",)),
    Row("transformer.h.{i}.mlp.c_proj.weight", ("blocks.{i}.mlp.down_proj.weight",), is_transposed=True),
    Row("transformer.h.{i}.mlp.c_proj.bias", ("blocks.{i}.mlp.down_proj.bias",)),
]
QWEN_TRUNK = [
    Row("model.embed_tokens.weight", ("embed.weight",)),
    Row("model.norm.weight", ("final_norm.weight",)),
    Row("lm_head.weight", ("head.weight",)),
]
QWEN_BLOCK = [
    *_same("model.layers.{i}.", {
        "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
        "attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm",
        "attention.out_proj": "self_attn.o_proj",
        "mlp.gate_proj": "mlp.gate_proj", "mlp.up_proj": "mlp.up_proj", "mlp.down_proj": "mlp.down_proj",
    }, kinds=("weight",)),
    *_same("model.layers.{i}.", {f"attention.{letter}_proj": f"self_attn.{letter}_proj" for letter in "qkv"},
           kinds=("weight", "bias")),
]
TABLES = {"gpt": (GPT2_TRUNK, GPT2_BLOCK), "qwen": (QWEN_TRUNK, QWEN_BLOCK)}


def rows_of(config: ModelConfig) -> list[Row]:
    """The table of a model with its layers numbered; it may hold rows for parts that this model lacks."""
    trunk, block = TABLES[config.family]
    numbered = [
        Row(row.theirs.replace("{i}", str(layer)), tuple(name.replace("{i}", str(layer)) for name in row.ours),
            row.is_transposed)
        for layer in range(config.num_layers) for row in block
    ]
    return [*trunk, *numbered]


def to_tensors(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under their names and in their layout."""
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows_of(config):
        if row.ours[0] in state:
            tensor = torch.cat([state[name] for name in row.ours]) if len(row.ours) > 1 else state[row.ours[0]]
            tensors[row.theirs] = (tensor.T if row.is_transposed else tensor).contiguous()
            used.update(row.ours)
    left = set(state) - used
    assert not left, f"no row for {sorted(left)}"
    return tensors


def from_tensors(
    tensors: Mapping[str, Tensor], config: ModelConfig, expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Their tensors as our state dict.

    Args:
        tensors: as they stand in the file.
        config: the model they are for.
        expected: the state dict of such a model, for names and shapes; its values are not read.

    Returns:
        A tensor for each expected name.

    Raises:
        ValueError: naming every missing tensor, wrong shape and unknown tensor.
    """
    tensors = dict(tensors)
    state: dict[str, Tensor] = {}
    wrong: list[str] = []
    for row in rows_of(config):
        if row.ours[0] not in expected:
            continue
        theirs = row.theirs if row.theirs in tensors else row.theirs.removeprefix("transformer.")   # GPT-2's own files
        if theirs not in tensors:
            wrong.append(f"{row.theirs} is missing")
            continue
        tensor = tensors.pop(theirs)
        tensor = tensor.T.contiguous() if row.is_transposed else tensor
        shapes = [expected[name].shape for name in row.ours]
        if tensor.shape != (sum(shape[0] for shape in shapes), *shapes[0][1:]):
            wrong.append(f"{theirs} has shape {tuple(tensor.shape)}, not that of {' + '.join(row.ours)}")
            continue
        parts = tensor.split([shape[0] for shape in shapes])
        state.update(zip(row.ours, (part.contiguous() for part in parts), strict=True))
    copied_head = tensors.pop("lm_head.weight", None) if config.tie_embeddings else None
    if copied_head is not None and "embed.weight" in state and not torch.equal(copied_head, state["embed.weight"]):
        wrong.append("lm_head.weight differs from the embedding although the config ties them")
    unknown = [name for name in tensors if not name.endswith((".attn.bias", ".attn.masked_bias"))]   # GPT-2's masks
    wrong += [f"{name} is unknown" for name in unknown]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(f"the tensors do not fit the configuration: {shown}")
    return state


def to_config(config: ModelConfig, *, eos_id: int | None) -> dict[str, Any]:
    """The `config.json` under which transformers builds the same model."""
    shared = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings, "torch_dtype": "float32",
              "bos_token_id": eos_id, "eos_token_id": eos_id, "use_cache": True}
    if isinstance(config, GPTConfig):
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_positions": config.context_length,
            "n_ctx": config.context_length, "n_embd": config.dim, "n_layer": config.num_layers,
            "n_head": config.num_heads, "n_inner": config.mlp_dim, "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0, **shared,
        }
    assert isinstance(config, QwenConfig)
    kind, name = (
        ("qwen3", "Qwen3") if config.use_qk_norm else ("qwen2", "Qwen2") if config.use_qkv_bias else
        ("mistral", "Mistral") if config.sliding_window is not None else ("llama", "Llama")
    )
    window: dict[str, Any] = {"sliding_window": config.sliding_window}
    if kind in ("qwen2", "qwen3"):   # theirs can leave the window out in the first max_window_layers layers
        window |= {"use_sliding_window": config.sliding_window is not None, "max_window_layers": 0}
    return {
        "architectures": [f"{name}ForCausalLM"], "model_type": kind, "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_width, "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.context_length, "rope_theta": config.rope_theta, "rope_scaling": None,
        "rms_norm_eps": config.norm_eps, "hidden_act": "silu", "attention_bias": config.use_qkv_bias,
        "attention_dropout": 0.0, **window, **shared,
    }


def from_config(table: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from a `config.json`.

    Raises:
        ValueError: for a model type or a setting that our modules do not compute.
    """
    kind = table.get("model_type")
    if kind == "gpt2":
        _require(table, "activation_function", "gelu_new", "gelu_pytorch_tanh")
        return GPTConfig(
            vocab_size=table["vocab_size"], context_length=table["n_positions"], num_layers=table["n_layer"],
            num_heads=table["n_head"], dim=table["n_embd"], mlp_dim=table.get("n_inner"),
            norm_eps=table.get("layer_norm_epsilon", 1e-5), tie_embeddings=table.get("tie_word_embeddings", True),
        )
    if kind in ("qwen3", "qwen2", "llama", "mistral"):
        _require(table, "hidden_act", "silu")
        _require(table, "mlp_bias", False)
        _require(table, "attention_bias", kind == "qwen2", None)
        rope = table.get("rope_parameters") or {}   # where transformers 5 keeps it
        scaling = table.get("rope_scaling") or {}
        for kind_of_rope in (rope.get("rope_type"), scaling.get("rope_type", scaling.get("type"))):
            if kind_of_rope not in (None, "default"):
                raise ValueError(f"rope scaling {kind_of_rope!r} is not supported; only plain RoPE is")
        return QwenConfig(
            vocab_size=table["vocab_size"], context_length=table["max_position_embeddings"],
            num_layers=table["num_hidden_layers"], num_heads=table["num_attention_heads"], dim=table["hidden_size"],
            mlp_dim=table["intermediate_size"], num_kv_heads=table.get("num_key_value_heads"),
            head_dim=table.get("head_dim"), use_qk_norm=kind == "qwen3", use_qkv_bias=kind == "qwen2",
            rope_theta=float(table.get("rope_theta", rope.get("rope_theta", 10_000.0))),
            sliding_window=_window_of(table),
            norm_eps=table.get("rms_norm_eps", 1e-6), tie_embeddings=table.get("tie_word_embeddings", False),
        )
    raise ValueError(f"model_type {kind!r} is not supported; choose from gpt2, llama, mistral, qwen2, qwen3")


def _window_of(table: Mapping[str, Any]) -> int | None:
    """The sliding window of all layers.

    Raises:
        ValueError: if only some of the layers have one.
    """
    kind, layers = table["model_type"], table["num_hidden_layers"]
    if kind == "mistral":
        return table.get("sliding_window", 4096)   # their default
    if kind == "llama" or not table.get("use_sliding_window", False):
        return None
    usual = ["sliding_attention" if layer >= table.get("max_window_layers", 28) else "full_attention"
             for layer in range(layers)]
    kinds = set(table.get("layer_types") or usual)
    if len(kinds) > 1:
        raise ValueError("config.json: layer_types mixes layers with and without a sliding window, which is not "
                         "supported; all layers must have it, or none")
    return table.get("sliding_window", 4096) if kinds == {"sliding_attention"} else None


def _require(table: Mapping[str, Any], key: str, *allowed: Any) -> None:
    if key in table and table[key] not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise ValueError(f"config.json: {key} = {table[key]!r} is not supported; only {choices} is")
