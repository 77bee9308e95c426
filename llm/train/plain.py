"""One training step as anyone would write it, beside the Trainer's: for reading, and as the measure of its speed.

Forward, backward, clip, AdamW; nothing else. It has no data order, no schedule, no accumulation, no checkpoints and no
log; what these cost, the comparison of the two shows. Next: `trainer.py`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llm.runtime import World
from llm.train.config import TrainConfig


class PlainLoop:
    """Trains any module on the mean loss of one batch at a time, with torch's own tools only.

    Args:
        model: moved to the device of `world` and set to training.
        mean_loss: of the model and a batch, a scalar.
        config: learning rate, betas, weight decay and clipping are read; the rate stays constant.
        world: device and precision.

    Example:
        >>> from llm.runtime import start
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(model.weight)
        >>> loop = PlainLoop(model, lambda model, batch: model(batch).square().mean(),
        ...                  config=TrainConfig(lr=0.1), world=start(device="cpu", precision="fp32"))
        >>> batch = torch.ones(4, 1)
        >>> loop.train_step(batch), loop.train_step(batch) < 1
        (1.0, True)
    """

    def __init__(self, model: nn.Module, mean_loss: Callable[[nn.Module, Any], Tensor], *, config: TrainConfig,
                 world: World):
        self.model = model.to(world.device).train()
        self.mean_loss = mean_loss
        self.clip = config.clip or float("inf")
        self.world = world
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() >= 2]
        vectors = [parameter for parameter in self.model.parameters() if parameter.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        betas = (config.beta1, config.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=world.precision == "fp16")

    def train_step(self, batch: Any) -> float:
        """One step on a batch that is on the device already; returns its loss."""
        with self.world.autocast():
            loss = self.mean_loss(self.model, batch)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return float(loss.detach())
