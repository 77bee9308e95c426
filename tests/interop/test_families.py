"""Every family at random sizes against transformers: what its class computes from our folder is what we compute."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import llm
from llm.interop import hf_config, huggingface
from llm.models.build import build_model
from llm.models.config import GPTConfig, ModelConfig, QwenConfig
from tests.conftest import TINY, random_ids, random_model
from tests.models.test_parity import gradient_of

transformers = pytest.importorskip("transformers")


def sizes(draw: random.Random) -> dict[str, Any]:
    return {"vocab_size": draw.choice([53, 61, 97, 128]), "context_length": draw.choice([20, 32, 33]),
            "num_layers": draw.randint(1, 3), "tie_embeddings": draw.random() < 0.5}


def gpt(draw: random.Random) -> GPTConfig:
    heads = draw.choice([1, 2, 3])
    return GPTConfig(**sizes(draw), num_heads=heads, dim=heads * draw.choice([8, 9]), mlp_dim=draw.choice([None, 13]),
                     norm_eps=draw.choice([1e-5, 1e-3]))


def qwen(draw: random.Random, **switches: Any) -> QwenConfig:
    groups, sharing = draw.choice([1, 2, 3]), draw.choice([1, 2, 4])
    head_dim = draw.choice([None, 2, 6, 10])
    heads = groups * sharing
    dim = heads * 8 if head_dim is None else draw.choice([12, 16, 20])
    if "num_experts" not in switches:
        switches["mlp_dim"] = draw.choice([None, 7, 24])
        dim += draw.choice([0, 3]) if head_dim is not None else 0   # their experts want multiples of 16 bytes
    numbers = {"dim": dim, "rope_theta": draw.choice([500.0, 10_000.0]), "norm_eps": draw.choice([1e-6, 1e-4])}
    return QwenConfig(**sizes(draw), num_heads=heads, num_kv_heads=groups, head_dim=head_dim, **numbers | switches)


def experts(draw: random.Random) -> dict[str, Any]:
    count = draw.choice([2, 3, 5])
    return {"num_experts": count, "experts_per_token": draw.randint(1, count), "moe_dim": draw.choice([8, 20]),
            "norm_topk_prob": draw.random() < 0.5}


FAMILIES: dict[str, Callable[[random.Random], ModelConfig]] = {
    "gpt2": gpt,
    "llama": lambda draw: qwen(draw, use_qk_norm=False, dim=72),   # a multiple of all these numbers of heads
    "mistral": lambda draw: qwen(draw, use_qk_norm=False, sliding_window=draw.choice([1, 4, 30])),
    "qwen2": lambda draw: qwen(draw, use_qk_norm=False, use_qkv_bias=True, sliding_window=draw.choice([None, 4])),
    "qwen3": lambda draw: qwen(draw, sliding_window=draw.choice([None, 4])),
    "qwen3_moe": lambda draw: qwen(draw, **experts(draw)),
    "qwen2_moe": lambda draw: qwen(draw, use_qk_norm=False, use_qkv_bias=draw.random() < 0.5,
                                   shared_expert_dim=draw.choice([5, 12]), **experts(draw)),
}


SEEDS = range(4)


def drawn(family: str, seed: int) -> ModelConfig:
    return FAMILIES[family](random.Random(f"{family} {seed}"))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seeds_meet_every_kind_of_size(family: str) -> None:
    configs = [drawn(family, seed) for seed in SEEDS]
    assert {config.tie_embeddings for config in configs} == {True, False}
    assert any(config.vocab_size % 2 for config in configs)
    if family != "gpt2":   # whose heads share nothing and divide its width
        assert {config.kv_heads < config.num_heads for config in configs} == {True, False}
        assert any(config.head_width * config.num_heads != config.dim for config in configs)


def close(mine: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(mine, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_random_sizes_give_equal_logits_and_gradients_and_files(family: str, seed: int, tmp_path: Path) -> None:
    config = drawn(family, seed)
    assert hf_config.model_type(config) == family
    ours, ids = random_model(config), random_ids(2, 12, vocab_size=config.vocab_size)
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert theirs.config.model_type == family
    assert close(ours(ids).logits, theirs(ids).logits)
    ours(ids[:, :-1], targets=ids[:, 1:]).loss_sum.backward()
    theirs(ids, labels=ids).loss.mul(ids[:, 1:].numel()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, gradient in huggingface.to_tensors(gradients, config).items():
        assert close(gradient, gradient_of(theirs, name)), name

    theirs.save_pretrained(tmp_path / "theirs")   # their file to ours and back: the same weights to the bit
    llm.save(llm.load(tmp_path / "theirs")[0], tmp_path / "again")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / weights).read_bytes()
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()


SWITCHES = [
    {"use_qk_norm": norm, "use_qkv_bias": bias, "sliding_window": window, "num_experts": count,
     "shared_expert_dim": shared}
    for norm in (True, False) for bias in (True, False) for window in (None, 4) for count in (None, 4)
    for shared in (None, 8)
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_what_can_be_configured_has_a_class_in_transformers(switches: dict[str, Any], tmp_path: Path) -> None:
    """Every combination of switches is either refused, or computes the same in the class that it is saved as."""
    try:
        config = QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=2, dim=16, **switches)
    except ValueError:
        return
    ours, ids = random_model(config), random_ids(1, 12)
    llm.save(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert close(ours(ids).logits, theirs(ids).logits)
    assert llm.load(tmp_path)[0].config.window == config.window


def test_the_switches_that_are_refused_are_these() -> None:
    def is_possible(switches: dict[str, Any]) -> bool:
        try:
            QwenConfig(dim=16, num_heads=2, **switches)
        except ValueError:
            return False
        return True

    assert sum(map(is_possible, SWITCHES)) == 10   # 6 dense, Qwen3-MoE with and without a window, 2 Qwen2-MoE


@pytest.mark.parametrize("family", TINY)
def test_a_transpose_or_an_exchange_that_shapes_cannot_catch_is_caught_by_logits(family: str) -> None:
    """Each square matrix turned, and each two tensors of a block that fit each other's place exchanged."""
    model, ids = random_model(TINY[family]), random_ids(1, 12)
    right = model(ids).logits
    tensors = huggingface.to_tensors(model.state_dict(), model.config)
    wrong = [{name: tensor.T} for name, tensor in tensors.items()
             if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]]
    block = [name for name in tensors if ".0." in name]
    wrong += [{one: tensors[other], other: tensors[one]} for one, other in itertools.combinations(block, 2)
              if tensors[one].shape == tensors[other].shape]
    assert wrong
    other = build_model(model.config).eval()
    for changes in wrong:
        huggingface.from_tensors({**tensors, **changes}, model.config, other.state_dict())   # into its memory
        assert not torch.allclose(other(ids).logits, right, atol=1e-4), list(changes)
