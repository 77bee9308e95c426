"""Laws of saving: what the index names is whole, whatever happens in between; and a file is never more than numbers."""

import json
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import llm
from llm.checkpoint import UNFINISHED, CheckpointStore, find_checkpoint, load_weights, read_trainer_state, step_name
from llm.models.build import build_model
from llm.models.config import ModelConfig
from tests.conftest import TINY, random_ids, random_model, windows


def number(path: Path, value: int) -> None:
    (path / "number.txt").write_text(str(value))


def store_with(folder: Path, steps: int, *, keep: int = 0, best: int | None = None) -> CheckpointStore:
    store = CheckpointStore(folder, keep=keep)
    for step in range(1, steps + 1):
        store.write(step, lambda path, step=step: number(path, step), is_best=step == best)   # type: ignore[misc]
    return store


def folders(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.is_dir())


def tiny_trainer(folder: Path) -> llm.Trainer:
    config = llm.TrainConfig(steps=4, batch_size=8, device="cpu", precision="fp32", save_every=2, eval_every=0, keep=0)
    model = build_model(TINY["qwen3"], generator=torch.Generator().manual_seed(7))
    return llm.Trainer(model, llm.NextToken(), train=windows(), config=config, folder=folder)


def saved_trainer(folder: Path) -> llm.Trainer:
    """After two steps, the second of them saved."""
    trainer = tiny_trainer(folder)
    for _ in range(2):
        trainer.train_step()
    trainer.save(is_best=False)
    return trainer


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """The system refuses to write a file beyond this many bytes, much as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Shared(nn.Module):
    """A module of a user's own: two layers with one weight, a buffer, and a name that is not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        self.outer.weight = self.inner.weight
        self.norm = nn.BatchNorm1d(4)


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_newest_and_the_best_survive(tmp_path: Path, keep: int) -> None:
    store = store_with(tmp_path, 6, keep=keep, best=2)
    kept = {0: [1, 2, 3, 4, 5, 6], 1: [2, 6], 2: [2, 5, 6]}[keep]
    assert store.read_index() == {"complete": kept, "latest": 6, "best": 2}
    assert folders(store) == [step_name(step) for step in kept]
    assert find_checkpoint_of(tmp_path) == 2


def find_checkpoint_of(folder: Path) -> int:
    """The step that a run folder stands for; `checkpoints` is linked so that the store above is part of a run."""
    run = folder.parent / f"{folder.name}-run"
    run.mkdir()
    (run / "checkpoints").symlink_to(folder)
    return int((find_checkpoint(run) / "number.txt").read_text())


@pytest.mark.parametrize("error", [ValueError("mistake"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_save_that_raises_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    store = store_with(tmp_path, 2, keep=1)
    before = store.read_index()

    def fail(path: Path) -> None:
        number(path, 3)
        raise error

    with pytest.raises(type(error)):
        store.write(3, fail, is_best=True)
    assert store.read_index() == before
    assert folders(store) == [step_name(2)]


@pytest.mark.parametrize("size", [0, 1, 100, 3000, 20_000, 50_000])
def test_a_save_that_is_cut_off_at_any_byte_loses_nothing(tmp_path: Path, size: int) -> None:
    """Some sizes cut the JSON files, some the weights (31 kB), the last one the optimizer's state (65 kB)."""
    trainer = saved_trainer(tmp_path)
    before = trainer.store.read_index()
    trainer.state.step = 3
    with files_end_at(size), pytest.raises(OSError, match=r"step-00000003 could not be written.*are untouched"):
        trainer.save(is_best=True)
    assert trainer.store.read_index() == before
    assert folders(trainer.store) == [step_name(2)]
    again = tiny_trainer(tmp_path)
    assert again.resume()
    for one, other in zip(again.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    trainer.save(is_best=True)   # and when there is room again, it works
    assert trainer.store.read_index() == {"complete": [2, 3], "latest": 3, "best": 3}


def test_what_a_killed_run_left_behind_is_cleaned_away(tmp_path: Path) -> None:
    store = store_with(tmp_path, 2)
    for name in (f"{UNFINISHED}{step_name(3)}", step_name(3), f"{UNFINISHED}{step_name(9)}"):
        number_folder = tmp_path / name   # killed while writing, between the rename and the index, long ago
        number_folder.mkdir()
        number(number_folder, -1)
    store.write(3, lambda path: number(path, 3), is_best=False)
    assert folders(store) == [step_name(1), step_name(2), step_name(3)]
    assert (tmp_path / step_name(3) / "number.txt").read_text() == "3"


def test_a_complete_step_is_not_written_over(tmp_path: Path) -> None:
    store = store_with(tmp_path, 2)
    with pytest.raises(ValueError, match="saved already"):
        store.write(2, lambda path: number(path, 9), is_best=False)
    assert (tmp_path / step_name(2) / "number.txt").read_text() == "2"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "was_run",)

    llm.save(random_model(TINY["gpt"]), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(pickle.dumps({"weight": Malicious()}))
    with pytest.raises(ValueError, match=r"is damaged|read only from safetensors files"):
        llm.load(tmp_path)
    pickle.loads((tmp_path / name).read_bytes())   # it would have been
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize("damage", [
    b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"complete": [2]}', b'{"model_type": "gpt2"}'], ids=len)
@pytest.mark.parametrize("name", ["index.json", "step-00000002/trainer/state.json", "step-00000002/config.json"])
def test_a_damaged_table_is_named(tmp_path: Path, name: str, damage: bytes) -> None:
    saved_trainer(tmp_path)
    path = tmp_path / "checkpoints" / name
    path.write_bytes(damage)
    with pytest.raises(ValueError, match=f"{path.name}.*(damaged|lacks)"):
        llm.load(tmp_path) if path.name == "config.json" else tiny_trainer(tmp_path).resume()


@pytest.mark.parametrize("cut", [0, 7, 100, 10_000])
@pytest.mark.parametrize("name", ["model.safetensors", "trainer/optimizer.safetensors"])
def test_a_truncated_tensor_file_is_named(tmp_path: Path, name: str, cut: int) -> None:
    saved_trainer(tmp_path)
    path = tmp_path / "checkpoints" / "step-00000002" / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        tiny_trainer(tmp_path).resume()


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        llm.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        llm.load(tmp_path)
    llm.save(random_model(TINY["gpt"]), tmp_path)
    with pytest.raises(ValueError, match="has no trainer/ to resume from"):
        read_trainer_state(tmp_path, keys=())


def test_compiling_and_checkpointing_change_no_name(tiny_config: ModelConfig, tmp_path: Path) -> None:
    models = [random_model(tiny_config) for _ in range(4)]
    for block in models[1].blocks:
        block.compile()
    models[2].use_checkpointing = True
    wrapped = [*models[:3], torch.compile(models[3])]
    for place, model in enumerate(wrapped):
        llm.save(model, tmp_path / str(place))   # type: ignore[arg-type]
    contents = {(tmp_path / str(place) / "model.safetensors").read_bytes() for place in range(4)}
    assert len(contents) == 1
    for model in wrapped:
        load_weights(model, tmp_path / "0")   # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile])
def test_a_module_of_ones_own_with_shared_tensors_is_saved_exactly(tmp_path: Path, wrap: Any) -> None:
    torch.manual_seed(1)
    model, other = Shared(), Shared()
    model.norm(torch.randn(8, 4))   # moves its buffers
    llm.save(wrap(model), tmp_path)
    load_weights(wrap(other), tmp_path)
    assert other.outer.weight is other.inner.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_weights_of_another_module_are_refused_by_name(tmp_path: Path) -> None:
    llm.save(nn.Linear(3, 2), tmp_path)
    with pytest.raises(ValueError, match=r"does not fit this model[\s\S]*weight"):
        load_weights(nn.Linear(2, 2), tmp_path)
    with pytest.raises(ValueError, match=r"does not fit this model[\s\S]*inner"):
        load_weights(Shared(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="is damaged"):
        load_weights(nn.Linear(3, 2), tmp_path)


def test_weights_in_half_precision_load_as_float32(tmp_path: Path) -> None:
    model = random_model(TINY["qwen3"])
    llm.save(model.to(torch.bfloat16), tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    again, _ = llm.load(tmp_path, dropout=0.5)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert not again.training
    assert torch.equal(again(random_ids(1, 5)).logits, model.float()(random_ids(1, 5)).logits)


def test_a_signal_in_the_middle_of_a_save_waits_for_its_end(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    interrupt_saves(trainer, signal.SIGTERM)
    assert trainer.fit().step == 2
    assert trainer.store.read_index()["latest"] == 2
    assert trainer.stop_signal == signal.SIGTERM
    assert trainer.fit().step == 4   # calling fit again goes on


def test_a_second_interrupt_in_the_middle_of_a_save_undoes_it(tmp_path: Path) -> None:
    trainer, before = tiny_trainer(tmp_path), signal.getsignal(signal.SIGINT)
    interrupt_saves(trainer, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.store.read_index()["latest"] is None
    assert folders(trainer.store) == []
    assert signal.getsignal(signal.SIGINT) is before


def interrupt_saves(trainer: llm.Trainer, *signals: int) -> None:
    """Real signals, sent while the first save gathers the weights."""
    remaining = list(signals)

    def send(*_: Any) -> None:
        while remaining and trainer.state.step:
            os.kill(os.getpid(), remaining.pop(0))

    trainer.model.register_state_dict_pre_hook(send)


def test_nothing_but_numbers_and_text_is_in_a_checkpoint(tmp_path: Path) -> None:
    saved_trainer(tmp_path)
    folder = tmp_path / "checkpoints" / "step-00000002"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:
        json.loads(path.read_text()) if path.suffix == ".json" else safetensors.torch.load_file(path)


def test_a_file_in_place_of_a_folder_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; name a run folder"):
        llm.load(tmp_path / "model.safetensors")
