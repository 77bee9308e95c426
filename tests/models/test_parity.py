"""Our modules and transformers' with the same weights: equal logits, equal gradients, files that open both ways."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import llm
from llm.interop import hf_config, huggingface
from llm.models.build import build_model
from llm.models.config import ModelConfig
from tests.conftest import TINY, random_ids, random_model

transformers = pytest.importorskip("transformers")


def gradient_of(theirs: torch.nn.Module, name: str) -> torch.Tensor:
    """By the name on disk; in memory transformers 5 stacks experts, and their gate on top of up."""
    match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
    if not match or name in dict(theirs.named_parameters()):
        return theirs.get_parameter(name).grad
    experts, number, part = theirs.get_submodule(match[1]), int(match[2]), match[3]
    if part == "down":
        return experts.down_proj.grad[number]
    return experts.gate_up_proj.grad[number].chunk(2)[part == "up"]


@pytest.mark.parametrize("family", TINY)
def test_logits_and_gradients_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    ours = random_model(TINY[family])
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    ids = random_ids(2, 12)
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)

    ours(ids[:, :-1], targets=ids[:, 1:]).loss_sum.backward()
    theirs(ids, labels=ids).loss.mul(ids[:, 1:].numel()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, gradient in huggingface.to_tensors(gradients, ours.config).items():
        expected = gradient_of(theirs, name)
        assert torch.allclose(gradient, expected, atol=1e-5 * max(1.0, float(expected.abs().max()))), name


@pytest.mark.parametrize("family", TINY)
def test_a_folder_of_transformers_loads_with_equal_logits(family: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(**hf_config.to_config(TINY[family], eos_id=None))
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours, tokenizer = llm.load(tmp_path)
    ids = random_ids(2, 12)
    assert tokenizer is None
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)


def test_save_and_load_are_the_identity_to_the_bit(tiny_config: ModelConfig, tmp_path: Path) -> None:
    model = random_model(tiny_config)
    llm.save(model, tmp_path)
    again, _ = llm.load(tmp_path)
    assert hf_config.to_config(again.config, eos_id=None) == hf_config.to_config(model.config, eos_id=None)
    assert again.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    llm.save(again, tmp_path / "second")
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_rope_of_another_layout_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairing neighbours instead of halves gives other logits, so the parity tests above do see it."""
    model, ids = random_model(TINY["qwen3"]), random_ids(1, 12)
    right = model(ids).logits

    def interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = (table[..., x.shape[-1] // 2 :] for table in (cos, sin))
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    monkeypatch.setattr("llm.nn.attention.apply_rope", interleaved)
    assert not torch.allclose(model(ids).logits, right, atol=1e-3)


def test_missing_unknown_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    model = random_model(TINY["gpt"])
    tensors = huggingface.to_tensors(model.state_dict(), model.config)
    tensors["transformer.h.0.attn.c_proj.weight"] = torch.zeros(3, 3)
    tensors["surprise.weight"] = tensors.pop("transformer.wpe.weight")
    with pytest.raises(ValueError) as caught:
        huggingface.from_tensors(tensors, model.config, model.state_dict())
    message = str(caught.value)
    assert "transformer.wpe.weight is missing" in message
    assert "surprise.weight is unknown" in message
    assert "c_proj.weight has shape (3, 3)" in message


def test_a_tied_config_with_another_head_in_the_file_is_refused() -> None:
    model = random_model(TINY["qwen3"])
    tensors = huggingface.to_tensors(model.state_dict(), model.config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    huggingface.from_tensors(tensors, model.config, model.state_dict())   # a plain copy is fine
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="differs from the embedding although the config ties them"):
        huggingface.from_tensors(tensors, model.config, model.state_dict())


@pytest.mark.parametrize(("key", "value"), [
    ("hidden_act", "gelu"), ("rope_scaling", {"rope_type": "longrope", "factor": 2.0}),
    ("rope_scaling", {"rope_type": "linear", "factor": 2.0, "finesse": 3}),
    ("model_type", "mamba"), ("mlp_bias", True), ("layer_types", ["full_attention", "linear_attention"]),
])
def test_a_setting_we_do_not_compute_is_refused(key: str, value: object, tmp_path: Path) -> None:
    llm.save(build_model(TINY["qwen3"]), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match="not supported"):
        llm.load(tmp_path)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_a_window_of_all_layers_or_of_none_goes_both_ways(family: str, tmp_path: Path) -> None:
    ours, ids = random_model(replace(TINY[family], sliding_window=4)), random_ids(2, 12)
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    assert llm.load(tmp_path / "theirs")[0].config.window == 4
    if family == "mistral":
        return
    for max_window_layers, expected in ((0, 4), (2, None)):
        table = {**hf_config.to_config(ours.config, eos_id=None), "max_window_layers": max_window_layers}
        assert hf_config.from_config(table).window == expected
    with pytest.raises(ValueError, match="mixes layers with and without a sliding window"):
        hf_config.from_config({**table, "max_window_layers": 1})
