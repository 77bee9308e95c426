"""The law of several processes: they are one. What two compute together is what one computes alone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import llm
from llm.checkpoint import read_tensors, read_trainer_state
from llm.data.loader import MicroBatch
from llm.evaluate import evaluate
from llm.losses import IGNORE_INDEX
from llm.models.build import build_model
from llm.runtime import World
from llm.train.logger import read_rows
from tests.conftest import TINY, random_model, windows
from tests.processes import Pair
from tests.train.test_trainer import CPU, interrupt_after, ragged_batch, rows_without_times, settings

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pair")]   # one pair of processes for all of them


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    both = Pair()
    yield both
    both.close()


def trainer(world: World, folder: Path | None = None, *, family: str = "qwen3", dropout: float = 0.0,
            **changes: Any) -> llm.Trainer:
    model = build_model(TINY[family], dropout=dropout, generator=torch.Generator().manual_seed(7))
    return llm.Trainer(model, llm.NextToken([1] * 61), train=windows(), val=windows(100, is_shifted=False),
                       config=settings(**changes), folder=folder, world=world)


def gradients(ours: llm.Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in ours.model.named_parameters()}


def talk(world: World) -> list[Any]:
    with world.main_first():
        pass
    long = "é" * 3000 * (world.rank + 1)
    return [world.rank, world.gather({"rank": world.rank, "number": float("inf")}), world.gather(long) == [
        "é" * 3000, "é" * 6000], world.total([1.0, float(world.rank)]),
        world.total_by_name({"shared": [1.0, 2.0]} | ({"mine": [5.0]} if world.rank else {}))]


def test_every_process_hears_what_all_say(pair: Pair) -> None:
    for rank, answer in enumerate(pair(talk)):
        assert answer == [rank, [{"rank": 0, "number": float("inf")}, {"rank": 1, "number": float("inf")}], True,
                          [2.0, 1.0], {"shared": [2.0, 4.0], "mine": [5.0]}]


def disagree(world: World) -> str:
    world.agree("the weather", "fine")
    with pytest.raises(ValueError) as caught:
        world.agree("the weather", ["sun", "rain"][world.rank])
    return str(caught.value)


def test_a_disagreement_is_an_error_everywhere(pair: Pair) -> None:
    assert len({*pair(disagree)}) == 1
    assert pair(disagree)[0].startswith("the processes disagree about the weather: sun, rain; start all")


def parts_of(batch: dict[str, torch.Tensor], pieces: int) -> list[MicroBatch]:
    return [MicroBatch(dict(zip(batch, rows, strict=True)), False)
            for rows in zip(*(tensor.chunk(pieces) for tensor in batch.values()), strict=True)]


def batch_for(case: str) -> dict[str, torch.Tensor]:
    batch = ragged_batch()
    if case == "nothing for the second process":
        batch["targets"][4:] = IGNORE_INDEX
    return batch


def share_of_step(world: World, family: str, case: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """Two micro-batches of two rows in each process."""
    ours = trainer(world, family=family)
    micro_batches = parts_of(batch_for(case), 4)[2 * world.rank : 2 * world.rank + 2]
    if case == "an empty micro-batch" and world.rank == 1:
        micro_batches[1] = MicroBatch(micro_batches[1].batch, is_empty=True)
    return ours._backward(micro_batches), gradients(ours)


@pytest.mark.parametrize("case", ["ragged", "nothing for the second process", "an empty micro-batch"])
@pytest.mark.parametrize("family", ["gpt", "qwen3", "qwen2", "qwen3_moe"])
def test_one_batch_of_8_is_2_processes_x_2_micro_batches_of_2(pair: Pair, family: str, case: str) -> None:
    alone, whole = trainer(CPU, family=family), batch_for(case)
    if case == "an empty micro-batch":
        whole = {name: tensor[:6] for name, tensor in whole.items()}
    expected = alone._backward([MicroBatch(whole, False)])
    for found, shared in pair(share_of_step, family, case):
        assert found[0] == expected[0]
        assert found[1] == pytest.approx(expected[1], rel=1e-6)
        assert found[2].keys() == expected[2].keys()   # the metrics
        for name, value in expected[2].items():
            if not name.startswith(("dead_experts", "peak_load")):   # these are of each micro-batch on its own
                assert found[2][name] == pytest.approx(value, rel=1e-5 if family == "qwen3_moe" else 1e-6), name
        for name, gradient in gradients(alone).items():
            assert torch.allclose(shared[name], gradient, atol=1e-6), name


def all_ignored(world: World) -> list[Any]:
    ours, batch = trainer(world), ragged_batch()
    ignored = {**batch, "targets": torch.full_like(batch["targets"], IGNORE_INDEX)}
    ours.loader.step = lambda epoch, place: [MicroBatch(ignored, False)]   # type: ignore[method-assign]
    before = [parameter.clone() for parameter in ours.model.parameters()]
    row = ours.train_step()
    is_same = all(map(torch.equal, before, ours.model.parameters()))
    return [row["loss"], row["skipped"], is_same]


def test_a_step_in_which_nobody_has_anything_is_skipped_by_all(pair: Pair) -> None:
    assert pair(all_ignored) == [[None, 1, True]] * 2


class Recorder(llm.NextToken):
    """Remembers which targets it has trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[int]] = []

    def __call__(self, model: nn.Module, batch: Any) -> llm.Result:
        if model.training:
            self.steps.append(batch["targets"][batch["targets"] != IGNORE_INDEX].tolist())
        return super().__call__(model, batch)


def targets_of_two_epochs(world: World) -> list[list[int]]:
    recorder = Recorder()
    config = settings(epochs=2, steps=None, batch_size=7, accumulate=2, eval_every=0)   # 15 windows: 7, 7 and 1
    llm.Trainer(build_model(TINY["gpt"]), recorder, train=llm.TokenWindows(np.arange(61), context=4, is_shifted=False),
                config=config, world=world).fit()
    return recorder.steps


def test_the_processes_read_disjoint_samples_and_together_all(pair: Pair) -> None:
    first, second = pair(targets_of_two_epochs)
    assert len(first) == len(second) == 10   # each ran as many micro-batches: 2, 2 and 1 in each epoch
    for epoch in (slice(0, 5), slice(5, 10)):
        assert second[epoch][-1] == first[epoch][-1]   # an empty micro-batch repeats a sample, which weighs nothing
        flat = [target for steps in (first[epoch], second[epoch][:-1]) for targets in steps for target in targets]
        assert sorted(flat) == list(range(1, 61))
    assert first[:5] != first[5:]   # each epoch has its own order


def steps_together(world: World, changes: dict[str, Any]) -> tuple[bool, list[torch.Tensor], list[dict[str, Any]]]:
    ours = trainer(world, **changes)
    is_equal, rows = True, []
    for _ in range(6):
        rows.append(ours.train_step())
        sums = world.gather([float(tensor.double().sum()) for tensor in ours.model.state_dict().values()])
        is_equal &= sums[0] == sums[-1]
    return is_equal, [parameter.detach() for parameter in ours.model.parameters()], rows


@pytest.mark.parametrize("changes", [{"accumulate": 2}, {"optimizer": "muon", "muon_lr": 1e-3}, {"batch_size": 15}])
def test_after_each_step_all_hold_the_same_weights_and_those_of_one_process(pair: Pair, changes: Any) -> None:
    _, expected, rows = steps_together(CPU, changes)
    for is_equal, weights, found in pair(steps_together, changes):
        assert is_equal
        for one, other in zip(expected, weights, strict=True):
            assert torch.allclose(one, other, atol=1e-4)   # AdamW's division magnifies rounding in tiny gradients
        for row, other_row in zip(rows, found, strict=True):
            assert other_row["tokens"] == row["tokens"]
            assert other_row["loss"] == pytest.approx(row["loss"], rel=1e-5)
            assert other_row["grad_norm"] == pytest.approx(row["grad_norm"], rel=1e-4)


def validation(world: World, count: int, batch_size: int) -> dict[str, float]:
    return evaluate(random_model(TINY["gpt"]), llm.NextToken([1] * 61), windows(count, is_shifted=False), world=world,
                    batch_size=batch_size)


@pytest.mark.parametrize(("count", "batch_size"), [(203, 4), (203, 1000), (17, 4)])   # 13 windows, and 1 for two
def test_two_processes_find_the_validation_loss_of_one(pair: Pair, count: int, batch_size: int) -> None:
    expected = validation(CPU, count, batch_size)
    for found in pair(validation, count, batch_size):
        assert found == pytest.approx(expected, rel=1e-6)


def masks(world: World) -> list[float]:
    world.seed(5)
    mask = nn.functional.dropout(torch.ones(64), 0.5)
    return mask.tolist()


def test_dropout_differs_between_processes_and_follows_from_the_seed(pair: Pair) -> None:
    first, second = pair(masks)
    assert first != second
    assert [first, second] == pair(masks)
    assert first == masks(CPU)   # a run of one process has no other masks than before


def run_to(world: World, folder: Path, stop: int | None, changes: dict[str, Any]) -> tuple[int, list[torch.Tensor]]:
    ours = trainer(world, folder, dropout=0.2, **changes)
    if (folder / "metrics.jsonl").exists():
        world.barrier()
        assert ours.resume()
    world.barrier()
    if stop is not None:
        interrupt_after(ours, stop)
    return ours.fit().step, [parameter.detach() for parameter in ours.model.parameters()]


def test_a_stopped_run_of_two_goes_on_to_the_bit(pair: Pair, tmp_path: Path) -> None:
    unbroken = pair(run_to, tmp_path / "unbroken", None, {})
    assert [step for step, _ in pair(run_to, tmp_path / "broken", 4, {})] == [4, 4]
    pair(torch_rand)
    broken = pair(run_to, tmp_path / "broken", None, {})
    for (_, whole), (_, resumed) in zip(unbroken, broken, strict=True):
        assert all(map(torch.equal, whole, resumed))
    assert rows_without_times(tmp_path / "unbroken") == rows_without_times(tmp_path / "broken")


def torch_rand(world: World) -> None:
    torch.rand(5)   # whatever happens in between


@pytest.mark.slow
def test_what_two_processes_save_looks_like_what_one_saves(pair: Pair, tmp_path: Path) -> None:
    trainer(CPU, tmp_path / "one").fit()
    pair(run_to, tmp_path / "two", None, {})
    one, two = (tmp_path / name / "checkpoints/step-00000010" for name in ("one", "two"))
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, two)]
    assert names[0] == names[1]
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert list(read_tensors(one / file)) == list(read_tensors(two / file))
    states = [read_trainer_state(folder, keys=())[0] for folder in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert [len(state["rng"]) for state in states] == [1, 2]
    assert len(rows_without_times(tmp_path / "two")) == len(rows_without_times(tmp_path / "one"))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["one, then two", "two, then one"])
def test_another_number_of_processes_goes_on_with_the_same_data(
    pair: Pair, tmp_path: Path, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    def one(stop: int | None) -> None:
        ours = trainer(CPU, tmp_path / "run")
        if stop is None:
            assert ours.resume()
        else:
            interrupt_after(ours, stop)
        ours.fit()

    alone = trainer(CPU, tmp_path / "alone")
    alone.fit()
    if order == "one, then two":
        one(5)
        pair(run_without_dropout, tmp_path / "run", None)
    else:
        pair(run_without_dropout, tmp_path / "run", 5)
        one(None)
        assert "process(es) of the run: 2 before, 1 from now on: same data, same order" in caplog.text
    expected, found = (rows_without_times(tmp_path / name) for name in ("alone", "run"))
    assert [row["tokens"] for row in found] == [row["tokens"] for row in expected]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-4)


def run_without_dropout(world: World, folder: Path, stop: int | None) -> None:
    ours = trainer(world, folder)
    if stop is None:
        assert ours.resume()
    else:
        interrupt_after(ours, stop)
    ours.fit()


class Signalling:
    """An objective that sends its process a signal in the third step."""

    def __init__(self, number: int | None):
        self.inner, self.number, self.calls = llm.NextToken(), number, 0

    def weight(self, batch: Any) -> float:
        return self.inner.weight(batch)

    def __call__(self, model: nn.Module, batch: Any) -> llm.Result:
        self.calls += 1
        if self.calls == 3 and self.number is not None:
            os.kill(os.getpid(), self.number)
        return self.inner(model, batch)


def run_with_a_signal(world: World, folder: Path) -> tuple[int, int | None]:
    ours = trainer(world, folder, eval_every=0)
    ours.objective = Signalling(signal.SIGTERM if world.rank == 1 else None)
    return ours.fit().step, ours.stop_signal


def test_a_signal_to_one_process_stops_all_after_the_same_step(pair: Pair, tmp_path: Path) -> None:
    assert pair(run_with_a_signal, tmp_path) == [(3, signal.SIGTERM)] * 2
    assert read_trainer_state(tmp_path / "checkpoints/step-00000003", keys=())[0]["step"] == 3
    assert len(read_rows(tmp_path)) == 3


class MeanSquare:
    """An objective of a user's own, with a metric that only some batches have."""

    def weight(self, batch: Any) -> float:
        return float(len(batch))

    def __call__(self, model: nn.Module, batch: Any) -> llm.Result:
        loss = model(batch).square().sum()
        return llm.Result(loss, {"large": (1.0, 1.0)} if float(batch.max()) > 0.9 else {})


class Averaging(nn.Module):
    """A module of a user's own with a running statistic, which in each process sees other samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.lerp_(x.mean(0), 0.1)
        return self.layer(x - self.mean)


def own_module(world: World) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Ten samples in steps of 3: the last step has one sample, and the second process none."""
    torch.manual_seed(world.rank)   # they start differently; the first one's weights count
    samples = torch.linspace(-1, 1, 30).view(10, 3)
    ours = llm.Trainer(Averaging(), MeanSquare(), train=llm.Examples(samples), world=world,   # type: ignore[arg-type]
                       config=settings(batch_size=3, steps=5, lr=0.1))
    rows = [ours.train_step() for _ in range(5)]
    return list(ours.model.state_dict().values()), rows


def test_a_module_and_an_objective_of_ones_own_train_together(pair: Pair) -> None:
    (first, rows), (second, other_rows) = pair(own_module)
    assert all(map(torch.equal, first, second))   # running statistics too
    assert all(row["loss"] > 0 for row in rows)
    strip = ("elapsed_s", "tokens_per_second")
    assert [{key: row[key] for key in row if key not in strip} for row in rows] == [
        {key: row[key] for key in row if key not in strip} for row in other_rows]
    assert sum("large" in row for row in rows) >= 1


class Idle(nn.Module):
    """A module of which a part is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def idle_part(world: World) -> str:
    ours = llm.Trainer(Idle(), MeanSquare(), train=llm.Examples(torch.ones(8, 3)), config=settings(), world=world)   # type: ignore[arg-type]
    with pytest.raises(ValueError) as caught:
        ours.train_step()
    return str(caught.value)


def test_a_parameter_without_a_part_in_the_loss_is_named(pair: Pair) -> None:
    assert pair(idle_part)[1].startswith("the parameter unused.weight had no part in the loss")


def different_data(world: World) -> str:
    with pytest.raises(ValueError) as caught:
        llm.Trainer(build_model(TINY["gpt"]), llm.NextToken(), train=windows(500 + 100 * world.rank), config=settings(),
                    world=world)
    return str(caught.value)


def test_processes_with_different_data_do_not_begin(pair: Pair) -> None:
    assert "the processes disagree about how much there is to do" in pair(different_data)[0]


def too_many(world: World) -> str:
    with pytest.raises(ValueError) as caught:
        trainer(world, batch_size=3, accumulate=2)
    return str(caught.value)


def test_a_batch_too_small_to_be_shared_is_refused(pair: Pair) -> None:
    assert pair(too_many)[0].startswith("batch_size=3 cannot be cut into 2 processes x accumulate=2")
