"""Every initial value in one table.

| parameter                          | initial value                                    |
| ---------------------------------- | ------------------------------------------------ |
| token and position embeddings      | normal, std 0.02                                 |
| head (untied)                      | normal, std 0.02                                 |
| q, k, v, gate and up projections   | normal, std 0.02                                 |
| attention out, feed-forward down   | normal, std 0.02 / sqrt(2 x layers)              |
| router, gate of a shared expert    | normal, std 0.02                                 |
| norm gains                         | 1                                                |
| all biases                         | 0                                                |

The projections that write into the residual stream start smaller, so that its variance does not grow with depth
(Radford et al. 2019, section 2.3). Adapters bring their own start, `llm/nn/lora.py`. `init_copying` is another start
for small models whose texts repeat what they name.
"""

import re
from typing import TYPE_CHECKING

import torch
from torch import nn

from llm.nn import Attention

if TYPE_CHECKING:
    from llm.models.decoder import Decoder

STD = 0.02

# (what the parameter's name matches, std of its normal distribution, whether it writes into the residual stream)
TABLE: list[tuple[str, float, bool]] = [
    (r"embed(_positions)?\.weight", STD, False),
    (r"head\.weight", STD, False),
    (r".*\.(q|k|v|gate|up)_proj(\.weight)?", STD, False),   # stacked experts are parameters of their own
    (r".*\.(out|down)_proj(\.weight)?", STD, True),
    (r".*\.(router|shared_gate)\.weight", STD, False),
]


def init_weights(model: "Decoder", generator: torch.Generator | None = None) -> None:
    """Give every parameter its initial value by its name, in place.

    Args:
        model: a decoder.
        generator: source of the random numbers; default torch's global one.

    Raises:
        ValueError: for a parameter that the table does not know.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        else:
            std = initial_std(name, num_layers=model.config.num_layers)
            nn.init.normal_(parameter, std=std, generator=generator)


@torch.no_grad()
def init_copying(model: "Decoder", generator: torch.Generator | None = None, *, strength: float = 0.2) -> None:
    """Start every attention layer as one that copies: what a head reads from a token it writes back as it is.

    v_proj gets orthonormal rows, and a head's part of out_proj is the transpose of its values' rows, times `strength`.
    So each head adds to the stream a little of the tokens it looks at, and a tied output head takes that for a
    prediction: what stands in the text may come again. What is left to learn is where to look.

    Args:
        model: freshly initialised; its other weights stay as they are.
        generator: source of the random numbers; default torch's global one.
        strength: of the copy, > 0; beside embeddings of std 0.02 that is still little.

    Paper: mimetic initialization: Trockman and Kolter 2023, arXiv:2305.09828.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=9, num_layers=1, num_heads=1, dim=8))
        >>> init_copying(model, strength=0.5)
        >>> attention = model.blocks[0].attention
        >>> torch.allclose(attention.out_proj.weight @ attention.v_proj.weight, 0.5 * torch.eye(8), atol=1e-6)
        True
    """
    for block in model.blocks:
        attention = block.get_submodule("attention")
        assert isinstance(attention, Attention)
        nn.init.orthogonal_(attention.v_proj.weight, generator=generator)
        heads = attention.v_proj.weight.unflatten(0, (-1, attention.head_dim))   # (G, D, C)
        num_sharing = attention.q_proj.out_features // attention.v_proj.out_features   # query heads to a value head
        heads = heads.repeat_interleave(num_sharing, dim=0)   # (H, D, C)
        attention.out_proj.weight.copy_(strength * heads.flatten(0, 1).T)


def initial_std(name: str, *, num_layers: int) -> float:
    """The standard deviation that the table gives to a matrix.

    Example:
        >>> initial_std("blocks.0.mlp.down_proj.weight", num_layers=2)
        0.01
    """
    for pattern, std, is_residual in TABLE:
        if re.fullmatch(pattern, name):
            return std / (2 * num_layers) ** 0.5 if is_residual else std
    raise ValueError(f"no initial value for parameter {name!r}; add it to the table in llm/models/init.py")
