"""Laws of the loop: how a step is cut does not matter, and a run that was interrupted ends as if it had not been."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llm
from llm.data.loader import MicroBatch
from llm.evaluate import evaluate
from llm.losses import IGNORE_INDEX
from llm.models.build import build_model
from llm.models.config import ModelConfig
from llm.runtime import World
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


@pytest.mark.parametrize(("stop", "dropout", "accumulate"), [(5, 0.0, 1), (3, 0.2, 2), (4, 0.2, 1), (9, 0.0, 4)])
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
