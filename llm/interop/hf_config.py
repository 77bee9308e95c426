"""`config.json` of transformers' classes, there and back. Torch-free.

Which class a configuration of ours belongs to follows from its switches, never from a name; what a class cannot
compute is refused when reading, and cannot be configured in the first place. Written are the spellings of
transformers 4, which version 5 reads too; read are both.
"""

import math
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm.config import checked, merge
from llm.models.config import GPTConfig, ModelConfig, QwenConfig
from llm.models.scaling import USED, RopeScaling


class Key(NamedTuple):
    """One of their keys, our field for it, and what is written there: the field itself, or what it defaults to."""

    theirs: str
    ours: str
    written: str = ""


GPT_KEYS = [
    Key("vocab_size", "vocab_size"), Key("n_positions", "context_length"), Key("n_layer", "num_layers"),
    Key("n_head", "num_heads"), Key("n_embd", "dim"), Key("n_inner", "mlp_dim"),
    Key("layer_norm_epsilon", "norm_eps"), Key("tie_word_embeddings", "tie_embeddings"),
]
QWEN_KEYS = [
    Key("vocab_size", "vocab_size"), Key("num_hidden_layers", "num_layers"), Key("num_attention_heads", "num_heads"),
    Key("num_key_value_heads", "num_kv_heads", "kv_heads"), Key("head_dim", "head_dim", "head_width"),
    Key("hidden_size", "dim"), Key("intermediate_size", "mlp_dim", "mlp_width"), Key("rms_norm_eps", "norm_eps"),
    Key("tie_word_embeddings", "tie_embeddings"),
]
EXPERT_KEYS = [
    Key("num_experts", "num_experts"), Key("num_experts_per_tok", "experts_per_token"),
    Key("moe_intermediate_size", "moe_dim", "expert_width"), Key("norm_topk_prob", "norm_topk_prob"),
]
SHARED_KEYS = [Key("shared_expert_intermediate_size", "shared_expert_dim")]
GPT_FIXED: dict[str, tuple[Any, ...]] = {   # what GPT-2's class could also do: what we compute, the first is written
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
}
QWEN_FIXED: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu",), "mlp_bias": (False,)}
EXPERT_FIXED: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}
QWEN_DEFAULTS: dict[str, Any] = {
    "tie_word_embeddings": False, "rms_norm_eps": 1e-6, "num_key_value_heads": None, "head_dim": None}
DEFAULTS: dict[str, dict[str, Any]] = {   # of their classes, for keys that a file may lack; the other keys it must have
    "gpt2": {"n_inner": None, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    "llama": QWEN_DEFAULTS,
    "mistral": QWEN_DEFAULTS | {"num_key_value_heads": 8},
    "qwen2": QWEN_DEFAULTS | {"num_key_value_heads": 32},
    "qwen3": QWEN_DEFAULTS | {"num_key_value_heads": 32, "head_dim": 128},
    "qwen2_moe": QWEN_DEFAULTS | {"num_key_value_heads": 16, "norm_topk_prob": False},
    "qwen3_moe": QWEN_DEFAULTS | {"num_key_value_heads": 4, "norm_topk_prob": False},
}
CLASSES = {"gpt2": "GPT2LMHeadModel"} | {
    kind: f"{name}ForCausalLM" for kind, name in {
        "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen2_moe": "Qwen2Moe", "qwen3": "Qwen3",
        "qwen3_moe": "Qwen3Moe"}.items()
}


def model_type(config: ModelConfig) -> str:
    """Which of transformers' classes computes the same."""
    if isinstance(config, GPTConfig):
        return "gpt2"
    assert isinstance(config, QwenConfig)
    if config.expert_count:
        return "qwen3_moe" if config.use_qk_norm else "qwen2_moe"
    if config.use_qk_norm:
        return "qwen3"
    if config.use_qkv_bias:
        return "qwen2"
    return "mistral" if config.sliding_window is not None else "llama"


def to_config(config: ModelConfig, *, eos_id: int | None, dtype: str = "float32") -> dict[str, Any]:
    """The `config.json` under which transformers builds the same model.

    Args:
        config: the architecture.
        eos_id: the id that ends a text, if a tokenizer says so.
        dtype: of the weights in the folder, in torch's words.
    """
    kind = model_type(config)
    keys, fixed = _spelling(kind)
    table: dict[str, Any] = {"architectures": [CLASSES[kind]], "model_type": kind}
    table |= {key.theirs: getattr(config, key.written or key.ours) for key in keys}
    table |= {theirs: allowed[0] for theirs, allowed in fixed.items()}
    if isinstance(config, QwenConfig):
        table |= _rope_to_theirs(config) | _window_to_theirs(config, kind)
        table |= {"attention_bias": config.use_qkv_bias, "attention_dropout": 0.0}
        if kind == "qwen2_moe":
            table["qkv_bias"] = table.pop("attention_bias")
    else:
        table |= {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    return table | {"torch_dtype": dtype, "bos_token_id": eos_id, "eos_token_id": eos_id, "use_cache": True}


def to_classifier_config(config: ModelConfig, labels: Sequence[str], *, eos_id: int | None, pad_id: int | None,
                         dtype: str = "float32") -> dict[str, Any]:
    """The same for a classifier: transformers' `...ForSequenceClassification`.

    Args:
        config, eos_id, dtype: as in `to_config`.
        labels: the names of the classes in order.
        pad_id: the id by which theirs finds the end of a text in a padded batch.
    """
    names = {str(number): label for number, label in enumerate(labels)}
    table = to_config(config, eos_id=eos_id, dtype=dtype)
    head = re.sub("(LMHeadModel|ForCausalLM)$", "ForSequenceClassification", table["architectures"][0])
    return table | {"architectures": [head], "pad_token_id": pad_id, "use_cache": False, "id2label": names,
                    "label2id": {label: int(number) for number, label in names.items()}}


def classifier_labels(table: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes in a classifier's `config.json`, in order; None if it is no classifier's.

    Raises:
        ValueError: if it is one, but does not say which classes 0, 1, ... are.
    """
    heads = table.get("architectures")
    if not isinstance(heads, list) or not any(str(head).endswith("ForSequenceClassification") for head in heads):
        return None
    names = table.get("id2label") or {str(number): f"LABEL_{number}" for number in range(2)}   # theirs without any
    if not isinstance(names, Mapping) or set(names) != {str(number) for number in range(len(names))}:
        raise ValueError(f"config.json: id2label = {names!r} must name the classes 0, 1, ...")
    return [str(names[str(number)]) for number in range(len(names))]


def from_config(table: Mapping[str, Any]) -> ModelConfig:
    """Our configuration from a `config.json`.

    Raises:
        ValueError: for a model type or a setting that our modules do not compute, or a value of a wrong type.
        KeyError: for a missing key.
    """
    kind = table.get("model_type")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise ValueError(f"model_type {kind!r} is not supported; choose from {', '.join(sorted(CLASSES))}")
    config_class = GPTConfig if kind == "gpt2" else QwenConfig
    keys, fixed = _spelling(kind)
    for theirs, allowed in fixed.items():
        _require(table, theirs, *allowed)
    if "num_local_experts" in table:   # how transformers 5 spells it
        table = {"num_experts": table["num_local_experts"], **table}
    annotations = typing.get_type_hints(config_class)
    fields: dict[str, Any] = {}
    for key in keys:
        value = table.get(key.theirs)
        value = DEFAULTS[kind][key.theirs] if value is None else value
        fields[key.ours] = checked(value, annotations[key.ours], f"config.json: {key.theirs}")
    if config_class is QwenConfig:
        has_bias = (checked(table.get("qkv_bias", True), bool, "config.json: qkv_bias") if kind == "qwen2_moe" else
                    kind == "qwen2")
        _require(table, "attention_bias", has_bias, None)
        fields |= {"use_qk_norm": kind in ("qwen3", "qwen3_moe"), "use_qkv_bias": has_bias,
                   "sliding_window": _window_of(table), **_rope_of(table)}
        if "num_experts" in fields:   # theirs knows a width for layers without experts too; there are none
            fields["mlp_dim"] = None
    return config_class(**fields)


def _spelling(kind: str) -> tuple[list[Key], dict[str, tuple[Any, ...]]]:
    """The keys of a class, and the settings that it may have in one way only."""
    if kind == "gpt2":
        return GPT_KEYS, GPT_FIXED
    if kind == "qwen3_moe":
        return QWEN_KEYS + EXPERT_KEYS, QWEN_FIXED | EXPERT_FIXED
    if kind == "qwen2_moe":
        return QWEN_KEYS + EXPERT_KEYS + SHARED_KEYS, QWEN_FIXED | EXPERT_FIXED
    return QWEN_KEYS, QWEN_FIXED


RENAMED = {"trained_context": "original_max_position_embeddings"}   # the other numbers of a scaling agree
ATTENTIONS = ("full_attention", "sliding_attention")   # of the kinds of layers that theirs can mix
STANDS_FOR_TRAINED = ("linear", "dynamic")   # under these, max_position_embeddings is the trained length


def _rope_to_theirs(config: QwenConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling.kind == "none":
        return {"max_position_embeddings": config.context_length, "rope_theta": config.rope_theta, "rope_scaling": None}
    numbers = {RENAMED.get(name, name): value for name, value in scaling.numbers.items() if value is not None}
    longest = config.context_length
    if scaling.kind in STANDS_FOR_TRAINED:
        longest = scaling.trained_context
        numbers.pop("original_max_position_embeddings", None)
    return {"max_position_embeddings": longest, "rope_theta": config.rope_theta,
            "rope_scaling": {"rope_type": scaling.kind, **numbers}}


def _rope_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """theta, scaling and reach, from `rope_scaling` (transformers 4) or `rope_parameters` (5).

    Raises:
        ValueError: for a kind or a number that we do not compute.
    """
    longest = checked(table["max_position_embeddings"], int, "config.json: max_position_embeddings")
    given = table.get("rope_parameters") or table.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"config.json: rope_scaling = {given!r} must be an object")
    rope = {key: value for key, value in given.items() if value is not None}
    theta = rope.pop("rope_theta", table.get("rope_theta"))
    theta = checked(10_000.0 if theta is None else theta, float, "config.json: rope_theta")
    older = rope.pop("type", "default")
    kind = checked(rope.pop("rope_type", older), str, "config.json: rope_type")
    for where in (rope, table):
        _require(where, "partial_rotary_factor", 1.0, None)
    rope.pop("partial_rotary_factor", None)
    if kind == "default":
        return {"context_length": longest, "rope_theta": theta}
    if kind not in USED or kind == "none":
        supported = ", ".join(name for name in USED if name != "none")
        raise ValueError(f"config.json: rope scaling {kind!r} is not supported; {supported} are")
    trained = rope.pop("original_max_position_embeddings", longest)
    trained = table.get("original_max_position_embeddings") or trained
    if kind == "dynamic":
        trained = longest   # theirs look at nothing else
    trained = checked(trained, int, "config.json: original_max_position_embeddings")
    if "factor" not in rope:
        rope["factor"] = longest / max(trained, 1)
    numbers = {"trained_context": trained, **rope}
    if kind == "yarn" and "mscale" in rope and "mscale_all_dim" in rope:   # DeepSeek's way to say attention_factor
        mscale, mscale_all_dim, factor = (checked(rope[name], float, f"config.json: rope_scaling: {name}")
                                          for name in ("mscale", "mscale_all_dim", "factor"))
        del numbers["mscale"], numbers["mscale_all_dim"]
        logarithm = 0.1 * math.log(max(factor, 1.0))
        if mscale and mscale_all_dim:
            numbers.setdefault("attention_factor", (mscale * logarithm + 1) / (mscale_all_dim * logarithm + 1))
    if unknown := set(numbers) - {"trained_context", *USED[kind]}:
        raise ValueError(f"config.json: {', '.join(sorted(unknown))} of rope scaling {kind!r} is not supported")
    scaling = merge(RopeScaling(kind=kind), numbers, where="config.json: rope_scaling")
    if kind in STANDS_FOR_TRAINED:
        longest = scaling.reach
    elif kind == "yarn":   # some files say how far training went, some how far it reaches
        longest = max(longest, scaling.reach)
    return {"context_length": longest, "rope_theta": theta, "rope_scaling": scaling}


def _window_to_theirs(config: QwenConfig, kind: str) -> dict[str, Any]:
    if kind == "mistral":
        return {"sliding_window": config.sliding_window}
    if kind == "llama":
        return {}
    return {"sliding_window": config.sliding_window, "use_sliding_window": config.sliding_window is not None,
            "max_window_layers": 0}   # theirs can leave the window out in the first layers


def _window_of(table: Mapping[str, Any]) -> int | None:
    """The sliding window of all layers.

    Raises:
        ValueError: if only some of the layers have one.
    """
    kind = table["model_type"]
    window = checked(table.get("sliding_window", 4096), int | None, "config.json: sliding_window")   # their default
    kinds = table.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(name in ATTENTIONS for name in kinds)):
        raise ValueError(f"config.json: layer_types = {kinds!r} is not supported; only lists of "
                         f"{' and '.join(ATTENTIONS)} are")
    if kind == "mistral":
        return window
    if kind == "llama" or not table.get("use_sliding_window", False):
        return None
    first = checked(table.get("max_window_layers", 28), int, "config.json: max_window_layers")
    layers = table["num_hidden_layers"]
    if kind == "qwen3_moe":
        return window   # in all layers, whatever max_window_layers says
    if kinds is None:
        kinds = ["sliding_attention"] * (first < layers) + ["full_attention"] * (first > 0)
    if set(kinds) == {"sliding_attention"}:
        return window
    if set(kinds) == {"full_attention"}:
        return None
    raise ValueError("config.json: layer_types mixes layers with and without a sliding window, which is not "
                     "supported; all layers must have it, or none")


def _require(table: Mapping[str, Any], key: str, *allowed: Any) -> None:
    if key in table and table[key] not in allowed:
        choices = " or ".join(map(repr, allowed))
        raise ValueError(f"config.json: {key} = {table[key]!r} is not supported; only {choices} is")
