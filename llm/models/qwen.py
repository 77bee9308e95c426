"""Qwen: RoPE, RMSNorm, grouped-query attention, SwiGLU. With its switches also Qwen2, Llama and Mistral,
and with experts Qwen3-MoE and Qwen2-MoE.

Paper: Qwen team 2025, arXiv:2505.09388, section 2. Next: `llm/generation.py`, or `llm/train/trainer.py`.
"""

import torch
from torch import Tensor, nn

from llm.models.config import QwenConfig
from llm.models.decoder import Block, Decoder
from llm.models.init import init_weights
from llm.nn import Attention, MoE, RMSNorm, Routing, SwiGLU, rope_tables


class QwenBlock(Block):
    """RMSNorm, grouped-query attention with norms on queries and keys, RMSNorm, SwiGLU or experts."""

    def __init__(self, config: QwenConfig, *, dropout: float = 0.0):
        super().__init__(
            RMSNorm(config.dim, eps=config.norm_eps),
            Attention(
                dim=config.dim, num_heads=config.num_heads, num_kv_heads=config.kv_heads, head_dim=config.head_width,
                use_qkv_bias=config.use_qkv_bias, use_qk_norm=config.use_qk_norm, norm_eps=config.norm_eps,
            ),
            RMSNorm(config.dim, eps=config.norm_eps),
            self.new_mlp(config),
            dropout=dropout,
        )

    @staticmethod
    def new_mlp(config: QwenConfig) -> nn.Module:
        return SwiGLU(dim=config.dim, mlp_dim=config.mlp_width)


class QwenExpertBlock(QwenBlock):
    """The same with a mixture of experts."""

    @staticmethod
    def new_mlp(config: QwenConfig) -> nn.Module:
        return MoE(dim=config.dim, num_experts=config.expert_count, experts_per_token=config.experts_per_token,
                   mlp_dim=config.expert_width, norm_topk_prob=config.norm_topk_prob,
                   shared_dim=config.shared_expert_dim)

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        return self.mlp(x)


class Qwen(Decoder):
    """A Qwen-style model of any size, freshly initialised.

    Args:
        config: the architecture.
        dropout: on the embeddings and on both branches of each block, in [0, 1); 0 after training.
        generator: source of the initial weights; default torch's global one.

    Raises:
        ValueError: if `config.vocab_size` is 0.

    Example:
        >>> import llm, torch
        >>> model = llm.Qwen(llm.QwenConfig(vocab_size=10, num_layers=1, num_heads=2, num_kv_heads=1, dim=16))
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 10])
    """

    config: QwenConfig

    def __init__(self, config: QwenConfig, *, dropout: float = 0.0, generator: torch.Generator | None = None):
        block = QwenExpertBlock if config.expert_count else QwenBlock
        blocks = [block(config, dropout=dropout) for _ in range(config.num_layers)]
        super().__init__(config, blocks=blocks, final_norm=RMSNorm(config.dim, eps=config.norm_eps), dropout=dropout)
        init_weights(self, generator)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        scaling = self.config.rope_scaling
        return rope_tables(positions, head_dim=self.config.head_width, theta=self.config.rope_theta,
                           scaling=scaling.kind, **scaling.numbers)
