"""The order of training, as a pure function of (seed, epoch): which samples each optimizer step takes.

It knows nothing of processes and micro-batches; those split one step afterwards (`loader.py`). A resumed run computes
the plan again and goes on at its place, instead of saving the state of an iterator.
"""

import numpy as np

MEGABATCH = 8   # steps whose samples are sorted together: enough for little padding, few enough to stay mixed


def plan(
    lengths: np.ndarray, *, batch_size: int, seed: int, epoch: int, sort_by_length: bool = False
) -> list[np.ndarray]:
    """The sample ids of every optimizer step of one epoch; each sample once, one step may be short.

    Args:
        lengths: (samples,) the length of each sample.
        batch_size: samples in a step, over all processes, >= 1.
        seed: of the run.
        epoch: 0, 1, ...; each has its own order.
        sort_by_length: put samples of like lengths into a step, so that little of it is padding: within every 8 steps
            of the random order samples are sorted, and then the steps are shuffled.

    Example:
        >>> [len(step) for step in plan(np.ones(10), batch_size=4, seed=1, epoch=0)]
        [4, 4, 2]
    """
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = rng.permutation(len(lengths))
    if sort_by_length:
        size = MEGABATCH * batch_size
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        order = np.concatenate([group[np.argsort(lengths[group], kind="stable")] for group in groups])
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [steps[place] for place in rng.permutation(len(steps))] if sort_by_length else steps
