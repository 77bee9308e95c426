"""Laws of a fair comparison: both programs are the same model, compute the same, and move it in the same way."""

import sys
from dataclasses import replace

import pytest
import torch

from llm.bench.steps import (
    Job,
    RandomText,
    build_step,
    head_memory,
    peer_loss,
    peer_model,
    smallest,
    step_memory,
)
from llm.losses import CACHE_BYTES, chunk_size
from llm.models.build import build_model
from llm.models.config import GPTConfig, ModelConfig
from tests.conftest import TINY, random_ids


def job(architecture: ModelConfig = TINY["gpt"], **settings: object) -> Job:
    whole = {"program": "ours", "batch_size": 3, "context": 16, "precision": "fp32", "device": "cpu", **settings}
    return Job(architecture=architecture, **whole)   # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "name"), [
    ("gpt", "GPT2LMHeadModel"), ("qwen3", "Qwen3ForCausalLM"), ("qwen2", "Qwen2ForCausalLM"),
    ("llama", "LlamaForCausalLM")])
def test_the_peer_has_as_many_parameters_and_the_same_loss(family: str, name: str) -> None:
    ours, ids = build_model(TINY[family]), random_ids(2, 17)
    theirs = peer_model(ours)
    assert type(theirs).__name__ == name
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
    loss_sum = ours(batch["input_ids"], targets=batch["targets"]).loss_sum
    assert torch.allclose(peer_loss(theirs.eval(), batch) * 32, loss_sum, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"is_checkpointed": True}, {"has_head": False}])
def test_both_programs_go_the_same_way_step_by_step(tiny_config: ModelConfig, settings: dict[str, bool]) -> None:
    if tiny_config.expert_count and not settings.get("has_head", True):
        pytest.skip("transformers' classes with experts compute no loss without a head")
    ours = build_step(job(tiny_config, **settings))
    theirs = build_step(job(tiny_config, program="transformers", **settings))
    losses = [(ours(), theirs()) for _ in range(4)]
    assert all(our == pytest.approx(their, rel=1e-5) for our, their in losses)
    assert settings == {"has_head": False} or losses[-1][0] < losses[0][0]


@pytest.mark.slow   # compiles twice
def test_compiled_programs_go_the_same_way_too() -> None:
    small = replace(TINY["gpt"], num_layers=1)
    steps = [build_step(job(small, program=program, is_compiled=True)) for program in ("ours", "transformers")]
    for _ in range(2):
        assert steps[0]() == pytest.approx(steps[1](), rel=1e-5)


def test_a_model_that_cannot_be_compiled_is_not_measured_as_if_it_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr("torch._dynamo.optimize", refuse)
    monkeypatch.setattr("torch.compile", lambda function, **settings: refuse)
    with pytest.raises(RuntimeError, match=r"torch\.compile does not work here; leave --compile true out"):
        build_step(job(is_compiled=True))


def test_without_touching_it_gpt2_has_its_own_dropout() -> None:
    model = build_model(TINY["gpt"])
    assert {part.p for part in peer_model(model).modules() if isinstance(part, torch.nn.Dropout)} == {0.0}
    untouched = peer_model(model, is_untouched=True)
    assert {part.p for part in untouched.modules() if isinstance(part, torch.nn.Dropout)} == {0.1}


def test_the_text_is_the_same_for_both_and_without_a_head_has_one_target() -> None:
    texts = [RandomText(job(program=program)) for program in ("ours", "transformers")]
    assert torch.equal(texts[0].ids, texts[1].ids)
    headless = RandomText(job(has_head=False))
    assert torch.equal(headless.ids, texts[0].ids) and not headless.targets.any()


def test_a_missing_transformers_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"transformers.*is not installed; it is in the extra `test`") as caught:
        build_step(job(program="transformers"))
    assert "\n" not in str(caught.value)


def test_the_smallest_model_is_of_the_same_kind(tiny_config: ModelConfig) -> None:
    tiny = smallest(tiny_config)
    assert type(tiny) is type(tiny_config) and tiny.tie_embeddings == tiny_config.tie_embeddings
    assert sum(parameter.numel() for parameter in build_model(tiny).parameters()) < 2_000


def test_the_peak_of_a_step_grows_with_the_model_and_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked for in a fresh process; here the peaks are made up, so that the rule alone is tested."""
    peaks = iter([100, 160])
    monkeypatch.setattr("llm.bench.steps.peak_memory", lambda device: next(peaks))
    assert step_memory(job()) == 60


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_head_alone_allocates_gradient_copy_and_a_part_of_the_logits(precision: str) -> None:
    wide = job(GPTConfig(vocab_size=50_000, context_length=64, num_layers=1, num_heads=1, dim=8), context=64,
               batch_size=16, precision=precision)
    item_bytes = 4 if precision == "fp32" else 2
    weight, chunk = 4 * 50_000 * 8, item_bytes * 50_000 * chunk_size(50_000, most=1024, item_bytes=item_bytes)
    low = 0 if precision == "fp32" else weight // 2 + CACHE_BYTES   # the weight in bf16, and a few logits in float32
    assert weight + chunk < head_memory(wide) < 1.05 * (weight + chunk + low)
    assert chunk < 0.7 * 4 * 50_000 * 1024


@pytest.mark.slow   # two processes that import torch
def test_a_large_vocabulary_costs_memory_that_the_same_step_without_a_head_does_not() -> None:
    from llm.bench.measure import in_fresh_process

    large = job(GPTConfig(vocab_size=20_000, context_length=64, num_layers=1, num_heads=1, dim=16), context=64,
                batch_size=8)
    weights = 4 * 4 * 20_000 * 16   # of the embedding: itself, its gradient and two moments, float32
    with_head, without = (in_fresh_process(step_memory, replace(large, has_head=has)) for has in (True, False))
    assert without > 0.8 * weights   # what the process had freed before is used again
    assert with_head > without
