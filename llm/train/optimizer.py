"""Which optimizer moves which parameter, and its state under the parameters' names; and a minimum without a Trainer."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from llm.train.config import TrainConfig
from llm.train.muon import Muon

Optimizers = Sequence[torch.optim.Optimizer]
SLOTS: dict[type[torch.optim.Optimizer], set[str]] = {   # what is kept of each parameter
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, Muon: {"momentum_buffer"}}


def build_optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW over the trainable parameters, or Muon over the matrices of the blocks and AdamW over the rest.

    Under AdamW matrices and embeddings decay, vectors (norms, biases) do not. Each group remembers its peak learning
    rate as `peak_lr`, from which the schedule computes `lr`.

    Args:
        model: its parameters stand already on their device.
        config: optimizer, learning rates, betas, weight decay.

    Raises:
        ValueError: if nothing is trainable, or Muon has no matrix to work on.

    Paper: AdamW: Loshchilov and Hutter 2017, arXiv:1711.05101. Muon: see `muon.py`.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError("no parameter of the model requires a gradient; there is nothing to train")
    inner = {name for name, parameter in trainable.items()
             if config.optimizer == "muon" and "blocks." in name and parameter.dim() >= 2}
    if config.optimizer == "muon" and not inner:
        raise ValueError(f"optimizer=muon is for matrices inside `blocks`; {type(model).__name__} has none, use adamw")
    others = [parameter for name, parameter in trainable.items() if name not in inner]
    groups = [
        {"params": [parameter for parameter in others if parameter.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in others if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        betas = (config.beta1, config.beta2)
        optimizers.append(torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True))
    if inner:
        matrices = [trainable[name] for name in trainable if name in inner]
        optimizers.append(Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def minimize(loss: Callable[[], float], weights: Tensor, *, steps: int = 200) -> None:
    """Move weights to where a smooth function has its minimum, all data at once, by L-BFGS; for what needs no Trainer.

    Args:
        loss: computes the function and writes its slope into `weights.grad`.
        weights: changed in place.
        steps: at most.

    Paper: Liu and Nocedal 1989, "On the Limited Memory BFGS Method for Large Scale Optimization", Mathematical
        Programming 45.

    Example:
        >>> weights = torch.zeros(1)
        >>> def loss() -> float:
        ...     weights.grad = 2 * (weights - 3)
        ...     return float((weights - 3) ** 2)
        >>> minimize(loss, weights)
        >>> weights
        tensor([3.])
    """
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
    optimizer.step(loss)


def optimizer_tensors(optimizers: Optimizers, model: nn.Module) -> dict[str, Tensor]:
    """The optimizers' state as `<parameter>.<slot>` tensors."""
    return {
        f"{name}.{slot}": torch.as_tensor(value).contiguous()
        for name, parameter in model.named_parameters()
        for optimizer in optimizers if parameter in optimizer.state
        for slot, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(optimizers: Optimizers, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved state back in place.

    Raises:
        ValueError: if a tensor belongs to no trainable parameter of this model, or does not fit it; or if it is the
            state of another optimizer, or a part of one; or if a value is NaN or infinite.
    """
    slots: dict[str, set[str]] = defaultdict(set)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    home = {parameter: optimizer for optimizer in optimizers
            for group in optimizer.param_groups for parameter in group["params"]}
    for key, tensor in tensors.items():
        name, slot = key.rsplit(".", 1)
        if name not in parameters:
            raise ValueError(f"the optimizer state holds {key!r}, but the model has no trainable parameter {name!r}")
        parameter = parameters[name]
        if slot != "step" and tensor.shape != parameter.shape:
            raise ValueError(f"the optimizer state {key!r} has shape {tuple(tensor.shape)}, but the parameter has "
                             f"{tuple(parameter.shape)}; it belongs to another model")
        if not tensor.isfinite().all():
            raise ValueError(f"the optimizer state {key!r} holds a value that is no finite number, which would spoil "
                             "the weights; go on from an earlier checkpoint, or from these weights with --model")
        slots[name].add(slot)
        home[parameter].state[parameter][slot] = tensor.to(parameter.device)
    for name, found in slots.items():
        optimizer = type(home[parameters[name]])
        if found != SLOTS[optimizer]:
            raise ValueError(f"the optimizer state of {name!r} holds {', '.join(sorted(found))}, but "
                             f"{optimizer.__name__} keeps {', '.join(sorted(SLOTS[optimizer]))}; go on with the "
                             "optimizer that the run was made with, or start a new run from its weights with --model")
