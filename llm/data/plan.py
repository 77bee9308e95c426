"""The order of training, as a pure function of (seed, epoch): which samples each optimizer step takes.

It knows nothing of processes and micro-batches; those split one step afterwards (`loader.py`). A resumed run computes
the plan again and goes on at its place, instead of saving the state of an iterator.
"""

import numpy as np


def plan(lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The sample ids of every optimizer step of one epoch; each sample once, the last step may be short.

    Args:
        lengths: (samples,) the length of each sample.
        batch_size: samples in a step, over all processes, >= 1.
        seed: of the run.
        epoch: 0, 1, ...; each has its own order.

    Example:
        >>> [len(step) for step in plan(np.ones(10), batch_size=4, seed=1, epoch=0)]
        [4, 4, 2]
    """
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(len(lengths))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
