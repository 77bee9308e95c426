"""Laws of `bench train`: every combination once, impossible ones said, and the numbers follow from the times."""

from pathlib import Path

import pytest

from llm.bench import training
from llm.bench.config import TrainBenchConfig
from llm.bench.measure import Timing
from llm.bench.steps import Job
from llm.bench.training import bench_training, combinations, show_training, speed_of
from llm.models.config import GPTConfig
from llm.models.profile import flops_per_token

TINY = GPTConfig(num_layers=1, num_heads=1, dim=8)
ROW = {"program": "ours", "precision": "fp32", "compile": False, "activation_checkpointing": False, "loss": 4.0}


def config(**settings: object) -> TrainBenchConfig:
    whole = {"architecture": TINY, "vocab_size": 61, "context": 8, "batch_size": 2, "steps": 2, "memory": "none",
             "precision": ("fp32",), **settings}
    return TrainBenchConfig(**whole)   # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own limit is not the subject here, and takes a second to measure."""
    monkeypatch.setattr(training, "matmul_rate_apart", lambda watch, precision: 1e12)


def test_every_combination_is_measured_for_both_programs() -> None:
    found = combinations(config(compile=("false", "true"), activation_checkpointing=("false", "true"),
                                against="transformers"))
    assert [[job.program for job in jobs] for jobs in found] == [["ours", "transformers"]] * 4
    assert [(job.is_compiled, job.is_checkpointed) for job, _ in found] == [
        (False, False), (False, True), (True, False), (True, True)]


def test_the_vocabulary_and_the_context_are_those_asked_for_or_the_preset_s_own() -> None:
    [[job]] = combinations(config(context=2000))
    assert (job.architecture.vocab_size, job.architecture.context_length, job.context) == (61, 2000, 2000)
    [[job]] = combinations(config(vocab_size=None, architecture=GPTConfig(vocab_size=7)))
    assert job.architecture.vocab_size == 7
    [[job]] = combinations(config(vocab_size=None))
    assert job.architecture.vocab_size == 4096


def test_fp16_on_a_cpu_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert [job.precision for [job] in combinations(config(precision=("fp16", "fp32")))] == ["fp32"]
    assert "fp16 is left out" in caplog.text
    with pytest.raises(ValueError, match="nothing left to measure; add --precision fp32"):
        bench_training(config(precision=("fp16",)), Path())


def test_the_defaults_of_both_are_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.runtime.has_fast_bf16", lambda device_type: True)
    monkeypatch.setattr("llm.bench.measure.has_fast_bf16", lambda device_type: True)
    [[ours, theirs]] = combinations(config(precision=("auto",), defaults=True, against="transformers"))
    assert (ours.precision, theirs.precision) == ("bf16", "fp32")
    assert theirs.is_untouched and not ours.is_untouched


def test_dropout_is_no_reason_to_refuse_the_comparison_of_defaults() -> None:
    ours, theirs = bench_training(config(precision=("auto",), defaults=True, against="transformers"), Path())
    assert ours["loss"] != pytest.approx(theirs["loss"], rel=1e-5)
    assert {"median", "low", "high"} == set(ours["times_as_fast"])


@pytest.mark.parametrize(("settings", "message"), [
    ({"defaults": True, "against": "transformers"}, "defaults measures both as they come; leave precision out"),
    ({"defaults": True, "precision": ("auto",)}, "defaults compares two programs; add --against transformers"),
    ({"steps": 0}, "steps=0 with memory=none measures nothing"),
    ({"steps": -1}, "steps=-1 must be at least 0"),
    ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ({"precision": ()}, "precision is empty"),
])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_the_numbers_of_a_row_follow_from_its_times() -> None:
    architecture = GPTConfig(vocab_size=61, context_length=8, num_layers=1, num_heads=1, dim=8)
    job = Job(program="ours", architecture=architecture, batch_size=2, context=8, precision="fp32", device="cpu")
    row = speed_of(job, Timing((0.5, 1.0, 2.0)), 1e6)
    assert (row["tokens_per_s"], row["step_s"], row["step_low_s"], row["step_high_s"]) == (16, 1.0, 0.75, 1.5)
    assert row["flops_per_s"] == 16 * flops_per_token(architecture, 8)
    assert row["share_of_matmul"] == row["flops_per_s"] / 1e6


def test_both_programs_are_held_against_the_same_rate_the_best_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = iter([1e12, 3e12])   # before and after
    monkeypatch.setattr(training, "matmul_rate_apart", lambda watch, precision: next(rates))
    rows = bench_training(config(against="transformers"), Path())
    assert [row["matmul_flops_per_s"] for row in rows] == [3e12, 3e12]


def test_the_table_shows_what_was_measured_and_no_more() -> None:
    speed = {"tokens_per_s": 24_800.4, "flops_per_s": 120e9, "matmul_flops_per_s": 194e9, "share_of_matmul": 0.6186,
             "step_s": 0.031, "step_low_s": 0.03, "step_high_s": 0.0333}
    ours = {**ROW, **speed, "peak_bytes": 46_200_000, "headless_peak_bytes": 40_000_000,
            "head_bytes": 7_300_000,
            "times_as_fast": {"median": 1.3, "low": 1.25, "high": 1.38}}
    table = show_training([ours, {**ROW, "program": "transformers", "peak_bytes": None}])
    assert table.splitlines()[0].split("  ")[0] == "program"
    assert "compile" not in table
    for cell in ("24,800", "120", "62%", "31.0", "30.0-33.3", "46.2 MB", "6.2 MB", "7.3 MB", "1.30 (1.25-1.38)"):
        assert cell in table.splitlines()[1], cell
    assert "yes" in show_training([{**ROW, "compile": True}])


def test_two_programs_that_do_not_compute_the_same_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "build_step", lambda job: lambda: {"ours": 4.0, "transformers": 4.1}[job.program])
    with pytest.raises(RuntimeError, match=r"do not compute the same loss: \[4.0, 4.1\]"):
        bench_training(config(against="transformers"), Path())


def test_what_is_not_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(training, "in_fresh_process", lambda function, job: asked.append(job) or 100 + job.has_head)
    [row] = bench_training(config(steps=0, memory="head"), Path())
    assert [job.has_head for job in asked] == [True, False, True]
    assert (row["peak_bytes"], row["headless_peak_bytes"], row["head_bytes"]) == (101, 100, 101)
    assert "step_s" not in row and "loss" not in row
    [row] = bench_training(config(memory="step", compile=("false",)), Path())
    assert (row["peak_bytes"], len(row["steps_s"])) == (101, 2)
    assert "headless_peak_bytes" not in row


def test_memory_that_cannot_be_measured_is_said_and_the_times_are_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(function: object, job: Job) -> int:
        if job.has_head:
            raise RuntimeError("the process was killed")
        return 5_000_000

    monkeypatch.setattr(training, "in_fresh_process", fail)
    [row] = bench_training(config(memory="head"), Path())
    assert "its memory was not measured: the process was killed" in caplog.text
    assert (row["peak_bytes"], row["headless_peak_bytes"]) == (None, 5_000_000) and row["step_s"] > 0
    assert "5.0 MB" in show_training([row]) and "difference" not in show_training([row])
