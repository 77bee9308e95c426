"""The primitives every model here is built from, each made from plain numbers in one line.

    >>> from llm.nn import Attention
    >>> attention = Attention(dim=64, num_heads=4, num_kv_heads=2)

Dimension legend, used in every shape comment of the library:

    B batch          H query heads        D head width       E experts
    T query time     G key/value heads    V vocabulary       K experts per token
    S key time       C model width        N tokens, flat     R rank (LoRA)

Reading order: norm, rope, attention, cache, mlp, moe, lora, product. How they make a whole model is in
`llm.models.decoder`.
"""

from llm.nn.attention import Attention, AttentionPlan, fused_attention, naive_attention, plan_attention
from llm.nn.cache import KVCache
from llm.nn.lora import LoRALinear, disabled, eject, inject, merge, unmerge
from llm.nn.mlp import GeluMLP, SwiGLU
from llm.nn.moe import MoE, RouterReport, Routing, balanced_bias
from llm.nn.norm import LayerNorm, RMSNorm
from llm.nn.rope import apply_rope, rope_tables

__all__ = [
    "Attention",
    "AttentionPlan",
    "GeluMLP",
    "KVCache",
    "LayerNorm",
    "LoRALinear",
    "MoE",
    "RMSNorm",
    "RouterReport",
    "Routing",
    "SwiGLU",
    "apply_rope",
    "balanced_bias",
    "disabled",
    "eject",
    "fused_attention",
    "inject",
    "merge",
    "naive_attention",
    "plan_attention",
    "rope_tables",
    "unmerge",
]
