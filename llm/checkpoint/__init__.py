"""Saving and loading. A checkpoint is a Hugging Face folder, and beside it, for resuming, the state of the trainer.

    step-00000500/   config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
                     trainer/state.json  trainer/optimizer.safetensors
    index.json       which steps are complete, the latest, the best

With adapters (`llm/nn/lora.py`) it is a PEFT folder, which holds them alone and names the folder of their base. Weights
are only ever read as safetensors, never unpickled. How a run keeps its checkpoints whole is in `store.py`.
"""

import hashlib
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from llm.checkpoint.store import (
    UNFINISHED,
    CheckpointStore,
    read_trainer_state,
    step_name,
    write_trainer_state,
)
from llm.interop import gguf, hf_config, huggingface, peft
from llm.interop.shards import WEIGHTS, TensorFiles, read_json, read_tensors, write_json, write_tensors
from llm.interop.wrapped import Wrapped
from llm.models.build import empty_model
from llm.models.classifier import Classifier
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.nn.lora import adapters, eject, merge
from llm.tokenizers.tokenizer import Tokenizer

__all__ = [
    "UNFINISHED", "CheckpointStore", "check_base", "find_checkpoint", "is_gguf", "load", "load_classifier",
    "load_weights", "read_config", "read_tensors", "read_trainer_state", "save", "step_name", "unwrapped",
    "weights_hash", "write_trainer_state",
]

Model = TypeVar("Model", Decoder, Classifier)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    base: str | Path | None = None,
) -> None:
    """Write a model as a Hugging Face folder that transformers opens and `load` reads back to the bit.

    With adapters beside its weights it is written as a PEFT folder: the adapters, and a classifier's scores, without
    the base. Once they are merged into the weights it is a whole model again and written as one.

    A wrapped model of transformers is saved as its library does; a module of your own, without a configuration of
    ours, as its weights alone.

    Args:
        model: a decoder, or any module.
        folder: made if need be; files of the same names in it are replaced.
        tokenizer: saved along, for AutoTokenizer and for `load`.
        dtype: of a decoder's weights in the file: "float32", "bfloat16" or "float16"; default as they are.
        max_shard_bytes: larger weights are split over several files, with an index.
        base: the folder of the weights that adapters stand on; needed with adapters, and only then.

    Raises:
        ValueError: for another dtype, or if a weight is too large for it; for adapters without a base or a base without
            adapters, or if something else than adapters and scores learns.

    Example:
        >>> import llm, tempfile
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=4, num_layers=1, num_heads=1, dim=8))
        >>> folder = tempfile.mkdtemp()
        >>> llm.save(model, folder)
        >>> again, _ = llm.load(folder)
        >>> torch.equal(again.embed.weight, model.embed.weight)
        True
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = unwrapped(model)
    config = getattr(model, "config", None)
    if isinstance(config, ModelConfig):
        assert isinstance(model, Decoder | Classifier)
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), None)
        if tokenizer is not None:
            bos_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
            ids = {"bos_token_id": bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        check_base(model, base, folder)
        tensors = _as_dtype(huggingface.weights_of(model) if base is None else peft.adapter_tensors(model), dtype)
        written = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        if isinstance(model, Classifier):
            table = hf_config.to_classifier_config(config, model.labels, eos_id=ids["eos_token_id"],
                                                   pad_id=model.pad_id, dtype=written)
        else:
            table = hf_config.to_config(config, eos_id=ids["eos_token_id"], dtype=written)
        table |= {"bos_token_id": ids["bos_token_id"]}
        if base is not None:
            write_json(folder / peft.MODEL, table)
            peft.write_adapter(model, tensors, folder, base=os.path.abspath(base))
        else:
            write_json(folder / "config.json", table)
            write_json(folder / "generation_config.json", ids)
            write_tensors(tensors, folder, max_shard_bytes=max_shard_bytes)
            for name in (peft.CONFIG, peft.WEIGHTS, peft.MODEL):   # of an adapter that was here before
                (folder / name).unlink(missing_ok=True)
    elif isinstance(model, Wrapped):
        model.save_weights(folder)
    else:
        safetensors.torch.save_model(model, str(folder / WEIGHTS))   # copes with tensors that modules share
    if tokenizer is not None:
        tokenizer.save(folder)


def check_base(model: nn.Module, base: str | Path | None, folder: Path) -> None:
    """Complain if a model can be saved in a folder only with another `base` of its adapters, or without one.

    Raises:
        ValueError: saying which.
    """
    is_apart = any(layer.mode != "merged" for layer in adapters(model).values())
    if is_apart and base is None:
        raise ValueError("the model has adapters beside its weights, and is saved as them alone; name the base=FOLDER "
                         "of the weights, or merge the adapters to save all")
    if base is not None and not is_apart:
        raise ValueError(f"base={base} is for a model with adapters beside its weights, which this one lacks; leave it "
                         "out")
    if is_apart and (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a whole model, perhaps the base itself; choose another folder for adapters")


def _as_dtype(tensors: dict[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    """The same tensors in another dtype; None leaves them as they are."""
    if dtype is None:
        return tensors
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    narrow = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
    if wrong := [name for name, tensor in narrow.items() if not tensor.isfinite().all()]:
        raise ValueError(f"{wrong[0]} holds a number that {dtype} cannot; choose bfloat16 or float32")
    return narrow


def load(
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, dropout: float = 0.0,
    merged: bool = True,
) -> tuple[Decoder, Tokenizer | None]:
    """Read a model and its tokenizer.

    Args:
        path: a run folder (its best checkpoint, else its latest), a checkpoint, a Hugging Face folder, a .gguf file, or
            a PEFT adapter folder, whose base is where its adapter_config.json says, or beside it.
        device: where to put the weights.
        dtype: of the weights; what the model computes in without autocast. Training needs float32; bfloat16 halves
            the memory of a model that only writes.
        dropout: for training it further.
        merged: of a PEFT folder: a plain model with the adapters in its weights. Otherwise they stay beside them, and
            are all that is trainable: to train them further, or for `disabled`.

    Returns:
        The model in evaluation mode, and its tokenizer if the folder (of an adapter: or that of its base) has one.

    Raises:
        ValueError: if there is no model at the path, its files are damaged or of an unsupported kind, or an adapter's
            base is not there or another model.
    """
    folder = find_checkpoint(path)
    if peft.is_adapter(folder):
        adapter = peft.read_adapter(folder)
        if adapter.is_classifier:
            raise _writes_no_text(folder)
        base = _base_of(folder, adapter)
        model, tokenizer = load(base, device=device, dtype=dtype, dropout=dropout)
        _grow_as(folder, model, base)
        peft.inject_adapter(model, adapter, peft.read_adapter_tensors(folder))
        return _finished(model, merged=merged), _tokenizer_of(folder) or tokenizer
    if is_gguf(folder):
        model, tokenizer = gguf.load(folder, dropout=dropout)
        return model.to(device, dtype).eval(), tokenizer
    model = _empty(folder, dropout)
    if hf_config.classifier_labels(read_json(folder / "config.json")) is not None:
        raise _writes_no_text(folder)
    state = huggingface.state_for(model, TensorFiles(folder), dtype=dtype, device=device)
    model.load_state_dict(state, assign=True)
    return model.eval(), _tokenizer_of(folder)


def load_classifier(
    path: str | Path, *, device: torch.device | str = "cpu", dropout: float = 0.0, merged: bool = True
) -> tuple[Classifier, Tokenizer | None]:
    """Read a classifier and its tokenizer, ours or transformers'; arguments, result and errors as of `load`.

    Raises:
        ValueError: also if the folder holds no classifier.
    """
    folder = find_checkpoint(path)
    if peft.is_adapter(folder) and (adapter := peft.read_adapter(folder)).is_classifier:
        return _load_adapted_classifier(folder, adapter, device=device, dropout=dropout, merged=merged)
    table = _config_of(folder)
    if peft.is_adapter(folder) or (labels := hf_config.classifier_labels(table)) is None:
        raise ValueError(f"{folder} holds no classifier; train one with llm.tasks.classify --model {path}")
    model = Classifier(_empty(folder, dropout), labels=labels, pad_id=table.get("pad_token_id"))
    tensors = TensorFiles(folder)
    if "lm_head.weight" not in tensors:   # a classifier can do without
        model.decoder.head = None
    model.load_state_dict(huggingface.state_for(model, tensors, device=device), assign=True)
    return model.eval(), _tokenizer_of(folder)


def _load_adapted_classifier(
    folder: Path, adapter: peft.Adapter, *, device: torch.device | str, dropout: float, merged: bool
) -> tuple[Classifier, Tokenizer | None]:
    """The scores are the adapter's or, of a base that is a classifier already, the base's; so are the labels' names."""
    base, tensors, table = _base_of(folder, adapter), peft.read_adapter_tensors(folder), _config_of(folder)
    score = tensors.pop(peft.PREFIX + huggingface.SCORE, None)
    labels, pad_id = hf_config.classifier_labels(table), table.get("pad_token_id")
    if hf_config.classifier_labels(_config_of(base)) is not None:
        before, tokenizer = load_classifier(base, device=device, dropout=dropout)
        decoder, labels = before.decoder, labels or list(before.labels)
        pad_id = before.pad_id if pad_id is None else pad_id
        score = before.score.weight.detach() if score is None else score
    else:
        decoder, tokenizer = load(base, device=device, dropout=dropout)
        decoder.head = None   # which adapters of a classifier were not trained for
    _grow_as(folder, decoder, base)
    labels = labels or [f"LABEL_{number}" for number in range(0 if score is None else len(score))]
    model = Classifier(decoder, labels=labels, pad_id=pad_id, generator=torch.Generator(decoder.embed.weight.device))
    peft.load_score(model, score, folder)
    peft.inject_adapter(decoder, adapter, tensors)
    return _finished(model, merged=merged), _tokenizer_of(folder) or tokenizer


def _finished(model: Model, *, merged: bool) -> Model:
    """Ready for use: plain where the adapters are to be merged."""
    if merged:
        merge(model)
        eject(model)
        model.requires_grad_(True)
    return model.eval()


def _grow_as(folder: Path, model: Decoder, base: Path) -> None:
    """Give the base of an adapter the vocabulary that it had in training.

    Raises:
        ValueError: if the folder describes another model.
    """
    if (folder / peft.MODEL).is_file():
        config = read_config(folder)
        model.grow(config.vocab_size)
        if config != model.config:
            raise ValueError(f"{base} is not the model that the adapters in {folder} were trained on: its config.json "
                             f"does not fit their {peft.MODEL}; put that model's folder there again")


def _base_of(folder: Path, adapter: peft.Adapter) -> Path:
    """Where the weights are that an adapter stands on: as it says, or in a folder of that name beside it.

    Raises:
        ValueError: if they are nowhere, or adapters themselves.
    """
    name = re.split(r"[/\\]", adapter.base)[-1]
    beside = folder.parent / name
    places = [Path(adapter.base)] if adapter.base else []
    places += [beside] if name not in ("", ".", "..") else []
    for place in places:
        if place.is_dir() or is_gguf(place):
            base = find_checkpoint(place)
            if peft.is_adapter(base):
                raise ValueError(f"{folder} stands on {base}, which holds adapters itself; merge those and save them "
                                 "as a whole model first")
            return base
    others = ""
    if (folder.parent / "merged").is_dir():
        others = f", or use {folder.parent / 'merged'}, which needs none"
    raise ValueError(f"{folder} holds adapters without their base {adapter.base!r}, which is not there; put that "
                     f"model's folder at {beside}, or its path into base_model_name_or_path of "
                     f"{folder / peft.CONFIG}{others}")


def _writes_no_text(folder: Path) -> ValueError:
    return ValueError(f"{folder} holds a classifier, which writes no text; use it with "
                      "llm.tasks.classify --predict, or load_classifier")


def _empty(folder: Path, dropout: float) -> Decoder:
    """The decoder that a Hugging Face folder's config.json describes, on the meta device."""
    config = read_config(folder)
    huggingface.check_counts(config, len(TensorFiles(folder)))
    try:
        return empty_model(config, dropout=dropout)
    except RuntimeError as error:   # sizes whose product no integer holds
        raise ValueError(f"{folder / 'config.json'} asks for impossible sizes: {error}") from error


def _config_of(folder: Path) -> dict[str, Any]:
    """A folder's config.json; empty for a file, or a folder without one."""
    return read_json(_config_file(folder)) if _config_file(folder).is_file() else {}


def _config_file(folder: Path) -> Path:
    """A config.json beside adapters would make transformers look for all weights there."""
    return folder / (peft.MODEL if peft.is_adapter(folder) else "config.json")


def _tokenizer_of(folder: Path) -> Tokenizer | None:
    return Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill an existing model with the weights of a checkpoint, in place and strictly; with adapters, only those.

    Raises:
        ValueError: if the file is missing, damaged, or of another model.
    """
    model = unwrapped(model)
    if isinstance(model, Decoder | Classifier) and peft.is_adapter(folder):
        peft.load_adapter(model, folder)
        return
    if isinstance(model, Decoder | Classifier):
        huggingface.state_for(model, TensorFiles(folder))   # fills the state dict, which shares the model's memory
        return
    if isinstance(model, Wrapped):
        model.load_weights(folder)
        return
    read_tensors(folder / WEIGHTS)   # complains of a missing or damaged file in our words
    try:
        safetensors.torch.load_model(model, str(folder / WEIGHTS))   # copes with tensors that modules share
    except RuntimeError as error:   # names every missing, unknown and misshapen tensor
        raise ValueError(f"{folder / WEIGHTS} does not fit this model: {error}") from error


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`'s wrapper, whose prefix `_orig_mod.` has no place in a file."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):   # importing its class costs two seconds
        model = inner
    return model


def find_checkpoint(path: str | Path) -> Path:
    """The folder with the weights, or the adapters: the path itself, or the best (else latest) checkpoint of a run.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path)
    if is_gguf(path) or (path / "config.json").is_file() or peft.is_adapter(path):
        return path
    index = CheckpointStore(path / "checkpoints").read_index()
    step = index["best"] if index["best"] is not None else index["latest"]
    if step is None:
        what = ("holds no complete checkpoint" if path.is_dir() else "is a file" if path.exists() else
                "does not exist")
        raise ValueError(f"{path} {what}; name a run folder, a checkpoint, a Hugging Face folder or a "
                         ".gguf file")
    return path / "checkpoints" / step_name(step)


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a Hugging Face folder or a .gguf file; of an adapter folder without one, its base's."""
    if is_gguf(folder):
        return gguf.read_config(folder)
    path = _config_file(folder)
    if peft.is_adapter(folder) and not path.is_file():
        return read_config(_base_of(folder, peft.read_adapter(folder)))
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json; the weights of a module of your own are loaded with "
                         "`load_weights` into such a module")
    try:
        return hf_config.from_config(read_json(path, keys=("model_type",)))
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from error


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name."""
    return path.suffix == ".gguf" and path.is_file()


def weights_hash(folder: Path) -> str:
    """sha256 over configuration and weights of a Hugging Face folder, or of a .gguf file."""
    digest = hashlib.sha256()
    files = [folder / "config.json", *sorted(set(TensorFiles(folder).homes.values()))] if folder.is_dir() else [folder]
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
