"""Validation: deterministic, weighted by targets, the same for every batch size, and without a trace in the training.

Next: `llm/tasks/evaluate.py`, the perplexity of a file. Later also accuracy with its confidence interval.
"""

import numpy as np
import torch
from torch import nn

from llm.data.datasets import Dataset
from llm.objectives.base import Objective
from llm.runtime import World


@torch.no_grad()
def evaluate(
    model: nn.Module,
    objective: Objective,
    dataset: Dataset,
    *,
    world: World,
    batch_size: int,
    max_tokens: int | None = None,
) -> dict[str, float]:
    """Mean loss and metrics over a dataset, in its own order.

    Args:
        model: left in the mode it came in.
        objective: says what a batch weighs and costs.
        dataset: read with seed 0 and epoch 0.
        world: device, precision and processes; each of several reads its share.
        batch_size: samples at a time; only speed and memory depend on it.
        max_tokens: stop after the samples that hold this many tokens; default all.

    Returns:
        `loss`, in nats per supervised token (or what the objective counts), and the objective's metrics.

    Raises:
        ValueError: if nothing in the dataset is supervised.
    """
    lengths = dataset.lengths(0, 0)
    count = len(lengths) if max_tokens is None else int(np.searchsorted(np.cumsum(lengths), max_tokens)) + 1
    ids = np.arange(len(lengths))[:count]
    num_batches = -(-len(ids) // (batch_size * world.size)) * world.size   # as many for each process
    sums: dict[str, list[float]] = {"loss": [0.0, 0.0]}   # name to [sum, count], in Python's float64
    cuda = [world.device] if world.device.type == "cuda" else []
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=cuda):   # a module of the user's own may draw random numbers even now
            for chosen in np.array_split(ids, num_batches)[world.rank :: world.size]:
                if not len(chosen):
                    continue   # fewer samples than processes
                batch = world.to_device(dataset.batch(chosen, seed=0, epoch=0))
                with world.autocast():
                    result = objective(model, batch)
                found = {"loss": (result.loss_sum, objective.weight(batch)), **result.metrics}
                for name, (value, number) in found.items():
                    total = sums.setdefault(name, [0.0, 0.0])
                    total[0] += float(value)
                    total[1] += number
    finally:
        model.train(was_training)
    totals = world.total_by_name(sums)
    if not totals["loss"][1]:
        raise ValueError("nothing in the validation data is supervised: every target is ignored")
    return {name: value / max(number, 1) for name, (value, number) in totals.items()}
