"""Laws of the loop: how a step is cut does not matter, and a run that was interrupted ends as if it had not been."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llm
from llm.checkpoint import find_checkpoint
from llm.data.loader import Loader, MicroBatch
from llm.evaluate import evaluate
from llm.losses import IGNORE_INDEX
from llm.models.build import build_model
from llm.models.config import ModelConfig
from llm.runtime import World
from llm.train.optimizer import optimizer_tensors
from llm.train.samples import SampleWriter
from tests.conftest import TINY, random_ids, windows

CPU = World(torch.device("cpu"), "fp32")


def settings(**changes: Any) -> llm.TrainConfig:
    return llm.TrainConfig(**{"steps": 10, "batch_size": 8, "device": "cpu", "precision": "fp32", "eval_every": 4,
                              "lr": 3e-3, **changes})


def trainer(folder: Path | None = None, *, family: str = "qwen3", dropout: float = 0.0, **changes: Any) -> llm.Trainer:
    model = build_model(TINY[family], dropout=dropout, generator=torch.Generator().manual_seed(7))
    return llm.Trainer(model, llm.NextToken(), train=windows(), val=windows(100, is_shifted=False),
                       config=settings(**changes), folder=folder)


def rows_without_times(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("elapsed_s", "wall_s", "tokens_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def ragged_batch() -> dict[str, torch.Tensor]:
    """8 rows with 1 to 12 supervised targets each."""
    ids, targets = random_ids(8, 12), random_ids(8, 12, seed=1)
    for row, count in enumerate([12, 1, 5, 3, 9, 2, 12, 7]):
        targets[row, count:] = IGNORE_INDEX
    return {"input_ids": ids, "targets": targets}


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("pieces", [4, 8])
def test_gradients_do_not_depend_on_how_a_ragged_step_is_cut(family: str, pieces: int) -> None:
    whole, cut = trainer(family=family), trainer(family=family)
    batch = ragged_batch()
    parts = [MicroBatch(dict(zip(batch, rows, strict=True)), False)
             for rows in zip(*(tensor.chunk(pieces) for tensor in batch.values()), strict=True)]
    results = [whole._backward([MicroBatch(batch, False)]), cut._backward(parts)]
    assert results[0][0] == results[1][0] == 51
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-6)
    for one, other in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_a_step_divides_by_its_total_weight() -> None:
    ours, batch = trainer(), ragged_batch()
    ours._backward([MicroBatch(batch, False)])
    gradient = ours.model.embed.weight.grad.clone()
    ours.model.zero_grad()
    (ours.model(batch["input_ids"], targets=batch["targets"]).loss_sum / 51).backward()
    assert torch.allclose(gradient, ours.model.embed.weight.grad, atol=1e-7)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulation_gives_the_same_run(accumulate: int) -> None:
    plain, accumulated = trainer(), trainer(accumulate=accumulate)
    plain.fit()
    accumulated.fit()
    for one, other in zip(plain.model.parameters(), accumulated.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)   # AdamW's division magnifies rounding in tiny gradients


@pytest.mark.parametrize(("stop", "dropout", "accumulate"), [
    (5, 0.0, 1), (3, 0.2, 2), pytest.param(4, 0.2, 1, marks=pytest.mark.slow),
    pytest.param(9, 0.0, 4, marks=pytest.mark.slow)])
def test_an_interrupted_run_ends_as_an_unbroken_one_to_the_bit(
    tmp_path: Path, stop: int, dropout: float, accumulate: int
) -> None:
    """32 or 33 windows in steps of 8: the run crosses two ends of an epoch, sometimes behind a short step."""
    options: dict[str, Any] = {"dropout": dropout, "accumulate": accumulate, "save_every": stop}
    unbroken = trainer(tmp_path / "unbroken", **options)
    unbroken.fit()

    first = trainer(tmp_path / "broken", **options)
    interrupt_after(first, stop)
    assert first.fit().step == stop
    torch.rand(5)   # whatever happens in between
    broken = trainer(tmp_path / "broken", **options)
    assert broken.resume()
    broken.fit()

    for (name, one), other in zip(unbroken.model.named_parameters(), broken.model.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert rows_without_times(tmp_path / "unbroken") == rows_without_times(tmp_path / "broken")
    assert broken.state.epoch == 2


def interrupt_after(ours: llm.Trainer, step: int) -> None:
    """Stop a trainer after a step, as a signal would."""
    original = ours.train_step

    def stepping() -> dict[str, Any]:
        row = original()
        if ours.state.step == step:
            ours.stop_signal = 15
        return row

    ours.train_step = stepping   # type: ignore[method-assign]


def test_every_epoch_visits_every_target_once_also_after_resuming(tmp_path: Path) -> None:
    class Recorder(llm.NextToken):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[int] = []

        def __call__(self, model: torch.nn.Module, batch: Any) -> llm.Result:
            if model.training:
                self.seen += batch["targets"][batch["targets"] != IGNORE_INDEX].tolist()
            return super().__call__(model, batch)

    tokens = np.arange(61)   # each target is another one
    recorder = Recorder()
    options = {"train": llm.TokenWindows(tokens, context=4), "folder": tmp_path,
               "config": settings(epochs=2, steps=None, batch_size=3, save_every=1, eval_every=0)}
    first = llm.Trainer(build_model(TINY["gpt"]), recorder, **options)
    interrupt_after(first, 4)
    first.fit()
    second = llm.Trainer(build_model(TINY["gpt"]), recorder, **options)
    second.resume()
    second.fit()
    assert sorted(recorder.seen) == sorted(2 * list(range(1, 61)))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_validation_is_the_same_for_every_batch_size(tiny_config: ModelConfig, batch_size: int) -> None:
    model = build_model(tiny_config, dropout=0.5, generator=torch.Generator().manual_seed(1)).train()
    objective = llm.NextToken([1] * 61)
    data = windows(203, is_shifted=False)   # the last window is short
    whole = evaluate(model, objective, data, world=CPU, batch_size=1000)
    other = evaluate(model, objective, data, world=CPU, batch_size=batch_size)
    assert other == pytest.approx(whole, rel=1e-6)
    assert whole["bits_per_byte"] == pytest.approx(whole["loss"] / np.log(2))
    assert model.training


def test_validation_leaves_no_trace_in_the_training(tmp_path: Path) -> None:
    often, never = trainer(dropout=0.3, eval_every=1), trainer(dropout=0.3, eval_every=0)
    often.fit()
    never.fit()
    for one, other in zip(often.model.parameters(), never.model.parameters(), strict=True):
        assert torch.equal(one, other)


def snapshot(ours: llm.Trainer) -> dict[str, torch.Tensor]:
    tensors = {**ours.model.state_dict(), **optimizer_tensors(ours.optimizers, ours.model)}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def spoil_gradients(ours: llm.Trainer, *steps: int, value: float = float("inf")) -> None:
    """Make the gradient of the embedding infinite in these steps (1-based)."""
    ours.model.embed.weight.register_hook(
        lambda gradient: gradient + value if ours.state.step + 1 in steps else gradient)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_without_a_finite_gradient_changes_nothing_and_is_counted(
    tmp_path: Path, precision: str, value: float
) -> None:
    ours = trainer(tmp_path, precision=precision, steps=5, batch_size=2, eval_every=0)
    spoil_gradients(ours, 3, value=value)
    rows = [ours.train_step() for _ in range(2)]
    before = snapshot(ours)
    rows.append(ours.train_step())
    assert equal(snapshot(ours), before)
    assert ours.state.step == 3
    rows += [ours.train_step() for _ in range(2)]
    assert not equal(snapshot(ours), before)
    assert [row["loss"] is None for row in rows] == [False, False, True, False, False]
    assert [row.get("skipped") for row in rows] == [None, None, 1, None, None]
    assert rows[2]["grad_norm"] is None
    assert (ours.state.skipped, ours.state.skipped_in_a_row) == (1, 0)


def test_many_skipped_steps_in_a_row_end_the_run_and_scattered_ones_do_not() -> None:
    scattered = trainer(max_skipped=3)
    spoil_gradients(scattered, 1, 2, 4, 5, 7, 8, 10)
    assert scattered.fit().skipped == 7
    together = trainer(max_skipped=3)
    spoil_gradients(together, 4, 5, 6)
    with pytest.raises(RuntimeError, match=r"3 steps in a row were skipped.*norm inf; lower the learning rate"):
        together.fit()
    assert together.state.step == 6


def test_a_loss_that_is_not_finite_is_told_by_name(caplog: pytest.LogCaptureFixture) -> None:
    class Overflowing(llm.NextToken):
        def __call__(self, model: torch.nn.Module, batch: Any) -> llm.Result:
            result = super().__call__(model, batch)
            return llm.Result(result.loss_sum + float("inf"))   # its gradient is as before

    ours = trainer(steps=1)
    ours.objective = Overflowing()
    before = snapshot(ours)
    ours.train_step()
    assert equal(snapshot(ours), before)
    assert "its loss sum is inf" in caplog.text


def test_a_step_of_ignored_targets_is_skipped_and_counted() -> None:
    """Not even weight decay or momentum may move the weights: nothing was learned from."""
    class Ignored(llm.TokenWindows):
        def batch(self, sample_ids: np.ndarray, *, seed: int, epoch: int) -> dict[str, torch.Tensor]:
            batch = super().batch(sample_ids, seed=seed, epoch=epoch)
            is_second = ours.state.step == 1
            return {**batch, "targets": batch["targets"].fill_(IGNORE_INDEX)} if is_second else batch

    ours = trainer(steps=3)
    ours.loader.dataset = Ignored(windows().tokens, context=16)
    ours.train_step()
    before = snapshot(ours)
    row = ours.train_step()
    assert equal(snapshot(ours), before)
    assert (row["loss"], row["grad_norm"], row["skipped"]) == (None, None, 1)
    assert ours.train_step()["loss"] > 0
    assert not equal(snapshot(ours), before)


def test_one_ignored_micro_batch_does_not_change_the_step() -> None:
    batch = ragged_batch()
    ignored = {**batch, "targets": torch.full_like(batch["targets"], IGNORE_INDEX)}
    with_it, without = trainer(), trainer()
    results = [with_it._backward([MicroBatch(batch, False), MicroBatch(ignored, False)]),
               without._backward([MicroBatch(batch, False), MicroBatch(batch, True)])]   # nor does an empty one
    assert results[0] == results[1]
    for one, other in zip(with_it.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_the_logged_loss_is_the_mean_over_the_tokens_of_the_step() -> None:
    for accumulate in (1, 3):
        ours = trainer(accumulate=accumulate, batch_size=40)   # all windows, two of them short
        [micro] = trainer(batch_size=40).loader.step(0, 0)
        loss_sum = ours.model(micro.batch["input_ids"], targets=micro.batch["targets"]).loss_sum.item()
        row = ours.train_step()
        assert row["loss"] == pytest.approx(loss_sum / 499, rel=1e-6)
        assert row["tokens"] == 499


def test_the_clock_counts_optimizer_steps_and_the_tail_of_an_epoch_is_one() -> None:
    """10 samples in steps of 4: 4, 4 and 2; the tail's gradient is the mean over its own 2."""
    class Recorder:
        sizes: list[int] = []   # noqa: RUF012

        def weight(self, batch: Any) -> float:
            return len(batch)

        def __call__(self, model: torch.nn.Module, batch: Any) -> llm.Result:
            self.sizes.append(len(batch))
            return llm.Result((model(batch[:, None]) ** 2).sum())

    torch.manual_seed(1)
    recorder, module = Recorder(), torch.nn.Linear(1, 1)
    config = settings(epochs=2, steps=None, batch_size=4, accumulate=2, warmup=0, schedule="linear", min_lr_ratio=0.0,
                      clip=0.0)
    ours = llm.Trainer(module, recorder, train=llm.Examples(torch.linspace(-1, 1, 10)), config=config)
    rows = [ours.train_step() for _ in range(2)]
    [tail] = [np.concatenate([micro.batch for micro in ours.loader.step(0, 2)])]
    (module(torch.from_numpy(tail)[:, None]) ** 2).mean().backward()
    norm = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in module.parameters()]))
    module.zero_grad()
    rows += [ours.train_step() for _ in range(4)]
    assert rows[2]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert recorder.sizes == [2, 2, 2, 2, 1, 1] * 2
    assert [row["lr"] for row in rows] == pytest.approx([3e-3 * share / 6 for share in (5, 4, 3, 2, 1, 0)])
    assert (ours.total_steps, ours.state.step, ours.state.epoch, ours.state.place) == (6, 6, 2, 0)


def test_clipping_bounds_the_gradient_and_zero_leaves_it() -> None:
    norms = {}
    for clip in (0.0, 0.01, 1e9):
        ours = trainer(clip=clip)
        ours._backward([MicroBatch(ragged_batch(), False)])
        reported = ours._clip()
        norms[clip] = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in ours.model.parameters()]))
        assert reported == pytest.approx(norms[1e9] if clip == 1e9 else norms[0.0] if clip == 0.0 else reported)
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[0.0] == norms[1e9] > 0.1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_resumes_exactly(tmp_path: Path, precision: str) -> None:
    options: dict[str, Any] = {"precision": precision, "steps": 8, "batch_size": 2, "save_every": 4, "eval_every": 4}
    unbroken = trainer(tmp_path / "unbroken", **options)
    unbroken.fit()
    first = trainer(tmp_path / "broken", **options)
    interrupt_after(first, 5)
    first.fit()
    second = trainer(tmp_path / "broken", **options)
    assert second.resume()
    assert second.scaler.state_dict() == first.scaler.state_dict()
    second.fit()
    assert equal(snapshot(second), snapshot(unbroken))
    assert {parameter.dtype for parameter in second.model.parameters()} == {torch.float32}   # the master weights
    rows = [row for row in rows_without_times(tmp_path / "unbroken") if row["split"] == "val"]
    assert rows[1]["loss"] < rows[0]["loss"] < 4.2


def test_the_fp16_scale_falls_when_a_gradient_overflows() -> None:
    ours = trainer(precision="fp16", steps=3, batch_size=2)
    spoil_gradients(ours, 2)
    ours.train_step()
    before = ours.scaler.get_scale()
    ours.train_step()
    assert ours.scaler.get_scale() == before / 2


@pytest.mark.parametrize("family", ["gpt", "qwen3"])
def test_activation_checkpointing_gives_the_same_run(family: str) -> None:
    plain = trainer(family=family, dropout=0.2, steps=4)
    frugal = trainer(family=family, dropout=0.2, steps=4, activation_checkpointing=True)
    plain.fit()
    frugal.fit()
    assert equal(snapshot(plain), snapshot(frugal))
    with pytest.raises(ValueError, match="Linear has no activation checkpointing"):
        llm.Trainer(torch.nn.Linear(1, 1), llm.NextToken(), train=windows(),
                    config=settings(activation_checkpointing=True))


class Regression:
    """An objective of a user's own: squared error, with a metric."""

    def weight(self, batch: Any) -> float:
        return len(batch[0])

    def __call__(self, model: torch.nn.Module, batch: Any) -> llm.Result:
        error = model(batch[0]) - batch[1]
        return llm.Result((error**2).sum(), {"absolute_error": (error.detach().abs().sum(), len(batch[0]))})


class Twins(torch.nn.Module):
    """A module of a user's own: dropout, a running statistic, and one layer used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3)
        self.second = self.first
        self.norm = torch.nn.BatchNorm1d(3)
        self.dropout = torch.nn.Dropout(0.2)
        self.last = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.dropout(self.norm(self.second(self.first(x).relu()))))


def test_a_module_of_ones_own_trains_and_resumes_exactly(tmp_path: Path) -> None:
    inputs = torch.randn(30, 3, generator=torch.Generator().manual_seed(1))
    examples = llm.Examples([(row, row.sum(0, keepdim=True)) for row in inputs])

    def new(name: str) -> llm.Trainer:
        torch.manual_seed(4)
        return llm.Trainer(Twins(), Regression(), train=examples, val=examples, folder=tmp_path / name,
                           config=settings(steps=12, batch_size=8, accumulate=2, lr=0.1, save_every=5))

    unbroken = new("unbroken")
    unbroken.fit()
    first = new("broken")
    interrupt_after(first, 6)
    first.fit()
    second = new("broken")
    assert second.resume()
    second.fit()
    assert equal(snapshot(second), snapshot(unbroken))
    rows = rows_without_times(tmp_path / "broken")
    assert rows == rows_without_times(tmp_path / "unbroken")
    losses = [row["loss"] for row in rows if row["split"] == "val"]
    assert losses[-1] < losses[0]
    assert "absolute_error" in rows[0]
    assert {path.name for path in (tmp_path / "broken/checkpoints/step-00000012").iterdir()} == {
        "model.safetensors", "trainer"}
    with pytest.raises(ValueError, match=r"no config\.json"):
        llm.load(tmp_path / "broken")


def test_our_model_trains_in_a_loop_of_ones_own_and_writes() -> None:
    model = llm.GPT(llm.GPTConfig(vocab_size=8, context_length=16, num_layers=1, num_heads=2, dim=32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = (torch.arange(17) % 8).repeat(4, 1)
    for _ in range(60):
        loss = model(ids[:, :-1], targets=ids[:, 1:]).loss_sum / ids[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = llm.generate(model.eval(), [[0, 1], [5]], max_new_tokens=5, temperature=0)
    assert rows == [[2, 3, 4, 5, 6], [6, 7, 0, 1, 2]]


@pytest.mark.parametrize(("options", "saved"), [
    ({"save_every": 4}, [4, 8, 10]), ({"save_every": 0, "save_best": False}, [10]), ({"save_every": 5}, [5, 10]),
    ({"save_every_epochs": 1, "steps": None, "epochs": 3, "batch_size": 40}, [1, 2, 3]),
    ({"save_every_epochs": 2, "steps": None, "epochs": 3, "batch_size": 16}, [4, 6]),   # 2 steps an epoch
    ({"save_every": 4, "keep": 1}, [10]),
])
def test_checkpoints_come_when_they_are_due(tmp_path: Path, options: dict[str, Any], saved: list[int]) -> None:
    ours = trainer(tmp_path, **{"keep": 0, "eval_every": 100, "save_best": False, **options})
    ours.fit()
    assert ours.store is not None and ours.store.read_index()["complete"] == saved


def test_every_new_best_is_saved_and_found_by_load(tmp_path: Path) -> None:
    ours = trainer(tmp_path, lr=1e-2, eval_every=1, keep=1)
    losses = iter([3.0, 2.0, float("nan"), 2.5, 1.0, 4.0, float("inf"), 1.5, 1.5, float("nan")])
    ours.objective = Told(losses)
    ours.fit()
    assert ours.store is not None
    assert ours.store.read_index() == {"complete": [5, 10], "latest": 10, "best": 5}
    assert (ours.state.best_loss, ours.state.best_step) == (1.0, 5)
    assert find_checkpoint(tmp_path).name == "step-00000005"
    assert [row["loss"] for row in rows_without_times(tmp_path) if row["split"] == "val"] == [
        3.0, 2.0, None, 2.5, 1.0, 4.0, None, 1.5, 1.5, None]


class Told(llm.NextToken):
    """Trains as usual, but each validation finds the loss that it was told."""

    def __init__(self, losses: Iterator[float]):
        super().__init__()
        self.losses = losses

    def __call__(self, model: torch.nn.Module, batch: Any) -> llm.Result:
        result = super().__call__(model, batch)
        if model.training:
            return result
        is_first = int(batch["targets"][0, 0]) == int(windows(100, is_shifted=False).tokens[1])
        self.loss = next(self.losses) if is_first else self.loss
        return llm.Result(torch.tensor(self.loss * self.weight(batch)))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> llm.Trainer:
    torch.set_num_threads(1)
    ours = trainer(tmp_path_factory.mktemp("unbroken"), dropout=0.2)
    ours.fit()
    return ours


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 4), (signal.SIGINT, 7), (signal.SIGTERM, 10)])
def test_a_signal_saves_stops_and_the_run_resumes_to_the_bit(
    tmp_path: Path, unbroken: llm.Trainer, number: signal.Signals, step: int
) -> None:
    first = trainer(tmp_path, dropout=0.2)
    first.loggers.append(Signalling(number, step))
    assert first.fit().step == step
    assert first.stop_signal == number
    assert first.store is not None and first.store.read_index()["latest"] == step
    second = trainer(tmp_path, dropout=0.2)
    assert second.resume()
    second.fit()
    assert equal(snapshot(second), snapshot(unbroken))
    assert unbroken.folder is not None and rows_without_times(tmp_path) == rows_without_times(unbroken.folder)


class Signalling:
    """A logger that sends this very process a real signal after a step, three times as impatient schedulers do."""

    def __init__(self, number: signal.Signals, step: int):
        self.number, self.step = number, step

    def log(self, row: Any) -> None:
        if row["step"] == self.step and row["split"] == "train":
            for _ in range(3 if self.number == signal.SIGTERM else 1):
                os.kill(os.getpid(), self.number)

    def close(self) -> None:
        pass


def test_after_fit_signals_mean_what_they_meant_before() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    trainer(steps=1).fit()
    assert before == {number: signal.getsignal(number) for number in before}


def test_fit_works_outside_the_main_thread() -> None:
    ours = trainer(steps=2)
    thread = threading.Thread(target=ours.fit)
    thread.start()
    thread.join()
    assert ours.state.step == 2


def test_a_folder_with_another_run_in_it_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2).fit()
    for _ in range(2):
        with pytest.raises(ValueError, match="holds a run already; call resume"):
            trainer(tmp_path, steps=2).fit()
    again = trainer(tmp_path, steps=2)
    assert again.resume()
    assert again.fit().step == 2
    assert len(rows_without_times(tmp_path)) == 3


def test_resuming_without_a_checkpoint_begins_anew_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text("left by a run that was killed before its first save\n")
    ours = trainer(tmp_path, steps=2)
    assert not ours.resume()
    assert "holds no complete checkpoint; starting at step 0" in caplog.text
    ours.fit()
    assert len(rows_without_times(tmp_path)) == 3


@pytest.mark.parametrize(("changes", "message"), [
    ({"seed": 2}, "seed=2, but the run was made with 1"), ({"batch_size": 4}, "batch_size=4, but .* made with 8"),
])
def test_what_would_change_the_order_of_the_data_is_refused(tmp_path: Path, changes: Any, message: str) -> None:
    trainer(tmp_path, steps=2).fit()
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, steps=4, **changes).resume()
    other = trainer(tmp_path, steps=4)
    other.loader = Loader(windows(context=8), batch_size=8, seed=1)
    with pytest.raises(ValueError, match=r"samples=\d+, but the run was made with 3[23]"):
        other.resume()


def test_a_resumed_run_says_when_its_rounding_will_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(tmp_path, steps=2).fit()
    again = trainer(tmp_path, steps=4, precision="bf16")
    assert again.resume()
    assert "precision of the run: fp32 before, bf16 from now on" in caplog.text
    assert again.fit().step == 4


def test_metrics_that_have_lost_their_end_are_not_filled_with_zeros(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(tmp_path, steps=2).fit()
    (tmp_path / "metrics.jsonl").write_text("")
    assert trainer(tmp_path, steps=4).resume()
    assert "has lost its end" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_text_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path) -> None:
    ours = llm.Trainer(build_model(TINY["gpt"]), llm.NextToken(), train=windows(), val=windows(100), folder=tmp_path,
                       config=settings(steps=2), tokenizer=llm.Tokenizer.byte_level(),
                       after_eval=SampleWriter("", num_tokens=5, temperature=1.0))   # id 256, but V = 61
    assert ours.fit().step == 2
    assert "(no text: prompt 0 holds an id outside the vocabulary of 61" in (tmp_path / "samples.txt").read_text()
    assert ours.model.training


COMPILED = """
import logging, torch, llm
from llm.models.build import build_model
from tests.conftest import TINY, windows
logging.basicConfig(level=logging.WARNING)
torch.set_num_threads(1)
model = build_model(TINY["qwen3"], generator=torch.Generator().manual_seed(7))
names = list(model.state_dict())
config = llm.TrainConfig(steps=3, batch_size=8, device="cpu", precision="fp32", compile=True, eval_every=0)
trainer = llm.Trainer(model, llm.NextToken(), train=windows(), config=config)
assert trainer.fit().step == 3
assert list(model.state_dict()) == names
print("is compiled", [block._compiled_call_impl is not None for block in model.blocks])
print("parameters", float(sum(parameter.detach().double().abs().sum() for parameter in model.parameters())))
"""


def run_compiled(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(llm.__file__).parents[1]
    variables = {"PYTHONPATH": str(root), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), **environment}
    return subprocess.run([sys.executable, "-c", COMPILED], env={**os.environ, **variables}, cwd=root,
                          capture_output=True, text=True, timeout=300, check=True)


def total_after_three_steps() -> float:
    ours = trainer(steps=3, lr=1e-3, eval_every=0)
    ours.fit()
    return float(sum(parameter.detach().double().abs().sum() for parameter in ours.model.parameters()))


@pytest.mark.slow
def test_without_a_compiler_training_goes_on_and_says_why(tmp_path: Path) -> None:
    done = run_compiled(tmp_path, CXX="/nonexistent/compiler")
    assert "torch.compile does not work here, training goes on without it" in done.stderr
    assert "is compiled [False, False]" in done.stdout
    assert float(done.stdout.split()[-1]) == total_after_three_steps()   # exactly the eager run


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_training_agrees_with_eager(tmp_path: Path) -> None:
    done = run_compiled(tmp_path)
    assert "is compiled [True, True]" in done.stdout
    assert "without it" not in done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(total_after_three_steps(), rel=1e-5)


def test_patience_ends_a_run_that_no_longer_gets_better_and_a_resumed_one_at_the_same_step(tmp_path: Path) -> None:
    """With a huge learning rate the first validation stays the best."""
    steps = []
    for resume in (False, True):
        config = llm.TrainConfig(steps=100, batch_size=4, lr=10.0, warmup=0, eval_every=2, patience=3, device="cpu",
                                 precision="fp32")
        model = llm.GPT(TINY["gpt"], generator=torch.Generator().manual_seed(0))   # type: ignore[arg-type]
        trainer = llm.Trainer(model, llm.NextToken(), train=windows(), val=windows(100, is_shifted=False),
                              config=config, folder=tmp_path)
        assert trainer.resume() is resume if resume else True
        state = trainer.fit()
        steps.append(state.step)
        assert state.best_step is not None and state.step == state.best_step + 6 < 100
    assert steps[0] == steps[1]
