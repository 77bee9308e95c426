"""Laws of `bench generate`: both write the same, prefill and decode add up, and the limit counts what is read."""

import pytest
import torch

from llm.bench import generation
from llm.bench.config import GenerateBenchConfig
from llm.bench.generation import (
    WritingJob,
    bench_generation,
    build_writer,
    per_step,
    show_generation,
    weight_bytes,
    writing_memory,
)
from llm.bench.measure import Timing, take_turns
from llm.models.build import empty_model
from llm.models.config import GPTConfig, ModelConfig, QwenConfig
from tests.conftest import TINY


def job(architecture: ModelConfig, **settings: object) -> WritingJob:
    whole = {"program": "ours", "batch_size": 2, "prompt_tokens": 4, "precision": "fp32", "device": "cpu", **settings}
    return WritingJob(architecture=architecture, **whole)   # type: ignore[arg-type]


def config(**settings: object) -> GenerateBenchConfig:
    whole = {"architecture": TINY["gpt"], "batch_size": (1, 2), "prompt_tokens": 4, "new_tokens": 3, "rounds": 2,
             "precision": ("fp32",), "memory": "none", **settings}
    return GenerateBenchConfig(**whole)   # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def quick_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "stream", lambda device, precision: (lambda: None, 10**9))


def test_both_programs_write_the_same_text_of_the_length_asked_for(tiny_config: ModelConfig) -> None:
    ours, theirs = (build_writer(job(tiny_config, program=program)) for program in ("ours", "transformers"))
    assert ours(6) == theirs(6)
    assert [len(row) for row in ours(6)] == [6, 6]
    assert [row[:2] for row in ours(6)] == theirs(2)


def test_a_step_of_decoding_is_what_more_tokens_cost_more() -> None:
    whole, first = Timing((1.1, 2.1)), Timing((0.1, 0.1))
    assert per_step(whole, first, 11).seconds == pytest.approx((0.1, 0.2))
    assert min(per_step(first, whole, 11).seconds) > 0   # a busy machine never makes time run backwards


@pytest.mark.parametrize(("architecture", "read"), [
    (GPTConfig(vocab_size=100, context_length=9, num_layers=1, num_heads=1, dim=10),
     400 + 50 + 800 + 40 + 3 * 20 + 1000),
    (QwenConfig(vocab_size=100, num_layers=1, num_heads=1, num_kv_heads=1, dim=10, mlp_dim=20, tie_embeddings=False),
     400 + 600 + 5 * 10 + 1000),
])
def test_the_limit_counts_every_weight_but_the_looked_up_ones(architecture: ModelConfig, read: int) -> None:
    assert weight_bytes(architecture, "fp32") == 4 * read
    assert weight_bytes(architecture, "bf16") == 2 * read


def test_of_experts_the_limit_counts_those_in_use() -> None:
    config = TINY["qwen3_moe"]   # 2 layers; 2 of 4 experts, each of three 12 x 16 matrices
    all_of_them = sum(parameter.numel() for parameter in empty_model(config).parameters())
    assert weight_bytes(config, "fp32") == 4 * (all_of_them - 2 * 2 * 3 * 12 * 16)


def test_every_number_of_rows_is_measured_beside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    half_a_second = {"memory": Timing((0.5, 0.5))}   # for the 10^9 bytes of `quick_limit`
    monkeypatch.setattr(generation, "take_turns", lambda programs, **how: take_turns(programs, **how) | half_a_second)
    rows = bench_generation(config(against="transformers"))
    assert [(row["batch_size"], row["program"]) for row in rows] == [
        (1, "ours"), (1, "transformers"), (2, "ours"), (2, "transformers")]
    assert [row["limit_tokens_per_s"] for row in rows] == [
        batch_size * 2e9 / weight_bytes(TINY["gpt"], "fp32") for batch_size in (1, 1, 2, 2)]
    assert [row.get("equal_rows") for row in rows] == [1, None, 2, None]
    assert all(row["decode_tokens_per_s"] > 0 and len(row["prefill_s"]) == 2 for row in rows)
    head, *lines = show_generation(rows).splitlines()
    assert "decode times as fast" in head and "same text" in head and "peak memory" not in head
    assert [line.split()[0] for line in lines] == ["ours", "transformers"] * 2


def test_memory_is_what_writing_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([100, 160])
    monkeypatch.setattr(generation, "peak_memory", lambda device: next(peaks))
    assert writing_memory(job(TINY["gpt"]), 3) == 60
    monkeypatch.setattr("llm.bench.training.in_fresh_process", lambda _, asked, count: 2_000_000 * asked.batch_size)
    rows = bench_generation(config(memory="peak"))
    assert [row["peak_bytes"] for row in rows] == [2_000_000, 4_000_000]
    assert "4.0 MB" in show_generation(rows)


def test_a_precision_that_is_only_emulated_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="nothing left to measure"):
        bench_generation(config(precision=("fp16",)))
    assert "fp16 is left out" in caplog.text


@pytest.mark.parametrize(("settings", "message"), [
    ({"new_tokens": 1}, "new_tokens=1 must be at least 2"), ({"rounds": 0}, "rounds=0 must be at least 1"),
    ({"batch_size": (1, 0)}, "batch_size=0 must be at least 1"), ({"batch_size": ()}, "batch_size is empty"),
])
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_dropout_and_gradients_have_no_part_in_writing() -> None:
    writer = build_writer(job(TINY["gpt"]))
    assert writer(3) == writer(3)
    assert torch.is_grad_enabled()
