"""GPT-2: learned positions, LayerNorm, biases, GELU, a tied head.

Paper: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Next: `qwen.py`.
"""

import torch
from torch import Tensor, nn

from llm.models.config import GPTConfig
from llm.models.decoder import Block, Decoder
from llm.models.init import init_weights
from llm.nn import Attention, GeluMLP, LayerNorm


class GPTBlock(Block):
    """LayerNorm, attention with biases, LayerNorm, GELU feed-forward."""

    def __init__(self, config: GPTConfig, *, dropout: float = 0.0):
        super().__init__(
            LayerNorm(config.dim, eps=config.norm_eps),
            Attention(dim=config.dim, num_heads=config.num_heads, use_qkv_bias=True, use_out_bias=True),
            LayerNorm(config.dim, eps=config.norm_eps),
            GeluMLP(dim=config.dim, mlp_dim=config.mlp_width),
            dropout=dropout,
        )


class GPT(Decoder):
    """A GPT-2 of any size, freshly initialised.

    Args:
        config: the architecture.
        dropout: on the embeddings and on both branches of each block, in [0, 1); 0 after training.
        generator: source of the initial weights; default torch's global one.

    Raises:
        ValueError: if `config.vocab_size` is 0.

    Example:
        >>> import llm, torch
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=10, context_length=8, num_layers=1, num_heads=1, dim=8))
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> model(ids, targets=ids).loss_sum.shape   # a sum: divide by the number of targets yourself
        torch.Size([])
    """

    config: GPTConfig

    def __init__(self, config: GPTConfig, *, dropout: float = 0.0, generator: torch.Generator | None = None):
        blocks = [GPTBlock(config, dropout=dropout) for _ in range(config.num_layers)]
        super().__init__(config, blocks=blocks, final_norm=LayerNorm(config.dim, eps=config.norm_eps), dropout=dropout)
        self.embed_positions = nn.Embedding(config.context_length, config.dim)
        init_weights(self, generator)

    def embed_tokens(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        return self.embed(input_ids) + self.embed_positions(positions)
