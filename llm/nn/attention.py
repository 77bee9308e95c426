"""Causal self-attention with grouped key/value heads, twice: naive, as in the paper, and fused, as it is run.

The two share no mask code, so a test that they agree says something. Which keys a query may see is worked out once
per forward, in an `AttentionPlan`, and handed to every layer; the modules themselves remember nothing.

Papers: Vaswani et al. 2017, arXiv:1706.03762, eq. 1; grouped heads: Ainslie et al. 2023, arXiv:2305.13245;
norms on queries and keys: Henry et al. 2020, arXiv:2010.04245. Next: `cache.py`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.nn.cache import LayerCache
from llm.nn.norm import RMSNorm
from llm.nn.product import joint_linear
from llm.nn.rope import apply_rope

SHORT = {torch.float32: 64, torch.bfloat16: 256}   # tokens; up to here a CPU learns faster with the T x T matrix


class AttentionPlan(NamedTuple):
    """Who may look at whom in one forward pass, the same for every layer.

    Keys stand in slots first_key .. num_keys - 1: without a cache, slot = place in the row; with one, see `cache.py`.
    A query sees the slots up to its own, and among them only those of its own segment and of its window.
    """

    slots: Tensor                # (B or 1, T) int64, the slot of each query's own key
    start: int | None            # first slot when every row uses the same T neighbours, else None
    first_key: int               # the first slot that any query sees; above 0 for one more token behind a window
    num_keys: int                # slots in use; S = num_keys - first_key
    segment_ids: Tensor | None   # (B, T) int64, packed documents; never together with a cache
    window: int | None           # a query sees its own slot and the window - 1 before it; None: all before it
    mask: Tensor | None          # (B or 1, 1, T, S) bool, True = visible; for `fused_attention`, which explains None
    places: Tensor | None = None   # (B,) int64, the one token of each row that asks; slots and mask are then its own

    def at(self, places: Tensor) -> "AttentionPlan":
        """The plan of a layer in which one token of each row asks and all answer, since nobody reads the others.

        Args:
            places: (B,) int64 in [0, T). Rows must neither be packed nor go on from a cache.

        Example:
            >>> plan_attention(3).at(torch.tensor([0, 1])).mask[:, 0, 0]
            tensor([[ True, False, False],
                    [ True,  True, False]])
        """
        assert self.segment_ids is None and self.start == 0, "neither packed rows nor a cache"
        slots = self.slots.expand(len(places), -1).gather(1, places[:, None])   # (B, 1)
        mask = _visible(slots, torch.arange(self.first_key, self.num_keys, device=slots.device), self.window)
        return self._replace(slots=slots, mask=mask[:, None], places=places)


def plan_attention(
    num_queries: int,
    *,
    cached: int = 0,
    slots: Tensor | None = None,
    segment_ids: Tensor | None = None,
    window: int | None = None,
    device: torch.device | str = "cpu",
) -> AttentionPlan:
    """Work out slots and mask for `num_queries` new tokens behind `cached` earlier ones.

    Args:
        num_queries: T.
        cached: tokens already in the cache, 0 without one.
        slots: (B, T) int64 where rows stand at different positions (ragged batches), each < cached + T.
        segment_ids: (B, T) int64; tokens see only their own segment. Only without a cache.
        window: >= 1; a token sees itself and the window - 1 tokens before it. None sees all before it.
        device: where the mask is needed.

    Returns:
        The plan. Its mask is None in the two common cases, a whole text and one more token, where the fused
        kernel needs none.

    Raises:
        ValueError: for segments together with a cache, or a window below 1.

    Paper: windows: Jiang et al. 2023 (Mistral 7B), arXiv:2310.06825, section 2.

    Example:
        >>> plan_attention(2, cached=1).mask[0, 0]
        tensor([[ True,  True, False],
                [ True,  True,  True]])
        >>> plan_attention(3, window=2).mask[0, 0]
        tensor([[ True, False, False],
                [ True,  True, False],
                [False,  True,  True]])
    """
    if segment_ids is not None and cached:
        raise ValueError(f"segment_ids with a cache of {cached} tokens; packed texts are only for training")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1: a token sees at least itself")
    num_keys = cached + num_queries
    start = None if slots is not None else cached
    is_plain = start is not None and (cached == 0 or num_queries == 1)   # causal from slot 0, or one query for all
    if slots is None:
        slots = torch.arange(cached, num_keys, device=device)[None]   # (1, T)
    if is_plain and segment_ids is None and (window is None or num_keys <= window or num_queries == 1):
        first_key = 0 if window is None else max(0, num_keys - window)
        return AttentionPlan(slots, start, first_key, num_keys, segment_ids, window, mask=None)
    mask = _visible(slots, torch.arange(num_keys, device=device), window)
    if segment_ids is not None:
        mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return AttentionPlan(slots, start, 0, num_keys, segment_ids, window, mask[:, None])   # (B or 1, 1, T, S)


def _visible(slots: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which of the slots `keys` (S,) the queries in `slots` (B or 1, T) see: (B or 1, T, S) bool."""
    distance = slots[:, :, None] - keys   # negative for later keys
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def take_places(x: Tensor, places: Tensor) -> Tensor:
    """One token of each row: (B or 1, T, ...) at (B,) to (B, 1, ...)."""
    rows = torch.arange(len(places), device=places.device) if len(x) > 1 else 0
    return x[rows, places][:, None]


def naive_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, written out; the whole T x S matrix exists. For reading and for tests.

    Args:
        q: (B, H, T, D) queries.
        k, v: (B, G, S, D) keys and values; G divides H, query head h reads group h // (H / G).
        plan: says which slots each query sees; its `mask` is not read.

    Returns:
        (B, H, T, D).
    """
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)   # (B, H, S, D)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)   # (B, H, S, D)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5   # (B, H, T, S)
    key_slot = torch.arange(plan.first_key, plan.num_keys, device=q.device)
    hidden = key_slot[None, None, None, :] > plan.slots[:, None, :, None]
    if plan.window is not None:
        hidden = hidden | (key_slot[None, None, None, :] <= plan.slots[:, None, :, None] - plan.window)
    if plan.segment_ids is not None:
        hidden = hidden | (plan.segment_ids[:, None, :, None] != plan.segment_ids[:, None, None, :])
    weights = scores.float().masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return weights.to(v.dtype) @ v


def fused_attention(q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan) -> Tensor:
    """The same through torch's fused kernel, which never writes the T x S matrix to memory.

    Only where a CPU learns from short texts is the matrix written out, as that is faster: see `_short_attention`.

    Args:
        q: (B, H, T, D) queries.
        k, v: (B, G, S, D) keys and values; G divides H.
        plan: without a mask it means plain causal attention over T = S tokens, or one query that sees all S.

    Returns:
        (B, H, T, D).

    Paper: Dao et al. 2022, arXiv:2205.14135.
    """
    num_queries = q.shape[2]
    if num_queries == 1 and q.shape[1] != k.shape[1]:   # a group's heads as its queries: no key is copied for them
        grouped = q.unflatten(1, (k.shape[1], -1)).squeeze(3)   # (B, G, H / G, D)
        return F.scaled_dot_product_attention(grouped, k, v, attn_mask=plan.mask).flatten(1, 2).unsqueeze(2)
    is_causal = plan.mask is None and num_queries > 1
    assert not is_causal or num_queries == k.shape[2], "a plan without a mask is for T = S or T = 1"
    if is_causal and q.requires_grad and q.device.type == "cpu" and num_queries <= SHORT.get(q.dtype, 0):
        return _short_attention(q, k, v)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=plan.mask, is_causal=is_causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _short_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain causal attention in learning from few tokens, where torch's fused backward for CPUs is slow.

    Forward and backward, measured with two cores: 1.4 times as fast for 64 tokens in float32 and heads 32 wide (as fast
    for heads 128 wide), three times in bf16, and 1.5 to 2.5 times for 256 in bf16. It costs memory, the weights of all
    T x T pairs, and in bf16 precision: scores are rounded, as wherever attention is written out under autocast. Large
    ones feel it: with scores of standard deviation 1, 3 and 8 the output is off by 0.3, 0.7 and 1.1%, where the fused
    kernel stays at 0.2.
    The R = H / G heads of a group ask in one matrix product, so that no key is copied for them.
    """
    batch, heads, length, head_dim = q.shape
    groups = k.shape[1]
    later = torch.full((length, length), float("-inf"), dtype=q.dtype, device=q.device).triu_(1)
    if heads > groups:
        later = later.repeat(heads // groups, 1)   # (R T, T)
    asking = q.reshape(batch * groups, heads // groups * length, head_dim)
    keys, values = (x.reshape(batch * groups, length, head_dim) for x in (k, v))
    scores = torch.baddbmm(later, asking, keys.mT, alpha=head_dim**-0.5)   # (B G, R T, T)
    return torch.bmm(scores.softmax(-1), values).view(q.shape)


class Attention(nn.Module):
    """Each token asks (q), every earlier token offers (k) and answers (v); the answers are mixed by how well they fit.

    Args:
        dim: C, width in and out.
        num_heads: H, query heads.
        num_kv_heads: G, key/value heads, a divisor of H; fewer make the cache smaller. Default H.
        head_dim: D; default C / H.
        use_qkv_bias: biases on the q, k and v projections (GPT-2, Qwen2).
        use_out_bias: a bias on the output projection (GPT-2).
        use_qk_norm: RMSNorm on each query and key head before RoPE (Qwen3).
        norm_eps: of those norms.
        use_fused: the fused kernel (default), or the naive one, which shows every step.

    Raises:
        ValueError: if the heads do not fit the width or each other.

    Example:
        >>> Attention(dim=64, num_heads=4, num_kv_heads=2)(torch.zeros(1, 5, 64)).shape
        torch.Size([1, 5, 64])
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        use_qkv_bias: bool = False,
        use_out_bias: bool = False,
        use_qk_norm: bool = False,
        norm_eps: float = 1e-6,
        use_fused: bool = True,
    ):
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(f"num_heads={num_heads} does not divide dim={dim}; choose a divisor or set head_dim")
            head_dim = dim // num_heads
        if num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}; choose a divisor")
        self.head_dim = head_dim
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=use_qkv_bias)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=use_qkv_bias)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=use_qkv_bias)
        self.out_proj = nn.Linear(num_heads * head_dim, dim, bias=use_out_bias)
        self.q_norm = RMSNorm(head_dim, eps=norm_eps) if use_qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps=norm_eps) if use_qk_norm else nn.Identity()
        self.attend = fused_attention if use_fused else naive_attention

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix the tokens of each row.

        Args:
            x: (B, T, C).
            plan: who sees whom; default plain causal.
            rope: the tables of `rope_tables` for the T positions, or None for no rotation.
            cache: this layer's cache, written in place; earlier tokens are read from it.

        Returns:
            (B, T, C), or (B, 1, C) where the plan lets one token of each row ask.
        """
        if plan is None:
            plan = plan_attention(x.shape[1], device=x.device)
        if plan.places is None:
            q, k, v = joint_linear(x, (self.q_proj, self.k_proj, self.v_proj), width=self.head_dim)
        else:
            q = self.q_proj(take_places(x, plan.places)).unflatten(-1, (-1, self.head_dim))
            k, v = joint_linear(x, (self.k_proj, self.v_proj), width=self.head_dim)
        q = self.q_norm(q).transpose(1, 2)   # (B, H, T or 1, D)
        k, v = self.k_norm(k).transpose(1, 2), v.transpose(1, 2)   # (B, G, T, D)
        if rope is not None:
            cos, sin = rope
            k = apply_rope(k, cos, sin)
            if plan.places is not None:
                cos, sin = (take_places(table[:, 0], plan.places)[:, None] for table in rope)   # (B, 1, 1, D)
            q = apply_rope(q, cos, sin)
        if cache is not None:
            k, v = cache.write(k, v, slots=plan.slots, start=plan.start, first_key=plan.first_key,
                               num_keys=plan.num_keys)   # (B, G, S, D)
        mixed = self.attend(q, k, v, plan)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))   # (B, T, C)
