"""The learning rate as a pure function of the step: nothing to save, nothing to get out of step. Torch-free."""

import math

from llm.train.config import TrainConfig


def warmup_steps(config: TrainConfig, total: int) -> int:
    """The steps of warmup of a run of `total` steps.

    Raises:
        ValueError: if the warmup leaves nothing of the run.
    """
    if config.warmup is None:
        return min(100, total // 20)
    if config.warmup >= total:
        raise ValueError(f"warmup={config.warmup} is not shorter than the run of {total} steps; "
                         "the learning rate would never reach its peak")
    return config.warmup


def lr_factor(step: int, total: int, config: TrainConfig) -> float:
    """The share of the peak learning rate that step `step` (0-based, of `total`) uses.

    It rises linearly to 1 over the warmup, and the decaying schedules reach `min_lr_ratio` with the last step.

    Example:
        >>> config = TrainConfig(warmup=2, schedule="linear", min_lr_ratio=0.0)
        >>> [lr_factor(step, 6, config) for step in range(6)]
        [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return (step + 1) / warmup
    start = warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        start = max(warmup, total - max(1, round(total * config.decay_fraction)))
        if step < start:
            return 1.0
    progress = min(1.0, (step + 1 - start) / max(total - start, 1))   # 1 at the last step
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape
