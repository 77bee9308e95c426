"""Scaled RoPE against transformers': the tables near and far, whole models, and both spellings of the settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import llm
from llm.interop import hf_config
from llm.models.config import QwenConfig
from llm.models.scaling import RopeScaling
from tests.conftest import TINY, random_ids, random_model

transformers = pytest.importorskip("transformers")

SCALINGS = {
    "linear": RopeScaling(kind="linear", factor=4.0, trained_context=32),
    "dynamic": RopeScaling(kind="dynamic", factor=4.0, trained_context=32),
    "yarn": RopeScaling(kind="yarn", factor=4.0, trained_context=32),
    "yarn with all its numbers": RopeScaling(kind="yarn", factor=2.5, trained_context=40, beta_fast=8.0, beta_slow=2.0,
                                             attention_factor=0.7, truncate=False),
    "llama3": RopeScaling(kind="llama3", factor=8.0, trained_context=32, low_freq_factor=1.5, high_freq_factor=3.0),
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def scaled(family: str, scaling: RopeScaling) -> QwenConfig:
    config = TINY[family]
    assert isinstance(config, QwenConfig)
    context = scaling.reach if scaling.kind != "llama3" else 128
    return replace(config, context_length=context, rope_scaling=scaling, head_dim=16)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [12, 90])
def test_logits_equal_those_of_transformers_near_and_far(name: str, length: int, tmp_path: Path) -> None:
    ours, ids = random_model(scaled("llama", SCALINGS[name])), random_ids(2, length)
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
    plain = random_model(replace(scaled("llama", SCALINGS[name]), rope_scaling=RopeScaling()))
    is_bent = name != "dynamic" or length > 32
    assert torch.allclose(ours(ids).logits, plain(ids).logits, atol=1e-4) != is_bent


@pytest.mark.parametrize(("scaling", "theta"), [
    (RopeScaling(kind="linear", factor=4.0, trained_context=4096), 1e4),
    (RopeScaling(kind="dynamic", factor=8.0, trained_context=4096), 1e4),
    (RopeScaling(kind="yarn", factor=4.0, trained_context=32768), 1e6),     # Qwen2.5 and Qwen3, as they recommend
    (RopeScaling(kind="llama3", factor=32.0, trained_context=8192), 5e5),   # Llama 3.2 1B
])
def test_tables_of_published_sizes_equal_those_of_transformers_at_long_positions(
    scaling: RopeScaling, theta: float
) -> None:
    config = QwenConfig(vocab_size=4, num_layers=1, num_heads=1, num_kv_heads=1, dim=64, rope_theta=theta,
                        use_qk_norm=False, rope_scaling=scaling, context_length=scaling.reach)
    positions = torch.tensor([[0, 1, 1000, scaling.trained_context, scaling.reach - 1]])
    table = hf_config.to_config(config, eos_id=None)
    theirs = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(transformers.LlamaConfig(**table))
    expected = theirs(torch.zeros(1), positions)
    cos, sin = llm.Qwen(config).rotary(positions)
    sign = torch.tensor([-1.0] * 32 + [1.0] * 32)   # ours has the minus of the first half in the table
    assert torch.allclose(cos[:, 0], expected[0], atol=1e-5)
    assert torch.allclose(sin[:, 0], expected[1] * sign, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SCALINGS)
def test_the_settings_survive_both_spellings(family: str, name: str) -> None:
    config = scaled(family, SCALINGS[name])
    table = hf_config.to_config(config, eos_id=None)
    again = hf_config.from_config(table)
    assert replace(again, mlp_dim=None) == replace(config, mlp_dim=None, num_kv_heads=config.kv_heads)
    theirs = transformers.AutoConfig.for_model(**table).to_dict()   # the spelling of the installed version
    if "rope_parameters" in theirs:
        assert theirs.get("rope_scaling") is None
    assert hf_config.from_config(theirs) == again


def llama(**changes: Any) -> QwenConfig:
    config = hf_config.from_config({**hf_config.to_config(TINY["llama"], eos_id=None), **changes})
    assert isinstance(config, QwenConfig)
    return config


def test_files_in_the_wild_are_understood() -> None:
    qwen = llama(max_position_embeddings=32768, rope_theta=1e6,
                 rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"})
    assert (qwen.context_length, qwen.rope_scaling.trained_context) == (131072, 32768)
    meta = llama(max_position_embeddings=131072, rope_scaling={
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3"})
    assert (meta.context_length, meta.rope_scaling.factor) == (131072, 8.0)
    vicuna = llama(max_position_embeddings=4096, rope_scaling={"type": "linear", "factor": 4.0})
    assert (vicuna.context_length, vicuna.rope_scaling.trained_context) == (16384, 4096)
    deepseek = llama(max_position_embeddings=1280, rope_scaling={
        "type": "yarn", "factor": 40, "original_max_position_embeddings": 32, "mscale": 0.5, "mscale_all_dim": 1.0,
        "beta_fast": 32, "beta_slow": 1})
    logarithm = torch.tensor(40.0).log().item() * 0.1
    assert deepseek.rope_scaling.attention_factor == pytest.approx((0.5 * logarithm + 1) / (logarithm + 1))
    assert llama(rope_scaling={"rope_type": "default"}).rope_scaling == RopeScaling()
    assert llama(rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope_theta == 7.0


@pytest.mark.parametrize(("scaling", "complaint"), [
    ({"rope_type": "longrope", "factor": 2.0}, "'longrope' is not supported; linear, dynamic, yarn, llama3 are"),
    ({"type": "linear", "factor": 2.0, "finesse": 3}, "finesse of rope scaling 'linear' is not supported"),
    ({"type": "linear", "factor": "2"}, "factor = '2' must be of type float"),
    ({"type": "linear", "factor": 0.5}, "factor=0.5 must be at least 1"),
    ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": "8"}, "must be of type int"),
    ("yarn", "rope_scaling = 'yarn' must be an object"),
])
def test_a_scaling_we_do_not_compute_is_refused(scaling: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        llama(rope_scaling=scaling)


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"kind": "spline"}, "kind='spline'; choose from none, linear"),
    ({"kind": "yarn", "factor": 2.0}, "trained_context=0 is not set"),
    ({"kind": "linear", "factor": 2.0, "trained_context": 8}, "context_length=32 must be factor x .* = 16"),
    ({"kind": "yarn", "factor": 8.0, "trained_context": 8}, "context_length=32 must be at least .* = 64"),
    ({"kind": "linear", "factor": 4.0, "trained_context": 8, "beta_fast": 9.0}, "takes no beta_fast"),
    ({"kind": "yarn", "factor": 4.0, "trained_context": 8, "beta_fast": float("nan")}, "beta_fast=nan must be"),
    ({"kind": "none", "factor": 4.0}, "kind=none takes no factor"),
    ({"kind": "yarn", "factor": 4.0, "trained_context": 8, "beta_fast": 0.5}, "beta_slow=1.0 must be positive"),
    ({"kind": "llama3", "factor": 4.0, "trained_context": 8, "low_freq_factor": 4.0}, "low_freq_factor=4.0 must be"),
])
def test_numbers_that_make_no_scaling_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        QwenConfig(context_length=32, rope_scaling=RopeScaling(**changes))


def test_dynamic_scaling_needs_two_pairs() -> None:
    with pytest.raises(ValueError, match="head_dim=2 must be at least 4"):
        replace(scaled("llama", SCALINGS["dynamic"]), head_dim=2)


def test_only_a_scaling_lets_a_text_pass_the_trained_length() -> None:
    ids = random_ids(1, 40)
    with pytest.raises(ValueError, match="40 tokens exceed the model's context_length of 32"):
        random_model(TINY["llama"])(ids)
    assert random_model(scaled("llama", SCALINGS["yarn"]))(ids).logits.shape[1] == 40
