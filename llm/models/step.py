"""One more token, fast: `Decoder.forward` for a single column, with everything looked up beforehand.

While a text is written, most of a step is not arithmetic but the way to it: modules that call modules, parameters found
by name, checks, a norm in eight operations. Here each part of a model becomes a plain function of tensors that holds
its weights; those of a small model in bfloat16 that read the same input become one product (`llm/nn/product.py`), for
which alone weights are copied. The arithmetic is the same to the bit but for the order of sums. What is not known here
(a layer with LoRA, a mixture of experts) is called as the module it is, and a model with hooks, compiled blocks or a
`forward` of its own is not taken apart at all. Measured without the matrix products, on a CPU: 1.9 against 5.1 ms for 8
layers of Qwen3.

Read `decoder.py` and `llm/nn/product.py` first; used by `llm/generation.py`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.models.decoder import Block, Decoder
from llm.nn import Attention, GeluMLP, KVCache, LayerNorm, RMSNorm, SwiGLU, fused_attention, plan_attention
from llm.nn.attention import AttentionPlan
from llm.nn.cache import LayerCache
from llm.nn.product import JointLinear, can_join, few_token_linear, is_more_than_forward

Part = Callable[[Tensor], Tensor]
Tables = tuple[Tensor, Tensor] | None
Layer = Callable[[Tensor, AttentionPlan, Tables, LayerCache], Tensor]
Step = Callable[[Tensor, Tensor | None, KVCache], Tensor]

FEW_NUMBERS = 4096   # of which the calls of a norm cost more than its arithmetic


def step_of(model: Decoder) -> Step | None:
    """The step of a model in evaluation mode, to be called without gradients and without autocast.

    Args:
        model: any decoder.

    Returns:
        A function from ids (B, 1), positions (B, 1) or None for rows of equal length, and a cache, to logits (B, V);
        None for a model that must be called as it is.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=10, context_length=8, num_layers=1, num_heads=1, dim=8)).eval()
        >>> cache = model.new_cache(1, 8)
        >>> with torch.no_grad():
        ...     first = model(torch.tensor([[1, 2]]), cache=cache).logits
        ...     second = step_of(model)(torch.tensor([[3]]), None, cache)
        >>> torch.allclose(second, model(torch.tensor([[1, 2, 3]])).logits[:, -1], atol=1e-6)
        True
    """
    weights = {parameter.dtype for parameter in model.parameters()}
    if len(weights) > 1 or type(model).forward is not Decoder.forward or any(map(_is_special, model.modules())):
        return None
    layers = [_block(block) for block in model.blocks]
    final_norm, head, window = _norm(model.final_norm), model.head_weight, model.config.window
    dtype = weights.pop()

    def step(ids: Tensor, positions: Tensor | None, cache: KVCache) -> Tensor:
        model.check_room(1, cache)
        slots = None if positions is None else positions - cache.offset
        plan = plan_attention(1, cached=cache.num_held, slots=slots, window=window, device=ids.device)
        if positions is None:
            positions = plan.slots + cache.offset if cache.offset else plan.slots
        hidden = model.embed_tokens(ids, positions)   # (B, 1, C)
        rope = model.rotary(positions)
        if rope is not None:
            rope = rope[0].to(dtype), rope[1].to(dtype)
        for layer, layer_cache in zip(layers, cache.layers, strict=True):
            hidden = layer(hidden, plan, rope, layer_cache)
        cache.length += 1
        return few_token_linear(final_norm(hidden), head)[:, 0]

    return step


def _is_special(module: nn.Module) -> bool:
    """Whether something would be missed if the module were not called."""
    return is_more_than_forward(module) or (isinstance(module, nn.Dropout) and module.training and module.p > 0)


def _block(block: nn.Module) -> Layer:
    if not isinstance(block, Block) or type(block).forward is not Block.forward:
        return lambda hidden, plan, rope, cache: block(hidden, plan, rope, cache)[0]
    attention_norm, attention = _norm(block.attention_norm), _attention(block.attention)
    is_plain = type(block).feed_forward is Block.feed_forward
    mlp_norm, mlp = _norm(block.mlp_norm), _mlp(block.mlp) if is_plain else lambda x: block.feed_forward(x)[0]

    def layer(hidden: Tensor, plan: AttentionPlan, rope: Tables, cache: LayerCache) -> Tensor:
        hidden = hidden + attention(attention_norm(hidden), plan, rope, cache)
        return hidden + mlp(mlp_norm(hidden))

    return layer


def _attention(attention: Attention) -> Layer:
    if type(attention) is not Attention or attention.attend is not fused_attention:
        return attention
    project, out_proj = _linears(attention.q_proj, attention.k_proj, attention.v_proj), _linear(attention.out_proj)
    q_norm, k_norm, width = _norm(attention.q_norm), _norm(attention.k_norm), attention.head_dim

    def attend(x: Tensor, plan: AttentionPlan, rope: Tables, cache: LayerCache) -> Tensor:
        rows = len(x)
        q, k, v = (part.view(rows, -1, 1, width) for part in project(x))   # (B, H or G, 1, D)
        q, k = q_norm(q), k_norm(k)
        if rope is not None:
            cos, sin = rope
            sizes = q.shape[1], k.shape[1]
            qk = torch.cat((q, k), dim=1)
            q, k = (qk * cos + qk.roll(width // 2, -1) * sin).split(sizes, dim=1)
        k, v = cache.write(k, v, slots=plan.slots, start=plan.start, first_key=plan.first_key,
                           num_keys=plan.num_keys)   # (B, G, S, D)
        q = q.reshape(rows, k.shape[1], -1, width)   # (B, G, H / G, D): a group's heads as its queries
        return out_proj(_mix(q, k, v, plan.mask).reshape(rows, 1, -1))   # (B, 1, C)

    return attend


def _mix(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if q.shape[2] == 1 and _is_low_on_cpu(q):   # its kernel for one query is the slower one: 83 against 49 microseconds
        q = q.expand(-1, -1, 2, -1)             # for 12 heads and 150 keys
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, :, :1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _mlp(mlp: nn.Module) -> Part:
    if type(mlp) is SwiGLU:
        gate_and_up, narrow = _linears(mlp.gate_proj, mlp.up_proj), _linear(mlp.down_proj)

        def gated(x: Tensor) -> Tensor:
            gate, value = gate_and_up(x)
            return narrow(F.silu(gate) * value)

        return gated
    if type(mlp) is GeluMLP:
        widen, back = _linear(mlp.up_proj), _linear(mlp.down_proj)
        return lambda x: back(F.gelu(widen(x), approximate="tanh"))
    return mlp


def _norm(norm: nn.Module) -> Part:
    if type(norm) is RMSNorm:
        weight, shape, eps = norm.weight, norm.weight.shape, norm.eps
        if not _is_low_on_cpu(weight):
            return lambda x: torch.rms_norm(x, shape, weight, eps)
        pair = torch.Size((2, *shape))   # x beside -x has the mean 0: its layer norm is the RMS norm, in one operation

        def mirrored(x: Tensor) -> Tensor:
            if x.numel() > FEW_NUMBERS:
                return torch.rms_norm(x, shape, weight, eps)
            return torch.layer_norm(torch.stack((x, -x), dim=-2), pair, weight.expand(pair), None, eps)[..., 0, :]

        return mirrored
    if type(norm) is LayerNorm:
        gain, size, bias, small = norm.weight, norm.weight.shape, norm.bias, norm.eps
        return lambda x: torch.layer_norm(x, size, gain, bias, small)
    if type(norm) is nn.Identity:
        return lambda x: x
    return norm


def _is_low_on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16)


def _linears(*linears: nn.Module) -> Callable[[Tensor], Sequence[Tensor]]:
    if can_join(linears):
        return JointLinear(linears)
    parts = [_linear(linear) for linear in linears]
    return lambda x: [part(x) for part in parts]


def _linear(linear: nn.Module) -> Part:
    if type(linear) is nn.Linear:
        weight, bias = linear.weight, linear.bias
        return lambda x: few_token_linear(x, weight, bias)
    return linear
