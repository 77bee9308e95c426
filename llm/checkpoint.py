"""Saving and loading. A checkpoint is a Hugging Face folder, and beside it, for resuming, the state of the trainer.

    step-00000500/   config.json  model.safetensors  tokenizer.json  tokenizer_config.json  generation_config.json
                     trainer/state.json  trainer/optimizer.safetensors
    index.json       which steps are complete, the latest, the best

Everything is first written under another name, forced to the disk and then renamed, the index last; a run that is
killed at any moment loses nothing that the index names. Weights are only ever read as safetensors, never unpickled.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from llm.interop import gguf, hf_config, huggingface
from llm.interop.shards import REMEDY, WEIGHTS, TensorFiles, read_json, write_tensors
from llm.interop.wrapped import Wrapped
from llm.models.build import empty_model
from llm.models.classifier import Classifier
from llm.models.config import ModelConfig
from llm.models.decoder import Decoder
from llm.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNFINISHED = ".unfinished-"


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a model as a Hugging Face folder that transformers opens and `load` reads back to the bit.

    A wrapped model of transformers is saved as its library does; a module of your own, without a configuration of
    ours, as its weights alone.

    Args:
        model: a decoder, or any module.
        folder: made if need be; files of the same names in it are replaced.
        tokenizer: saved along, for AutoTokenizer and for `load`.
        dtype: of a decoder's weights in the file: "float32", "bfloat16" or "float16"; default as they are.
        max_shard_bytes: larger weights are split over several files, with an index.

    Raises:
        ValueError: for another dtype, or if a weight is too large for it.

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
        tensors = _as_dtype(huggingface.weights_of(model), dtype)
        written = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        if isinstance(model, Classifier):
            table = hf_config.to_classifier_config(config, model.labels, eos_id=ids["eos_token_id"],
                                                   pad_id=model.pad_id, dtype=written)
        else:
            table = hf_config.to_config(config, eos_id=ids["eos_token_id"], dtype=written)
        _write_json(folder / "config.json", table | {"bos_token_id": ids["bos_token_id"]})
        _write_json(folder / "generation_config.json", ids)
        write_tensors(tensors, folder, max_shard_bytes=max_shard_bytes)
    elif isinstance(model, Wrapped):
        model.save_weights(folder)
    else:
        safetensors.torch.save_model(model, str(folder / WEIGHTS))   # copes with tensors that modules share
    if tokenizer is not None:
        tokenizer.save(folder)


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
    path: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, dropout: float = 0.0
) -> tuple[Decoder, Tokenizer | None]:
    """Read a model and its tokenizer.

    Args:
        path: a run folder (its best checkpoint, else its latest), a checkpoint, a Hugging Face folder, or a .gguf file.
        device: where to put the weights.
        dtype: of the weights; what the model computes in without autocast. Training needs float32; bfloat16 halves
            the memory of a model that only writes.
        dropout: for training it further.

    Returns:
        The model in evaluation mode, and its tokenizer if the folder has one.

    Raises:
        ValueError: if there is no model at the path, or its files are damaged or of an unsupported kind.
    """
    folder = find_checkpoint(path)
    if is_gguf(folder):
        model, tokenizer = gguf.load(folder, dropout=dropout)
        return model.to(device, dtype).eval(), tokenizer
    model = _empty(folder, dropout)
    if hf_config.classifier_labels(_read_json(folder / "config.json")) is not None:
        raise ValueError(f"{folder} holds a classifier, which writes no text; use it with "
                         "llm.tasks.classify --predict, or load_classifier")
    state = huggingface.state_for(model, TensorFiles(folder), dtype=dtype, device=device)
    model.load_state_dict(state, assign=True)
    return model.eval(), _tokenizer_of(folder)


def load_classifier(
    path: str | Path, *, device: torch.device | str = "cpu", dropout: float = 0.0
) -> tuple[Classifier, Tokenizer | None]:
    """Read a classifier and its tokenizer, ours or transformers'; arguments, result and errors as of `load`.

    Raises:
        ValueError: also if the folder holds no classifier.
    """
    folder = find_checkpoint(path)
    has_config = not is_gguf(folder) and (folder / "config.json").is_file()
    table = _read_json(folder / "config.json") if has_config else {}
    if (labels := hf_config.classifier_labels(table)) is None:
        raise ValueError(f"{folder} holds no classifier; train one with llm.tasks.classify --model {path}")
    model = Classifier(_empty(folder, dropout), labels=labels, pad_id=table.get("pad_token_id"))
    tensors = TensorFiles(folder)
    if "lm_head.weight" not in tensors:   # a classifier can do without
        model.decoder.head = None
    model.load_state_dict(huggingface.state_for(model, tensors, device=device), assign=True)
    return model.eval(), _tokenizer_of(folder)


def _empty(folder: Path, dropout: float) -> Decoder:
    """The decoder that a Hugging Face folder's config.json describes, on the meta device."""
    config = read_config(folder)
    huggingface.check_counts(config, len(TensorFiles(folder)))
    try:
        return empty_model(config, dropout=dropout)
    except RuntimeError as error:   # sizes whose product no integer holds
        raise ValueError(f"{folder / 'config.json'} asks for impossible sizes: {error}") from error


def _tokenizer_of(folder: Path) -> Tokenizer | None:
    return Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill an existing model with the weights of a checkpoint, in place and strictly.

    Raises:
        ValueError: if the file is missing, damaged, or of another model.
    """
    model = unwrapped(model)
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
    """The folder with the weights: the path itself, or the best (else latest) checkpoint of a run.

    Raises:
        ValueError: if there is none.
    """
    path = Path(path)
    if is_gguf(path) or (path / "config.json").is_file():
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
    """The configuration of a Hugging Face folder or a .gguf file."""
    if is_gguf(folder):
        return gguf.read_config(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; the weights of a module of your own are loaded with "
                         "`load_weights` into such a module")
    try:
        return hf_config.from_config(_read_json(folder / "config.json", keys=("model_type",)))
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} lacks {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        ValueError: if it is missing or damaged.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; weights are read only from safetensors files")
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}; {REMEDY}") from error


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name."""
    return path.suffix == ".gguf" and path.is_file()


def step_name(step: int) -> str:
    """The folder name of a step."""
    return f"step-{step:08d}"


class CheckpointStore:
    """The checkpoints of one run: what is complete, the latest, the best; writes a new one, removes old ones.

    Args:
        folder: `checkpoints` of the run.
        keep: how many of the newest to keep; the best is kept besides. 0 keeps all.
    """

    def __init__(self, folder: Path, *, keep: int = 0):
        self.folder = folder
        self.keep = keep

    def read_index(self) -> dict[str, Any]:
        """`complete` (steps, ascending), `latest`, `best`; empty if nothing was saved yet.

        A folder has its name only when it is complete, so that a lost index, or folders deleted by hand, cost nothing
        else.

        Raises:
            ValueError: if the index is damaged.
        """
        found = sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-????????")
                       if path.name[5:].isdecimal() and path.is_dir())
        file, remedy = self.folder / "index.json", "delete it, the folders beside it tell the same"
        if not file.exists():
            return {"complete": found, "latest": found[-1] if found else None, "best": None}
        index = _read_json(file, keys=("complete", "latest", "best"), remedy=remedy)
        steps = [*index["complete"], index["latest"], index["best"]] if isinstance(index["complete"], list) else [""]
        if not all(step is None or type(step) is int for step in steps):
            raise ValueError(f"{file} is damaged: its steps are no numbers; {remedy}")
        complete = [step for step in index["complete"] if step in found]
        latest, best = (index[name] if index[name] in complete else None for name in ("latest", "best"))
        if latest is None and complete:
            latest = complete[-1]
        return {"complete": complete, "latest": latest, "best": best}

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / step_name(step)

    def write(self, step: int, fill: Callable[[Path], None], *, is_best: bool) -> None:
        """Make the checkpoint of a step complete, or leave everything as it was.

        Args:
            step: the optimizer steps done.
            fill: writes the files into the folder it is given.
            is_best: whether this step becomes the best.

        Raises:
            ValueError: if the step is saved already; a folder cannot be replaced in one instant.
            OSError: if the disk is full or refuses otherwise.
        """
        if step in self.read_index()["complete"]:
            raise ValueError(f"{self.path(step)} is saved already; choose another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clean()
        target = self.path(step)
        with _finished_folder(self.folder / f"{UNFINISHED}{target.name}", target) as unfinished:
            fill(unfinished)
        index = self.read_index()
        steps = sorted({*index["complete"], step})
        best = step if is_best else index["best"]
        kept = [other for other in steps if other in (steps[-self.keep :] if self.keep else steps) or other == best]
        self._write_index({"complete": kept, "latest": step, "best": best})
        for other in set(steps) - set(kept):
            shutil.rmtree(self.path(other))

    def clean(self) -> None:
        """Remove what killed runs left behind: unfinished folders, and steps that the index does not name."""
        complete = {step_name(step) for step in self.read_index()["complete"]}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in complete and path.name.startswith((UNFINISHED, "step-")):
                shutil.rmtree(path)

    def _write_index(self, index: dict[str, Any]) -> None:
        unfinished = self.folder / f"{UNFINISHED}index.json"
        _write_json(unfinished, index)
        _sync(unfinished)
        os.replace(unfinished, self.folder / "index.json")
        _sync(self.folder)


def write_trainer_state(folder: Path, state: Mapping[str, Any], optimizer: Mapping[str, Tensor]) -> None:
    """Write `trainer/` of a checkpoint: plain values as JSON, the optimizer's tensors as safetensors."""
    (folder / "trainer").mkdir()
    _write_json(folder / "trainer" / "state.json", state)
    safetensors.torch.save_file(dict(optimizer), folder / "trainer" / "optimizer.safetensors")


def read_trainer_state(folder: Path, *, keys: Iterable[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The counterpart of `write_trainer_state`; `keys` are those that the state must have.

    Raises:
        ValueError: if the folder holds a model only, or its files are damaged.
    """
    path = folder / "trainer" / "state.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no trainer/ to resume from; start from its weights with --model")
    return _read_json(path, keys=keys), read_tensors(folder / "trainer" / "optimizer.safetensors")


@contextmanager
def _finished_folder(unfinished: Path, target: Path) -> Iterator[Path]:
    """A folder to fill; when that succeeds it is on the disk under its final name, else it is gone."""
    unfinished.mkdir()
    try:
        yield unfinished
        for path in sorted(unfinished.rglob("*")):
            _sync(path)
        _sync(unfinished)
        os.replace(unfinished, target)
        _sync(target.parent)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OSError(f"{target} could not be written: {error}; the checkpoints before it are untouched") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    if os.name == "nt" and path.is_dir():
        return   # Windows cannot open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_json(path: Path, *, keys: Iterable[str] = (), remedy: str = REMEDY) -> dict[str, Any]:
    """An object with at least these keys, or a ValueError that names the file."""
    table = read_json(path, remedy=remedy)
    if missing := [key for key in keys if key not in table]:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}; {remedy}")
    return table


def _write_json(path: Path, table: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
