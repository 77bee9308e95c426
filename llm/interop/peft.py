"""PEFT folders: adapters without the base that they stand on, in the names of Hugging Face's `peft`, there and back.

    adapter_config.json   adapter_model.safetensors   [model_config.json]   [tokenizer.json ...]

`peft.PeftModel.from_pretrained(base, folder)` opens what is written here, and what it writes is read here: plain LoRA
on linear layers of attention and feed-forward, and beside it the scores of a classifier. What else peft can do is
refused by name. `model_config.json` is only in ours: what the `config.json` of the whole model would be, with a
classifier's labels and the size of the vocabulary.

One thing is not what the names suggest. GPT-2 keeps q, k and v in one matrix, for which peft has one adapter and we
have three. Ours are written as one of three times the rank, whose B is zero but for three blocks: the same product at
the same scale. What peft trained on that matrix becomes three adapters with the same A.

Read before: `llm/nn/lora.py`, `huggingface.py`.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from llm.config import checked
from llm.interop.huggingface import SCORE, rows_of
from llm.interop.shards import read_json, read_tensors, write_json
from llm.models.classifier import Classifier
from llm.models.decoder import Decoder
from llm.nn.lora import OWN, LoRALinear, adapters, fits, inject

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MODEL = "model_config.json"
PREFIX = "base_model.model."   # of every name in the file
CLASSIFIER, WRITER = "SEQ_CLS", "CAUSAL_LM"
INITS = (True, False, "gaussian", "orthogonal", "eva")   # other ways to begin change the base's weights
READ = ("base_model_name_or_path", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern",
        "target_modules", "exclude_modules", "layers_to_transform", "modules_to_save")
# of the training, of the layout of the base's weights, or idle in plain LoRA
PASSED_OVER = ("auto_mapping", "revision", "inference_mode", "peft_version", "runtime_config", "fan_in_fan_out",
               "layers_pattern", "eva_config", "megatron_core", "qalora_group_size")
REMEDY = "merge it with peft (merge_and_unload) and save the whole model"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an `adapter_config.json` says."""

    base: str                     # the folder of the base, or its name on a hub
    is_classifier: bool
    rank: int
    alpha: float
    dropout: float
    use_rslora: bool
    patterns: list[dict[str, Any]]    # ranks and alphas of modules with others
    targets: list[str] | None         # ends of the names of all modules with adapters; None where told otherwise
    layers: list[int] | None          # the blocks that have some; None: all


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds adapters."""
    return (folder / CONFIG).is_file()


def read_adapter(folder: Path) -> Adapter:
    """The settings of a folder's adapters.

    Raises:
        ValueError: for a damaged file, or a setting that our layers do not compute.
    """
    path = folder / CONFIG
    table = read_json(path, keys=("peft_type", "r", "lora_alpha", "base_model_name_or_path"))
    task, layers = table.get("task_type"), table.get("layers_to_transform")
    plain = {"peft_type": ("LORA",), "task_type": (CLASSIFIER, WRITER, None), "bias": ("none",),
             "init_lora_weights": INITS}
    refused = [key for key, allowed in plain.items() if table.get(key, allowed[0]) not in allowed]
    refused += [key for key in table if key not in (*plain, *READ, *PASSED_OVER) and table[key]]
    kept = table.get("modules_to_save") or []
    if kept and not (task == CLASSIFIER and isinstance(kept, list) and set(map(str, kept)) <= {"score", "classifier"}):
        refused.append("modules_to_save")   # such as whole embeddings
    if refused:
        raise ValueError(f"{path}: {refused[0]} = {table[refused[0]]!r} is not supported, only plain LoRA is; {REMEDY}")

    def read(key: str, kind: Any, default: Any) -> Any:
        return default if table.get(key) is None else checked(table[key], kind, f"{path}: {key}")

    targets = table.get("target_modules")   # a pattern, or "all-linear", could only repeat what the tensors say
    return Adapter(
        base=read("base_model_name_or_path", str, ""), is_classifier=task == CLASSIFIER,
        rank=read("r", int, 0), alpha=read("lora_alpha", float, 0.0), dropout=read("lora_dropout", float, 0.0),
        use_rslora=read("use_rslora", bool, False),
        patterns=[read(key, dict, {}) for key in ("rank_pattern", "alpha_pattern")],
        targets=[*map(str, targets)] if isinstance(targets, list) and not table.get("exclude_modules") else None,
        layers=[layers] if isinstance(layers, int) else read("layers_to_transform", list, None),
    )


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's adapters.

    Raises:
        ValueError: if they are missing, pickled or damaged.
    """
    if not (folder / WEIGHTS).is_file() and (folder / PICKLED).is_file():
        raise ValueError(f"{folder} holds only {PICKLED}, a pickle, which can run any code when it is read; adapters "
                         "are read only from safetensors files, which peft writes when it saves one again")
    return read_tensors(folder / WEIGHTS)


def write_adapter(model: Decoder | Classifier, tensors: Mapping[str, Tensor], folder: Path, *, base: str) -> None:
    """Write the adapters of a model.

    Args:
        model: with adapters.
        tensors: what `adapter_tensors` made of it.
        folder: an existing one.
        base: the folder of the weights that they stand on.
    """
    decoder = _decoder_of(model)
    layer = _settings_of(adapters(decoder))
    modules, suffixes = _modules(decoder), _suffixes(decoder)
    adapted = [theirs for theirs in modules if f"{PREFIX}{theirs}.lora_A.weight" in tensors]
    ends = list(dict.fromkeys(suffixes[theirs] for theirs in adapted))
    layers = sorted({_layer(modules[theirs]) for theirs in adapted})
    is_regular = len(adapted) == len(ends) * len(layers)   # the same modules in each of these blocks
    rank_pattern, alpha_pattern = _patterns(decoder, layer)
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": CLASSIFIER if isinstance(model, Classifier) else WRITER,
        "base_model_name_or_path": base, "r": layer.rank, "lora_alpha": _short(layer.alpha),
        "lora_dropout": layer.dropout.p, "use_rslora": layer.use_rslora,
        "target_modules": ends if is_regular else adapted,
        "layers_to_transform": layers if is_regular and len(layers) < decoder.config.num_layers else None,
        "rank_pattern": {end: rank for end, rank in rank_pattern.items() if end in ends},
        "alpha_pattern": {end: alpha for end, alpha in alpha_pattern.items() if end in ends},
        "modules_to_save": ["score"] if isinstance(model, Classifier) else None,
        "bias": "none", "fan_in_fan_out": decoder.config.family == "gpt", "init_lora_weights": True,
        "inference_mode": True,
    })
    safetensors.torch.save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})


def adapter_tensors(model: Decoder | Classifier) -> dict[str, Tensor]:
    """The adapters of a model under peft's names, and the scores of a classifier.

    Raises:
        ValueError: if something else learns too, which would be lost.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name != SCORE and name.rpartition(".")[2] not in OWN:
            raise ValueError(f"{name} learns beside the adapters, which are saved without it; freeze it, or merge the "
                             "adapters and save the whole model")
    decoder = _decoder_of(model)
    layers = adapters(decoder)
    rank = _settings_of(layers).rank
    tensors = {}
    for theirs, ours in _modules(decoder).items():
        if not any(name in layers for name in ours):
            continue
        pairs = []
        for name in ours:
            linear = _linear(decoder, name)
            pairs.append((linear.lora_a, linear.lora_b) if isinstance(linear, LoRALinear) else
                         (linear.weight.new_zeros(rank, linear.in_features),
                          linear.weight.new_zeros(linear.out_features, rank)))
        tensors[f"{PREFIX}{theirs}.lora_A.weight"] = torch.cat([a.detach() for a, _ in pairs])
        tensors[f"{PREFIX}{theirs}.lora_B.weight"] = torch.block_diag(*[b.detach() for _, b in pairs])
    if isinstance(model, Classifier):
        tensors[PREFIX + SCORE] = model.score.weight.detach()
    return tensors


def inject_adapter(decoder: Decoder, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    """Freeze a decoder and put adapters that were read into it.

    Raises:
        ValueError: if they do not fit it.
    """
    pairs = _pairs(decoder, adapter, tensors)
    generator = torch.Generator(decoder.embed.weight.device)   # not torch's own: loading draws no numbers
    inject(decoder, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout, use_rslora=adapter.use_rslora,
           targets=list(pairs), generator=generator)
    _fill(decoder, pairs)


def load_adapter(model: Decoder | Classifier, folder: Path) -> None:
    """Fill the adapters of a model, and a classifier's scores, in place and strictly.

    Raises:
        ValueError: if the folder's are others.
    """
    decoder, adapter = _decoder_of(model), read_adapter(folder)
    tensors = read_adapter_tensors(folder)
    layers = adapters(decoder)
    if not layers:
        raise ValueError(f"{folder} holds adapters, and the model has none to be filled; inject some first, or load "
                         "the folder as a model of its own")
    layer = _settings_of(layers)
    for name, ours, saved in (("rank", layer.rank, adapter.rank), ("alpha", layer.alpha, adapter.alpha),
                              ("use_rslora", layer.use_rslora, adapter.use_rslora)):
        if ours != saved:
            raise ValueError(f"{folder} holds adapters of {name}={saved}, and the model has {name}={ours}; inject with "
                             "the same")
    if isinstance(model, Classifier):
        load_score(model, tensors.pop(PREFIX + SCORE, None), folder)
    pairs = _pairs(decoder, adapter, tensors)
    if different := sorted(set(pairs) ^ set(layers)):
        raise ValueError(f"{folder} holds adapters of other layers than the model: {different[0]} is in one of them "
                         "only; inject with the same targets and last_blocks")
    _fill(decoder, pairs)


@torch.no_grad()
def load_score(model: Classifier, tensor: Tensor | None, folder: Path) -> None:
    """Fill a classifier's scores with those of a folder.

    Raises:
        ValueError: if they are missing or of other labels.
    """
    if tensor is None or tensor.shape != model.score.weight.shape:
        found = "none" if tensor is None else f"a {SCORE} of shape {tuple(tensor.shape)}"
        raise ValueError(f"{folder} holds {found}; {len(model.labels)} labels and a width of {model.config.dim} need "
                         f"{tuple(model.score.weight.shape)}")
    model.score.weight.copy_(tensor)


def _pairs(decoder: Decoder, adapter: Adapter, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each of our layers, by its name.

    Raises:
        ValueError: naming every missing, misshapen and unknown tensor; or for ranks that our layers do not have.
    """
    modules, suffixes = _modules(decoder), _suffixes(decoder)
    patterns = [{end: number for end, number in pattern.items() if end in adapter.patterns[0]}
                for pattern in _patterns(decoder, adapter)]
    if adapter.patterns != patterns:
        raise ValueError(f"rank_pattern = {adapter.patterns[0]!r} and alpha_pattern = {adapter.patterns[1]!r} are not "
                         f"supported, only one rank for all layers is; {REMEDY}")
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    wrong: list[str] = []
    known: set[str] = set()
    for theirs, ours in modules.items():
        names = [f"{PREFIX}{theirs}.lora_{letter}.weight" for letter in "AB"]
        there = [name for name in names if name in tensors]
        known.update(there)
        is_expected = (adapter.targets is not None and any(fits(theirs, target) for target in adapter.targets)
                       and (adapter.layers is None or _layer(ours) in adapter.layers))
        wrong += [f"{name} is missing" for name in names if name not in there and (there or is_expected)]
        if len(there) < len(names):
            continue
        a, b = (tensors[name] for name in names)
        widths = [_linear(decoder, name).out_features for name in ours]
        count = len(ours) if suffixes[theirs] in adapter.patterns[0] else 1   # adapters in one
        shapes = [(count * adapter.rank, _linear(decoder, ours[0]).in_features), (sum(widths), count * adapter.rank)]
        wrong += [f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
                  for name, shape in zip(names, shapes, strict=True) if tensors[name].shape != shape]
        if wrong:
            continue
        rows = b.split(widths)
        if count == 1:
            pairs |= {name: (a, part) for name, part in zip(ours, rows, strict=True)}
            continue
        parts = [part.split(adapter.rank, dim=1)[place] for place, part in enumerate(rows)]
        if not torch.equal(torch.block_diag(*parts), b):
            wrong.append(f"{names[1]} mixes the adapters of {', '.join(ours)}, which are separate here; {REMEDY}")
        pairs |= {name: (mine, part) for name, mine, part in zip(ours, a.split(adapter.rank), parts, strict=True)
                  if mine.any()}   # zeros stand where there is none
    wrong += [f"{name} is unknown" for name in tensors if name not in known]
    if not wrong and not pairs:
        wrong.append("there is no adapter")
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise ValueError(f"the tensors do not fit {CONFIG} and the base: {shown}")
    return pairs


@torch.no_grad()
def _fill(decoder: Decoder, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for name, layer in adapters(decoder).items():
        layer.lora_a.copy_(pairs[name][0])
        layer.lora_b.copy_(pairs[name][1])


def _decoder_of(model: Decoder | Classifier) -> Decoder:
    return model.decoder if isinstance(model, Classifier) else model


def _settings_of(layers: Mapping[str, LoRALinear]) -> LoRALinear:
    """Any of the layers, for what is the same in all."""
    first, *others = layers.values()
    for layer in others:
        if (layer.rank, layer.alpha, layer.use_rslora) != (first.rank, first.alpha, first.use_rslora):
            raise ValueError(f"the adapters differ: {first}, {layer}; a folder holds those of one `inject`")
    return first


def _linear(decoder: Decoder, name: str) -> nn.Linear:
    linear = decoder.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _modules(decoder: Decoder) -> dict[str, tuple[str, ...]]:
    """Their linear layers that may have adapters: name to ours, of which each is one or a few stacked."""
    linears = {name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    found = {row.theirs.removesuffix(".weight"): tuple(name.removesuffix(".weight") for name in row.ours)
             for row in rows_of(decoder.config) if row.theirs.endswith(".weight") and row.expert is None}
    return {theirs: ours for theirs, ours in found.items() if ours[0] in linears and ours[0].startswith("blocks.")}


def _suffixes(decoder: Decoder) -> dict[str, str]:
    """The end of each of their names that tells it from the others of its block."""
    there = decoder.state_dict()
    names = {row.theirs.rpartition(".")[0]: row.ours[0].split(".")[1] for row in rows_of(decoder.config)
             if row.ours[0].startswith("blocks.") and row.ours[0] in there}
    counts = Counter((layer, name.rpartition(".")[2]) for name, layer in names.items())
    return {name: ".".join(name.split(".")[-1 if counts[layer, name.rpartition(".")[2]] == 1 else -2 :])
            for name, layer in names.items()}


def _patterns(decoder: Decoder, settings: Adapter | LoRALinear) -> list[dict[str, Any]]:
    """rank_pattern and alpha_pattern that give several adapters in one the scale of each."""
    suffixes = _suffixes(decoder)
    counts = {suffixes[theirs]: len(ours) for theirs, ours in _modules(decoder).items() if len(ours) > 1}
    return [{end: count * settings.rank for end, count in counts.items()},
            {end: _short(settings.alpha * (math.sqrt(count) if settings.use_rslora else count))
             for end, count in counts.items()}]


def _layer(ours: tuple[str, ...]) -> int:
    return int(ours[0].split(".")[1])


def _short(number: float) -> float:
    """A whole number as an integer, as peft writes it."""
    return int(number) if float(number).is_integer() else number
