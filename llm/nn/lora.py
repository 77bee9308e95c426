"""LoRA: a linear layer that is frozen, and beside it two thin matrices that learn.

    y = W x + b + alpha / R * B (A x)          A (R, C_in), B (C_out, R), R much smaller than both widths

What training changes in a large matrix is mostly of low rank, so little is lost, and gradients, optimizer state and
checkpoints shrink to the thin matrices. B begins as zeros: at first nothing changes. Afterwards the product can be
added to W (`merge`), and the model costs what it did before.

The four verbs act on a whole model: `inject` and `eject`, `merge` and `unmerge`; inside of `disabled` it is the base.
On the disk adapters are PEFT folders, `llm/interop/peft.py`.

Paper: Hu et al. 2021, arXiv:2106.09685, eq. 3. Read before: `mlp.py`, `attention.py`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

READ_DIRECTLY = ("router",)   # `MoE` multiplies with its weight itself, in float32, and would pass an adapter over
OWN = ("lora_a", "lora_b")    # what an adapter adds to a state dict


class LoRALinear(nn.Linear):
    """A linear layer with an adapter; its `weight` and `bias` are those of the layer that it takes the place of.

    Args:
        linear: the layer. Its parameters are shared, not copied, and frozen.
        rank: R, >= 1.
        alpha: strength of the adapter, > 0; what it adds is multiplied by alpha / R.
        dropout: share of the adapter's inputs that is dropped while training, in [0, 1).
        use_rslora: multiply by alpha / sqrt(R) instead, which keeps large ranks learning (arXiv:2312.03732, eq. 7).
        generator: source of A's initial values; default torch's global one.

    Raises:
        ValueError: for numbers out of their ranges.

    Example:
        >>> layer = LoRALinear(nn.Linear(64, 32), rank=4, alpha=8)
        >>> layer(torch.zeros(2, 64)).shape, layer.lora_a.shape, layer.lora_b.shape
        (torch.Size([2, 32]), torch.Size([4, 64]), torch.Size([32, 4]))
    """

    def __init__(self, linear: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0, use_rslora: bool = False,
                 generator: torch.Generator | None = None):
        nn.Module.__init__(self)   # not nn.Linear's, which would make a weight
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1; 8 is usual")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha={alpha} must be above 0 and finite; twice the rank is usual")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must lie in [0, 1)")
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias   # the same parameters
        self.requires_grad_(False)
        self.rank, self.alpha, self.use_rslora = rank, alpha, use_rslora
        self.scale = alpha / (math.sqrt(rank) if use_rslora else rank)
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Parameter(linear.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(linear.weight.new_zeros(self.out_features, rank))
        # as PEFT and the paper's own code: uniform within 1 / sqrt(C_in)
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5), generator=generator)
        self.mode: Literal["beside", "merged", "disabled"] = "beside"
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C_in) to (..., C_out)."""
        y = F.linear(x, self.weight, self.bias)
        if self.mode != "beside":
            return y
        low = F.linear(self.dropout(x), self.lora_a)   # (..., R)
        # one product that scales and adds as it goes; the whole of B A never exists
        flat = y.reshape(-1, self.out_features), low.reshape(-1, self.rank)   # (N, C_out), (N, R)
        return torch.addmm(flat[0], flat[1], self.lora_b.T, alpha=self.scale).view_as(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={self.rank}, alpha={self.alpha:g}, mode={self.mode}"


def inject(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    use_rslora: bool = False,
    targets: Sequence[str] | None = None,
    last_blocks: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, LoRALinear]:
    """Freeze a model and put an adapter beside linear layers of its blocks. Its outputs stay what they were.

    Args:
        model: with its layers in `blocks`, as our decoders and classifiers have them.
        rank, alpha, dropout, use_rslora, generator: as in `LoRALinear`.
        targets: which layers, by their own name ("q_proj") or more of the path to it ("attention.out_proj",
            "blocks.0.mlp.up_proj"); default every linear layer of attention and feed-forward.
        last_blocks: only in so many blocks at the end; default in all.

    Returns:
        Name within the model ("blocks.0.attention.q_proj") to layer, in the order of the model. Their `lora_a` and
        `lora_b` are all that is trainable now.

    Raises:
        ValueError: if a target is no linear layer there, if it is a mixture's stack of experts, which is one parameter
            and no layer, if the model has no blocks, fewer blocks, or adapters already.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=9, num_layers=2, num_heads=1, dim=8))
        >>> list(inject(model, rank=2, targets=["q_proj", "v_proj"], last_blocks=1))
        ['blocks.1.attention.q_proj', 'blocks.1.attention.v_proj']
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)   # 2 layers x 2 matrices x 2 x 8
        64
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no list of `blocks`, where adapters look for layers")
    if adapters(model):
        raise ValueError("the model has adapters already; merge them into it and eject them first, or eject them only")
    if last_blocks is not None and not 1 <= last_blocks <= len(blocks):
        raise ValueError(f"last_blocks={last_blocks} must lie between 1 and {len(blocks)}, the blocks of the model; "
                         "leave it out for all")
    first = 0 if last_blocks is None else len(blocks) - last_blocks
    places = [(f"{number}.{name}", module) for number, block in list(enumerate(blocks))[first:]
              for name, module in block.named_modules()]
    linears = {f"blocks.{name}": module for name, module in places
               if type(module) is nn.Linear and name.rpartition(".")[2] not in READ_DIRECTLY}
    stacks = [f"blocks.{name}.{leaf}" for name, module in places for leaf, _ in module.named_parameters(recurse=False)
              if leaf not in ("weight", "bias")]
    names = sorted({name.rpartition(".")[2] for name in linears})
    if stacked := [name for name in stacks if targets is None or any(fits(name, target) for target in targets)]:
        raise ValueError(f"{stacked[0]} stacks all experts in one parameter, which takes no adapter; name targets "
                         f"among {', '.join(names)}")
    if unknown := [target for target in targets or () if not any(fits(name, target) for name in linears)]:
        raise ValueError(f"targets={list(targets or ())}: there is no linear layer {unknown[0]!r}; choose from "
                         f"{', '.join(names)}")
    model.requires_grad_(False)
    layers = {}
    for name, linear in linears.items():
        if targets is None or any(fits(name, target) for target in targets):
            layers[name] = LoRALinear(linear, rank=rank, alpha=alpha, dropout=dropout, use_rslora=use_rslora,
                                      generator=generator)
            _replace(blocks, name, layers[name])
    return layers


def eject(model: nn.Module) -> None:
    """The way back from `inject`: plain linear layers with the weights as they are, with the adapters if merged.

    All of them stay frozen.

    Raises:
        ValueError: if the model has no adapters.
    """
    for name, layer in _those_of(model).items():
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        linear.weight, linear.bias = layer.weight, layer.bias
        _replace(model.get_submodule("blocks"), name, linear.train(layer.training))


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers with adapters in `model.blocks`, as `inject` names them; empty if there are none."""
    blocks = getattr(model, "blocks", None)
    inner = blocks.named_modules() if isinstance(blocks, nn.Module) else ()
    return {f"blocks.{name}": module for name, module in inner if isinstance(module, LoRALinear)}


def merge(model: nn.Module) -> None:
    """Add the adapters to the weights, in place: the same outputs at the price of the base. Merged ones stay so.

    Raises:
        ValueError: if the model has no adapters, or they are disabled.
    """
    for layer in _those_of(model, but_not="disabled").values():
        if layer.mode == "beside":
            _add(layer, layer.scale)
            layer.mode = "merged"


def unmerge(model: nn.Module) -> None:
    """Take merged adapters out of the weights again, which are then the base's up to rounding.

    Raises:
        ValueError: if the model has no adapters, or they are disabled.
    """
    for layer in _those_of(model, but_not="disabled").values():
        if layer.mode == "merged":
            _add(layer, -layer.scale)
            layer.mode = "beside"


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base to the bit, at no cost: a reference that needs no memory of its own.

    Raises:
        ValueError: if the model has no adapters, which would make it its own reference; or if they are merged.

    Example:
        >>> import llm
        >>> model = llm.GPT(llm.GPTConfig(vocab_size=9, num_layers=1, num_heads=1, dim=8))
        >>> before = model(torch.tensor([[1, 2]])).logits
        >>> for layer in inject(model).values():
        ...     _ = nn.init.ones_(layer.lora_b)   # as if it had learned
        >>> with disabled(model):
        ...     torch.equal(model(torch.tensor([[1, 2]])).logits, before)
        True
    """
    layers = list(_those_of(model, but_not="merged").values())
    before = [layer.mode for layer in layers]
    try:
        for layer in layers:
            layer.mode = "disabled"
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.mode = mode


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the names of the base, for whoever stores a model as a whole.

    Raises:
        ValueError: if the model has adapters that are not merged, and would be lost.
    """
    if any(layer.mode != "merged" for layer in adapters(model).values()):
        raise ValueError("the adapters stand beside the weights and would be lost; merge them first")
    return {name: tensor for name, tensor in model.state_dict().items() if name.rpartition(".")[2] not in OWN}


def _those_of(model: nn.Module, *, but_not: str | None = None) -> dict[str, LoRALinear]:
    layers = adapters(model)
    if not layers:
        raise ValueError(f"this {type(model).__name__} has no adapters; inject some first")
    if any(layer.mode == but_not for layer in layers.values()):
        remedy = "unmerge them first" if but_not == "merged" else "leave `disabled` first"
        raise ValueError(f"the adapters are {but_not}; {remedy}")
    return layers


@torch.no_grad()
def _add(layer: LoRALinear, scale: float) -> None:
    """In float32, whatever the weight's dtype: a product rounded before the sum would cost twice the precision."""
    layer.weight.copy_(layer.weight.float().addmm(layer.lora_b.float(), layer.lora_a.float(), alpha=scale))


def fits(name: str, target: str) -> bool:
    """Whether a module is meant by a target: its own name, or more of the path to it."""
    return name == target or name.endswith(f".{target}")


def _replace(blocks: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in place of `blocks.<name>`."""
    parent, _, leaf = name.removeprefix("blocks.").rpartition(".")
    setattr(blocks.get_submodule(parent), leaf, module)
