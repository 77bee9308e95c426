"""Where a run stands: with weights, optimizer and random numbers all that a resumed run needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class TrainState:
    """The place of a run in its plan, and what it has seen so far."""

    step: int = 0              # optimizer steps of the plan done, skipped ones included: the only clock
    epoch: int = 0
    place: int = 0             # steps done in this epoch
    tokens: int = 0            # read so far
    elapsed_s: float = 0.0     # in training steps
    wall_s: float = 0.0        # in all, up to the last save
    skipped: int = 0
    skipped_in_a_row: int = 0
    best_loss: float | None = None
    best_step: int | None = None

    @classmethod
    def from_saved(cls, saved: Mapping[str, Any]) -> "TrainState":
        """The state in what a checkpoint holds.

        Raises:
            ValueError: if something in it is no number, or a count below zero.
        """
        for name, new in asdict(cls()).items():
            kinds = (int, float) if new is None or isinstance(new, float) else (int,)
            value = saved[name]
            is_number = isinstance(value, kinds) or (new, value) == (None, None)
            if not is_number or (new is not None and value < 0):
                raise ValueError(f"the saved {name}={value!r} is no number, or below 0, so the checkpoint is damaged; "
                                 "delete its folder to go on with the one before")
        return cls(**{name: saved[name] for name in asdict(cls())})
