"""Who started this process: torchrun's word for it. The only module that reads the environment; torch-free.

`torchrun --nproc-per-node 2 -m llm.tasks.pretrain ...` starts the same command twice and tells each process in its
environment which of them it is. What they do together is in `runtime.py`.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple


class Launch(NamedTuple):
    """Which process this is, and of how many."""

    rank: int = 0         # among all processes
    local_rank: int = 0   # among those of this machine
    size: int = 1         # of all


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the environment says; without a word about it, one process alone.

    Raises:
        ValueError: for a variable that is missing beside the others, or makes no sense.

    Example:
        >>> read_launch({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"})
        Launch(rank=3, local_rank=1, size=4)
        >>> read_launch({})
        Launch(rank=0, local_rank=0, size=1)
    """
    def number(name: str, default: str | None = None) -> int:
        text = environment.get(name, default)
        if text is None or not text.isdecimal():
            raise ValueError(f"{name}={text} beside WORLD_SIZE={environment['WORLD_SIZE']}: both are numbers that "
                             "torchrun sets; start the command with torchrun, or unset WORLD_SIZE")
        return int(text)

    if environment.get("WORLD_SIZE", "1") == "1":
        return Launch()
    size, rank = number("WORLD_SIZE"), number("RANK")
    if not rank < size:
        raise ValueError(f"RANK={rank} must be below WORLD_SIZE={size}; start the command with torchrun")
    return Launch(rank, number("LOCAL_RANK", str(rank)), size)
