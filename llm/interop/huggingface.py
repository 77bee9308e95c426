"""Hugging Face folders: the tensor names of transformers' classes, there and back.

A checkpoint of ours is such a folder, so that AutoModelForCausalLM opens it without a conversion. One table per
transformers class says which of their tensors hold which of ours; reading and writing follow the same rows.
The configuration is translated in `hf_config.py`; `wrap`, from `wrapped.py`, is for models that are not ours.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm.interop.wrapped import wrap
from llm.models.classifier import Classifier
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.nn.lora import whole_state

__all__ = ["Row", "check_counts", "from_tensors", "rows_of", "state_for", "to_tensors", "weights_of", "wrap"]


class Row(NamedTuple):
    """One of their tensors: ours stacked along the outputs, and transposed where they store (in, out)."""

    theirs: str
    ours: tuple[str, ...]
    is_transposed: bool = False
    expert: int | None = None   # of our stacked experts, the one that it is


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
SWIGLU = ("gate_proj", "up_proj", "down_proj")
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
        **{f"mlp.{part}": f"mlp.{part}" for part in SWIGLU},
    }, kinds=("weight",)),
    *_same("model.layers.{i}.", {f"attention.{letter}_proj": f"self_attn.{letter}_proj" for letter in "qkv"},
           kinds=("weight", "bias")),
    Row("model.layers.{i}.mlp.gate.weight", ("blocks.{i}.mlp.router.weight",)),
    Row("model.layers.{i}.mlp.shared_expert_gate.weight", ("blocks.{i}.mlp.shared_gate.weight",)),
    *_same("model.layers.{i}.", {f"mlp.shared.{part}": f"mlp.shared_expert.{part}" for part in SWIGLU},
           kinds=("weight",)),
    *[Row(f"model.layers.{{i}}.mlp.experts.{{e}}.{part}.weight", (f"blocks.{{i}}.mlp.experts.{part}",))
      for part in SWIGLU],
]
MASKS = (".attn.bias", ".attn.masked_bias")   # buffers in GPT-2's own files; no weights
SCORE = "score.weight"   # of a classifier, in their words and in ours
TABLES = {"gpt": (GPT2_TRUNK, GPT2_BLOCK), "qwen": (QWEN_TRUNK, QWEN_BLOCK)}


def rows_of(config: ModelConfig) -> list[Row]:
    """The table of a model with layers and experts numbered; it may hold rows for parts that this model lacks."""
    trunk, block = TABLES[config.family]
    rows = list(trunk)
    for layer in range(config.num_layers):
        for row in block:
            theirs = row.theirs.replace("{i}", str(layer))
            ours = tuple(name.replace("{i}", str(layer)) for name in row.ours)
            if "{e}" in theirs:
                rows += [Row(theirs.replace("{e}", str(expert)), ours, expert=expert)
                         for expert in range(config.expert_count)]
            else:
                rows.append(Row(theirs, ours, row.is_transposed))
    return rows


def to_tensors(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict under their names and in their layout."""
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in rows_of(config):
        if row.ours[0] in state:
            parts = [state[name] if row.expert is None else state[name][row.expert] for name in row.ours]
            tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
            tensors[row.theirs] = (tensor.T if row.is_transposed else tensor).contiguous()
            used.update(row.ours)
    left = set(state) - used
    assert not left, f"no row for {sorted(left)}"
    return tensors


def from_tensors(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    expected: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Their tensors as our state dict, copied one by one.

    Args:
        tensors: as they stand in the file; each is asked for once.
        config: the model they are for.
        expected: the state dict of such a model. What has memory is filled in place; for what is on the meta device
            memory is allocated.
        dtype, device: of what is allocated.

    Returns:
        A tensor for each expected name.

    Raises:
        ValueError: naming every missing tensor, wrong shape and unknown tensor.
    """
    state: dict[str, Tensor] = {}
    wrong: list[str] = []
    known: set[str] = set()
    for row in rows_of(config):
        if row.ours[0] not in expected:
            continue
        theirs = row.theirs if row.theirs in tensors else row.theirs.removeprefix("transformer.")   # GPT-2's own files
        if theirs not in tensors:
            wrong.append(f"{row.theirs} is missing")
            continue
        known.add(theirs)
        tensor = tensors[theirs].T if row.is_transposed else tensors[theirs]
        shapes = [expected[name].shape if row.expert is None else expected[name].shape[1:] for name in row.ours]
        if tensor.shape != (sum(shape[0] for shape in shapes), *shapes[0][1:]):
            wrong.append(f"{theirs} has shape {tuple(tensors[theirs].shape)}, not that of {' + '.join(row.ours)}")
            continue
        for name, part in zip(row.ours, tensor.split([shape[0] for shape in shapes]), strict=True):
            if name not in state:
                place = expected[name]
                state[name] = torch.empty(place.shape, dtype=dtype, device=device) if place.is_meta else place
            (state[name] if row.expert is None else state[name][row.expert]).copy_(part)
    if config.tie_embeddings and "lm_head.weight" in tensors and "embed.weight" in state:
        known.add("lm_head.weight")
        if not torch.equal(tensors["lm_head.weight"].to(device, state["embed.weight"].dtype), state["embed.weight"]):
            wrong.append("lm_head.weight differs from the embedding although the config ties them; set "
                         "tie_word_embeddings to false in config.json if the head is its own")
    unknown = [name for name in tensors if name not in known and not name.endswith(MASKS)]
    wrong += [f"{name} is unknown" for name in unknown]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(f"the tensors do not fit the configuration: {shown}")
    return state


def weights_of(model: Decoder | Classifier) -> dict[str, Tensor]:
    """The weights of a model under their names; of a classifier without the output head, unless that is trained."""
    if isinstance(model, Decoder):
        return to_tensors(whole_state(model), model.config)
    head = model.decoder.head
    state = {name: tensor for name, tensor in whole_state(model.decoder).items()
             if name != "head.weight" or (head is not None and head.weight.requires_grad)}
    return {**to_tensors(state, model.config), SCORE: model.score.weight.detach()}


def state_for(model: Decoder | Classifier, tensors: Mapping[str, Tensor], **settings: Any) -> dict[str, Tensor]:
    """The state dict of a model from their tensors, the way back; for all else see `from_tensors`."""
    if isinstance(model, Decoder):
        return from_tensors(tensors, model.config, model.state_dict(), **settings)
    if SCORE not in tensors or tensors[SCORE].shape != model.score.weight.shape:
        found = f"has shape {tuple(tensors[SCORE].shape)}" if SCORE in tensors else "is missing"
        raise ValueError(f"the tensors do not fit the configuration: {SCORE} {found}; {len(model.labels)} labels and a "
                         f"width of {model.config.dim} need {tuple(model.score.weight.shape)}")
    expected = {name: tensor for name, tensor in model.decoder.state_dict().items()
                if name != "head.weight" or "lm_head.weight" in tensors}
    rest = {name: tensors[name] for name in tensors if name != SCORE}
    state = {f"decoder.{name}": tensor
             for name, tensor in from_tensors(rest, model.config, expected, **settings).items()}
    place = model.state_dict()[SCORE]
    if place.is_meta:
        place = torch.empty(place.shape, dtype=settings.get("dtype", torch.float32),
                            device=settings.get("device", "cpu"))
    return {**state, SCORE: place.copy_(tensors[SCORE])}


def check_counts(config: ModelConfig, num_tensors: int) -> None:
    """Refuse a configuration of more layers or experts than a file has tensors, before a model is built from it.

    Raises:
        ValueError: naming both numbers.
    """
    least = config.num_layers * max(1, config.expert_count)
    if least > num_tensors:
        raise ValueError(f"config.json asks for {config.num_layers} layers"
                         f"{f' of {config.expert_count} experts' if config.expert_count else ''}, but the weights are "
                         f"{num_tensors} tensors; the two belong to different models")
