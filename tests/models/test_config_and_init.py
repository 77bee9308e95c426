"""Impossible configurations are refused; presets have their published sizes; the table of initial values holds."""

import re
from dataclasses import replace

import pytest
import torch

import llm
from llm.config import preset_names
from llm.models import init
from llm.models.build import build_model, empty_model
from llm.models.config import FAMILIES, GPTConfig, ModelConfig, QwenConfig, model_preset

PUBLISHED = {   # parameters, as transformers counts them with the head tied
    "gpt2-124m": 124_439_808, "gpt2-355m": 354_823_168, "gpt2-774m": 774_030_080, "gpt2-1.5b": 1_557_611_200,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-30b-a3b": 30_532_122_624,
    "qwen2.5-0.5b": 494_032_768, "llama3.2-1b": 1_235_814_400, "smollm2-135m": 134_515_008,
    "mistral-7b": 7_241_732_096,
}


@pytest.mark.parametrize("name", preset_names("models"))
def test_every_preset_builds_and_has_its_published_size(name: str) -> None:
    config = model_preset(name)
    model = empty_model(config if config.vocab_size else replace(config, vocab_size=100))
    size = sum(parameter.numel() for parameter in model.parameters())
    if name in PUBLISHED:
        assert size == PUBLISHED[name]
    elif match := re.search(r"(\d+\.\d)b$", name):
        assert size / 1e9 == pytest.approx(float(match[1]), abs=0.05)


@pytest.mark.parametrize(("family", "changes", "complaint"), [
    ("gpt", {"num_heads": 5}, r"num_heads=5 does not divide dim=256; choose 4 or 8"),
    ("gpt", {"num_layers": 0}, r"num_layers=0 must be at least 1"),
    ("gpt", {"vocab_size": -1}, r"vocab_size=-1"),
    ("qwen", {"num_heads": 6}, r"num_heads=6 does not divide dim=256; choose 4 or 8 or set head_dim"),
    ("qwen", {"num_kv_heads": 3}, r"num_kv_heads=3 does not divide num_heads=4"),
    ("qwen", {"num_kv_heads": 0}, r"num_kv_heads=0"),
    ("qwen", {"head_dim": 9}, r"head_dim=9 must be at least 2 and even"),
    ("qwen", {"use_qkv_bias": True}, r"use_qk_norm and use_qkv_bias"),
    ("qwen", {"rope_theta": 0.0}, r"rope_theta=0.0 must be positive"),
    ("qwen", {"sliding_window": 0}, r"sliding_window=0 must be at least 1"),
    ("qwen", {"head_dim": -2}, r"head_dim=-2 must be at least 2"),
    ("qwen", {"dim": 10**12}, r"dim=1000000000000 must be at most 4,294,967,295"),
    ("qwen", {"use_qk_norm": False, "num_heads": 6, "head_dim": 8}, r"num_heads=6 does not divide dim=256, which"),
    ("qwen", {"num_experts": 1}, r"experts_per_token=2 must lie between 1 and num_experts=1"),
    ("qwen", {"num_experts": 4, "mlp_dim": 8}, r"mlp_dim=8 has no effect with num_experts=4; set moe_dim"),
    ("qwen", {"num_experts": 4, "moe_dim": 0}, r"moe_dim=0 must be at least 1"),
    ("qwen", {"moe_dim": 8, "experts_per_token": 1}, r"experts_per_token=1 has no effect.*moe_dim=8 has no effect"),
    ("qwen", {"num_experts": 4, "shared_expert_dim": 8}, r"shared_expert_dim=8 with use_qk_norm is no published"),
    ("qwen", {"num_experts": 4, "use_qk_norm": False}, r"shared_expert_dim=None must be at least 1"),
    ("qwen", {"num_experts": 4, "use_qk_norm": False, "shared_expert_dim": 8, "sliding_window": 3}, "sliding_window"),
    ("qwen", {"num_layers": 0, "dim": -4}, r"num_layers=0.*dim=-4"),   # all complaints at once
])
def test_an_impossible_configuration_is_refused(family: str, changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FAMILIES[family](**changes)


def test_a_model_needs_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="vocab_size=0 is not set"):
        llm.GPT(GPTConfig())


@pytest.mark.parametrize("config", [
    GPTConfig(vocab_size=500, num_layers=3, num_heads=4, dim=64, tie_embeddings=False),
    QwenConfig(vocab_size=500, num_layers=3, num_heads=4, dim=64, use_qk_norm=False, use_qkv_bias=True),
    QwenConfig(vocab_size=500, num_layers=3, num_heads=4, dim=64, use_qk_norm=False, num_experts=4,
               shared_expert_dim=96),
])
def test_initial_values_are_those_of_the_table(config: ModelConfig) -> None:
    model = build_model(config, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            is_residual = re.search(r"(out|down)_proj", name)
            expected = 0.02 / (6**0.5 if is_residual else 1)
            rel = 0.05 if parameter.numel() > 1000 else 0.3   # few numbers have no exact standard deviation
            assert float(parameter.detach().std()) == pytest.approx(expected, rel=rel), name
            assert abs(float(parameter.detach().mean())) < (0.002 if parameter.numel() > 1000 else 0.006), name


def test_the_docstring_table_names_the_standard_deviation_in_force() -> None:
    assert f"std {init.STD}" in (init.__doc__ or "")
    with pytest.raises(ValueError, match=r"no initial value for parameter 'blocks\.0\.surprise\.weight'"):
        init.initial_std("blocks.0.surprise.weight", num_layers=1)


def test_the_same_generator_gives_the_same_model_and_the_global_one_is_left_alone() -> None:
    config = QwenConfig(vocab_size=50, num_layers=1, num_heads=2, dim=16)
    one, other = (build_model(config, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("config", [
    GPTConfig(vocab_size=50, num_layers=2, num_heads=4, dim=16),
    QwenConfig(vocab_size=50, num_layers=2, num_heads=4, num_kv_heads=2, dim=16),
    QwenConfig(vocab_size=50, num_layers=1, num_heads=4, num_kv_heads=1, dim=16, head_dim=8),
])
def test_a_copying_head_writes_back_what_it_reads(config: ModelConfig) -> None:
    model = build_model(config, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    init.init_copying(model, torch.Generator().manual_seed(1), strength=0.05)
    group = config.num_heads // config.kv_heads
    for block in model.blocks:
        values = block.attention.v_proj.weight.unflatten(0, (-1, config.head_width))   # (G, D, C)
        outputs = block.attention.out_proj.weight.unflatten(1, (-1, config.head_width))   # (C, H, D)
        for head in range(config.num_heads):
            read = values[head // group].detach()
            assert torch.allclose(read @ read.T, torch.eye(config.head_width), atol=1e-5)
            assert torch.allclose(outputs[:, head].detach(), 0.05 * read.T)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.endswith(("v_proj.weight", "out_proj.weight")) for name in changed)
