"""Tiny models and texts that many tests share."""

import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import llm
from llm.models.build import build_model
from llm.models.config import GPTConfig, ModelConfig, QwenConfig
from llm.models.decoder import Decoder

HERE = (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", socket.gethostname())
TINY: dict[str, ModelConfig] = {
    "gpt": GPTConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=2, dim=16),
    "qwen3": QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=4, num_kv_heads=2, dim=16),
    "qwen2": QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=4, num_kv_heads=1, dim=24, head_dim=8,
                        use_qk_norm=False, use_qkv_bias=True, tie_embeddings=False),
    "llama": QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=2, num_kv_heads=None, dim=16,
                        use_qk_norm=False, rope_theta=500.0, tie_embeddings=False),
    "mistral": QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=4, num_kv_heads=2, dim=16,
                          use_qk_norm=False, sliding_window=5, tie_embeddings=False),
    "qwen3_moe": QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=4, num_kv_heads=2, dim=16,
                            num_experts=4, experts_per_token=2, moe_dim=12),
    "qwen2_moe": QwenConfig(vocab_size=61, context_length=32, num_layers=2, num_heads=2, num_kv_heads=1, dim=16,
                            use_qk_norm=False, use_qkv_bias=True, num_experts=3, experts_per_token=1, moe_dim=20,
                            shared_expert_dim=12, norm_topk_prob=False, tie_embeddings=False),
}


@pytest.fixture(params=TINY)
def tiny_config(request: pytest.FixtureRequest) -> ModelConfig:
    return TINY[request.param]


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> Decoder:
    return random_model(tiny_config)


def random_model(config: ModelConfig, seed: int = 0) -> Decoder:
    """A model whose every parameter matters: larger weights than the usual start, no zeros and no ones."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def random_ids(*shape: int, vocab_size: int = 61, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def windows(count: int = 500, context: int = 16, **settings: object) -> llm.TokenWindows:
    """Learnable tokens: each follows from the one before, with a little noise."""
    rng = np.random.default_rng(0)
    tokens = np.cumsum(rng.choice([1, 1, 1, 7], count)) % 61
    return llm.TokenWindows(tokens, context=context, **settings)   # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test leaves to torch's own generator is the same in every run, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit laws hold for one number of threads; tiny tensors are faster with one anyway."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may depend on the network, nor reach it by accident: only this machine answers."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connect_here(self: socket.socket, address: Any) -> None:
        assert self.family == getattr(socket, "AF_UNIX", None) or str(address[0]) in HERE, f"a test calls {address}"
        connect(self, address)

    def look_up_here(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        assert name in HERE, f"a test looks up {host}"
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
    monkeypatch.setattr(socket, "getaddrinfo", look_up_here)
