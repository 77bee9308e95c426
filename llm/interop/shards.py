"""The weights of a Hugging Face folder: one safetensors file, or several with an index that says what is where.

Reading is lazy: a tensor is mapped from its file when it is asked for and costs memory only where it is copied to.
Nothing in a folder is trusted: an index can name only files beside it, and must agree with what they hold.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 100 << 20   # of an index or configuration; the largest published ones are a tenth of it
REOPEN_BYTES = 256 << 20     # pages of a mapped file count as ours until it is closed; so that is done now and then
REMEDY = "copy it again, or use another checkpoint: a run without its newest step folder goes on with the one before"


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a folder by name, read when asked for.

    Args:
        folder: with `model.safetensors`, or `model.safetensors.index.json` and the files it names.

    Raises:
        ValueError: if there are no weights, only pickled ones, a file is damaged or missing, or the index disagrees
            with the files.
    """

    def __init__(self, folder: Path):
        self.homes: dict[str, Path] = {}
        if (folder / WEIGHTS).is_file():
            self.homes = dict.fromkeys(_names(folder / WEIGHTS), folder / WEIGHTS)
        elif (folder / INDEX).is_file():
            self.homes = _indexed(folder)
        else:
            pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
            what = f"only {pickled[0]}, a pickle, which can run any code when it is read" if pickled else "no weights"
            raise ValueError(f"{folder} holds {what}; weights are read only from safetensors files, which transformers "
                             "writes when it saves a model again")
        self._path: Path | None = None
        self._file: Any = None
        self._bytes = 0

    def __getitem__(self, name: str) -> Tensor:
        path = self.homes[name]
        if path != self._path or self._bytes > REOPEN_BYTES:
            self._file = None   # unmaps what was read so far
            self._file, self._path, self._bytes = _open(path), path, 0
        tensor = self._file.get_tensor(name)
        self._bytes += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, *, max_shard_bytes: int) -> None:
    """Write weights as one file, or above `max_shard_bytes` as several with an index; older weights go.

    Args:
        tensors: contiguous.
        folder: an existing one.
        max_shard_bytes: the most that one file holds, unless a single tensor is larger.

    Raises:
        ValueError: if max_shard_bytes is below 1.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes={max_shard_bytes} must be at least 1")
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    count = len(shards)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    names = names if count > 1 else [WEIGHTS]
    for name, shard in zip(names, shards, strict=True):
        safetensors.torch.save_file(shard, folder / name, metadata={"format": "pt"})
    for old in (folder / WEIGHTS, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if old.name not in names:
            old.unlink(missing_ok=True)
    if count > 1:
        homes = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": homes}
        write_json(folder / INDEX, index)


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


def read_json(path: Path, *, keys: Iterable[str] = (), remedy: str = REMEDY) -> dict[str, Any]:
    """A JSON object with at least these keys, or a ValueError that names the file and what to do."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a file of its kind has at most {MAX_JSON_BYTES:,}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; {remedy}") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path} is damaged: it holds no object; {remedy}")
    if missing := [key for key in keys if key not in table]:
        raise ValueError(f"{path} is damaged: it lacks {', '.join(missing)}; {remedy}")
    return table


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a JSON object as people read it."""
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}; {REMEDY}") from error


def _names(path: Path) -> list[str]:
    return list(_open(path).keys())


def _indexed(folder: Path) -> dict[str, Path]:
    """Name to file, as the index says and the files confirm."""
    index = read_json(folder / INDEX)
    homes = index.get("weight_map")
    if not isinstance(homes, dict) or not all(isinstance(name, str) for name in homes.values()):
        raise ValueError(f"{folder / INDEX} is damaged: weight_map is no table of file names")
    files = sorted(set(homes.values()))
    for name in files:
        # a name with a folder in it could point anywhere on the machine
        if name != Path(name).name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX} names {name!r}, which is not a safetensors file beside it")
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {_some(missing)}, named by {INDEX}; copy the folder again")
    wrong: list[str] = []
    found: dict[str, str] = {}
    for name in files:
        for tensor in _names(folder / name):
            if tensor in found:
                wrong.append(f"{tensor} stands in {found[tensor]} and in {name}")
            elif homes.get(tensor) != name:
                wrong.append(f"{tensor} stands in {name}, but the index says {homes.get(tensor, 'nothing of it')}")
            found[tensor] = name
    wrong += [f"{tensor} is not in {name}" for tensor, name in homes.items() if tensor not in found]
    if wrong:
        raise ValueError(f"{folder / INDEX} does not fit its files: {_some(wrong)}")
    return {tensor: folder / name for tensor, name in homes.items()}


def _some(complaints: list[str]) -> str:
    return "; ".join(complaints[:8]) + (f"; and {len(complaints) - 8} more" if len(complaints) > 8 else "")
