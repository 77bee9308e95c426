"""The plain loop and the Trainer are one step written twice: they go the same way."""

import numpy as np
import pytest
import torch

import llm
from llm.models.build import build_model
from llm.models.config import ModelConfig
from llm.runtime import start
from llm.train.plain import PlainLoop
from tests.conftest import random_ids


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_plain_loop_moves_a_model_as_the_trainer_does(tiny_config: ModelConfig, clip: float) -> None:
    config = llm.TrainConfig(steps=3, batch_size=4, schedule="constant", warmup=0, lr=0.01, clip=clip, device="cpu",
                             precision="fp32")
    rows = random_ids(4, 9)
    samples = [{"input_ids": row[:-1], "targets": row[1:]} for row in rows]
    mine, plain = (build_model(tiny_config, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    llm.Trainer(mine, llm.NextToken(balance=0.0), train=llm.Examples(samples), config=config).fit()

    def mean_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch[:, :-1], targets=batch[:, 1:]).loss_sum / batch[:, 1:].numel()

    loop = PlainLoop(plain, mean_loss, config=config, world=start(device="cpu", precision="fp32"))
    losses = [loop.train_step(rows) for _ in range(3)]
    assert losses == sorted(losses, reverse=True)
    for name, parameter in plain.named_parameters():   # the rows' order differs, so sums round differently
        assert np.allclose(parameter.detach(), mine.get_parameter(name).detach(), atol=2e-4), name
