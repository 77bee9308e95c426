"""AdamW with the usual two groups, and optimizer state under the parameters' names."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from llm.train.config import TrainConfig


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters: matrices and embeddings decay, vectors (norms, biases) do not.

    Args:
        model: its parameters stand already on their device.
        config: learning rate, betas, weight decay.

    Raises:
        ValueError: if nothing is trainable.

    Paper: Loshchilov and Hutter 2017, arXiv:1711.05101.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError("no parameter of the model requires a gradient; there is nothing to train")
    groups = [
        {"params": [parameter for parameter in trainable if parameter.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trainable if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=(config.beta1, config.beta2), fused=True
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>.<slot>` tensors."""
    return {
        f"{name}.{slot}": torch.as_tensor(value).contiguous()
        for name, parameter in model.named_parameters() if parameter in optimizer.state
        for slot, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put saved state back in place.

    Raises:
        ValueError: if a tensor belongs to no trainable parameter of this model, or does not fit it.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for key, tensor in tensors.items():
        name, slot = key.rsplit(".", 1)
        if name not in parameters:
            raise ValueError(f"the optimizer state holds {key!r}, but the model has no trainable parameter {name!r}")
        parameter = parameters[name]
        if slot != "step" and tensor.shape != parameter.shape:
            raise ValueError(f"the optimizer state {key!r} has shape {tuple(tensor.shape)}, but the parameter has "
                             f"{tuple(parameter.shape)}; it belongs to another model")
        optimizer.state[parameter][slot] = tensor.to(parameter.device)
