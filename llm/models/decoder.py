"""The trunk every decoder shares: embed, blocks, final norm, head. A family adds its block and its positions.

What is not here: the families (`gpt.py`, `qwen.py`), initial values (`init.py`), generation (`llm/generation.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.losses import IGNORE_INDEX, next_token_loss_sum, token_log_likelihood
from llm.models.config import ModelConfig
from llm.models.routing import summarize
from llm.nn import Attention, AttentionPlan, KVCache, RouterReport, Routing, plan_attention
from llm.nn.attention import take_places
from llm.nn.cache import LayerCache
from llm.nn.norm import compute_dtype


class Output(NamedTuple):
    """What `Decoder.forward` computed; the fields that were not asked for are None."""

    logits: Tensor | None = None           # (B, T, V), or (B, 1, V) with `logits_at`
    loss_sum: Tensor | None = None         # scalar float32, nats summed over the supervised positions
    log_likelihood: Tensor | None = None   # (B, T) float32, 0 where ignored
    aux_loss: Tensor | None = None         # beside each of the two, from experts: balance, one per supervised position
    z_loss: Tensor | None = None           # and size of the router's scores; both scalar sums, `llm/losses.py`
    router: RouterReport | None = None     # and what the routers did


class Block(nn.Module):
    """One pre-norm residual block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        attention_norm, attention, mlp_norm, mlp: the four parts, in order.
        dropout: share of each branch's output that is zeroed while training.

    Paper: pre-norm: Xiong et al. 2020, arXiv:2002.04745.
    """

    def __init__(self, attention_norm: nn.Module, attention: Attention, mlp_norm: nn.Module, mlp: nn.Module, *,
                 dropout: float):
        super().__init__()
        self.attention_norm = attention_norm
        self.attention = attention
        self.mlp_norm = mlp_norm
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: Tensor,
        plan: AttentionPlan,
        rope: tuple[Tensor, Tensor] | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """(B, T, C) to (B, T, C), and the routing where there are experts; arguments as of `Attention.forward`."""
        mixed = self.attention(self.attention_norm(hidden), plan, rope, cache)
        if plan.places is not None:
            hidden = take_places(hidden, plan.places)   # (B, 1, C), all that is left to do
        hidden = hidden + self.dropout(mixed)
        change, routing = self.feed_forward(self.mlp_norm(hidden))
        return hidden + self.dropout(change), routing

    def feed_forward(self, x: Tensor) -> tuple[Tensor, Routing | None]:
        """(B, T, C) to (B, T, C); a block with experts overrides it and tells where it sent its tokens."""
        return self.mlp(x), None


class Decoder(nn.Module):
    """A causal language model. Families subclass it and override `embed_tokens` or `rotary`.

    Args:
        config: the architecture; `vocab_size` must be set.
        blocks: the layers, in order.
        final_norm: before the head.
        dropout: on the embeddings, while training (the blocks bring their own).

    Raises:
        ValueError: if `config.vocab_size` is 0.
    """

    def __init__(self, config: ModelConfig, *, blocks: Sequence[Block], final_norm: nn.Module, dropout: float):
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"vocab_size={config.vocab_size} is not set; give the tokenizer's vocab_size")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.head = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.use_checkpointing = False   # recompute each block in the backward: less memory, a third more work

    @property
    def head_weight(self) -> Tensor:
        """(V, C), the output embedding; the input embedding itself when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def embed_tokens(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """(B, T) ids at (B or 1, T) positions to (B, T, C)."""
        return self.embed(input_ids)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor] | None:
        """RoPE tables for the positions, or None for a family without RoPE."""
        return None

    def forward(
        self,
        input_ids: Tensor,
        *,
        targets: Tensor | None = None,
        reduction: Literal["sum", "none"] = "sum",
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: KVCache | None = None,
        logits_at: Tensor | None = None,
    ) -> Output:
        """The model's only entry, with optional results: wrappers such as DDP know no other.

        Without targets it returns logits. With targets it never returns them, so that the head may be computed in
        pieces: `reduction="sum"` gives `loss_sum`, `reduction="none"` gives `log_likelihood`.

        Args:
            input_ids: (B, T) int64 in [0, V).
            targets: (B, T) int64, the token after each position, or IGNORE_INDEX.
            reduction: which result targets ask for.
            positions: (B, T) int64; default 0 .. T-1, or going on from the cache. Give them for packed rows
                (restarting with each segment) and, with a cache, for rows of different lengths.
            segment_ids: (B, T) int64; tokens see only their own segment.
            cache: keys and values of earlier tokens; the new ones are written into it and its length grows by T.
            logits_at: (B,) int64; compute the logits of this one place of each row only.

        Returns:
            `Output` with one of the first three fields set; for targets of a model with experts also the last three.

        Raises:
            ValueError: if the text is longer than the context or the cache or its positions are beyond, targets are
                not of the shape of input_ids or beside logits_at, or the reduction is unknown.

        Example:
            >>> import llm, torch
            >>> model = llm.GPT(llm.GPTConfig(vocab_size=65, num_layers=1, num_heads=2, dim=16))
            >>> model(torch.tensor([[1, 2, 3]])).logits.shape
            torch.Size([1, 3, 65])
        """
        if targets is not None and targets.shape != input_ids.shape:
            raise ValueError(f"targets of shape {tuple(targets.shape)} do not fit input_ids of shape "
                             f"{tuple(input_ids.shape)}; give each position its next token, or IGNORE_INDEX")
        if reduction not in ("sum", "none"):
            raise ValueError(f"reduction={reduction!r} is not one of sum, none; for a mean divide the sum yourself")
        if targets is not None and logits_at is not None:
            raise ValueError("targets and logits_at were both given, but with targets there are no logits; leave one "
                             "out")
        hidden, routings = self.trunk(input_ids, positions=positions, segment_ids=segment_ids, cache=cache,
                                      places=logits_at)
        hidden = self.final_norm(hidden)
        if targets is None:
            return Output(logits=F.linear(hidden, self.head_weight))
        experts = summarize(routings, targets != IGNORE_INDEX) if routings else {}
        if reduction == "sum":
            return Output(loss_sum=next_token_loss_sum(hidden, self.head_weight, targets), **experts)
        return Output(log_likelihood=token_log_likelihood(hidden, self.head_weight, targets), **experts)

    def trunk(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: KVCache | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor, list[Routing]]:
        """Everything below the final norm, for `forward` and for other heads such as `Classifier`'s.

        Args:
            input_ids, positions, segment_ids, cache: as in `forward`.
            places: (B,) int64; give the hidden state of this one place of each row only. What stands behind it is
                padding.

        Returns:
            (B, T, C), or (B, 1, C) with `places`; and the routing of each layer with experts.

        Raises:
            ValueError: if the text is longer than the context or the cache, or its positions are beyond.
        """
        read, held, offset = (cache.length, cache.num_held, cache.offset) if cache is not None else (0, 0, 0)
        length = input_ids.shape[1]
        self.check_room(length, cache)
        if positions is not None and not 0 <= int(positions.min()) <= int(positions.max()) < self.config.context_length:
            raise ValueError(f"positions from {int(positions.min())} to {int(positions.max())} leave the model's "
                             f"context_length of {self.config.context_length}; begin each text at 0")

        slots = positions - offset if positions is not None and cache is not None else None
        plan = plan_attention(length, cached=held, slots=slots, segment_ids=segment_ids, window=self.config.window,
                              device=input_ids.device)
        if positions is None:
            positions = plan.slots + offset if offset else plan.slots
        hidden = self.dropout(self.embed_tokens(input_ids, positions))   # (B, T, C)
        if places is not None:   # what a row is padded with has no say in its length
            positions = positions.minimum(read + places[:, None])
        rope = self.rotary(positions)
        if rope is not None:   # cast once for all layers
            rope = rope[0].to(compute_dtype(hidden)), rope[1].to(compute_dtype(hidden))
        routings: list[Routing] = []
        # of the last block nothing but those places is read; experts, though, are balanced over all tokens
        narrow = places if cache is None and segment_ids is None and not self.config.expert_count else None
        for layer, block in enumerate(self.blocks):
            if narrow is not None and layer == len(self.blocks) - 1:
                plan = plan.at(narrow)
            if self.use_checkpointing and self.training and cache is None:
                hidden, routing = checkpoint(block, hidden, plan, rope, use_reentrant=False)
            else:
                hidden, routing = block(hidden, plan, rope, cache.layers[layer] if cache is not None else None)
            if routing is not None:
                routings.append(routing)
        if cache is not None:
            cache.length += length
        if places is not None and narrow is None:
            hidden = take_places(hidden, places)   # (B, 1, C)
        return hidden, routings

    @torch.no_grad()
    def grow(self, vocab_size: int) -> None:
        """Make room for ids up to `vocab_size`; new ones begin as zeros. A vocabulary that is large enough stays."""
        more = vocab_size - self.config.vocab_size
        if more <= 0:
            return
        self.config = replace(self.config, vocab_size=vocab_size)
        for module in (self.embed, self.head):
            if module is not None:
                weight = module.weight
                module.weight = nn.Parameter(torch.cat([weight, weight.new_zeros(more, weight.shape[1])]),
                                             requires_grad=weight.requires_grad)
        self.embed.num_embeddings = vocab_size
        if self.head is not None:
            self.head.out_features = vocab_size

    def check_room(self, length: int, cache: KVCache | None) -> None:
        """Raise a ValueError if `length` more tokens are too many for the context or the cache."""
        total = length + (cache.length if cache is not None else 0)
        if total > self.config.context_length:
            raise ValueError(f"{total} tokens exceed the model's context_length of {self.config.context_length}; "
                             "shorten the text")
        if cache is not None and cache.num_held + length > cache.max_length:
            raise ValueError(f"{cache.num_held + length} tokens exceed the cache's max_length of {cache.max_length}")

    def new_cache(self, batch_size: int, max_length: int, *, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache that fits this model.

        Args:
            batch_size: rows, B.
            max_length: tokens per row, prompt and answer together.
            dtype: what attention computes in; default the parameters' dtype, under autocast its dtype.
        """
        weight = self.embed.weight
        if dtype is None:
            kind = weight.device.type
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return KVCache(
            num_layers=self.config.num_layers, batch_size=batch_size, num_kv_heads=self.config.kv_heads,
            max_length=max_length, head_dim=self.config.head_width, window=self.config.window, dtype=dtype,
            device=weight.device,
        )
