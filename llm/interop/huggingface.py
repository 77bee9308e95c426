"""Hugging Face folders: the tensor names of transformers' classes, there and back.

A checkpoint of ours is such a folder, so that AutoModelForCausalLM opens it without a conversion. One table per
transformers class says which of their tensors hold which of ours; reading and writing follow the same rows.
The configuration is translated in `hf_config.py`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from llm.models.config import ModelConfig


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
