"""Where a run stands: with weights, optimizer and random numbers all that a resumed run needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

DAMAGED = "so the checkpoint is damaged; delete its folder to go on with the one before"


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
                raise ValueError(f"the saved {name}={value!r} is no number, or below 0, {DAMAGED}")
        return cls(**{name: saved[name] for name in asdict(cls())})


def check_fits(state: TrainState, saved: Mapping[str, Any], *, order: Mapping[str, int], total_steps: int,
               epoch_steps: int, has_optimizer: bool) -> None:
    """Make sure that a run can go on from a saved state as if it had never stopped.

    Args:
        state: where it stood.
        saved: all that the checkpoint holds.
        order: what the order of the data follows from, by name, now.
        total_steps: of the plan.
        epoch_steps: of the epoch in which it stood.
        has_optimizer: whether the optimizer's state was saved.

    Raises:
        ValueError: if the order of the data would be another, the plan is shorter than what was done, or the checkpoint
            contradicts itself.
    """
    for name, value in order.items():
        if saved[name] != value:
            raise ValueError(f"{name}={value}, but the run was made with {saved[name]}: its data order would change; "
                             "start a new run from its weights instead")
    if state.step > total_steps:
        raise ValueError(f"the run has taken {state.step} steps already, more than the {total_steps} asked for; ask "
                         "for more, or start a new run from its weights")
    if state.place >= epoch_steps:
        raise ValueError(f"the saved place={state.place} is beyond the epoch's end, {DAMAGED}")
    if state.step > state.skipped and not has_optimizer:
        raise ValueError(f"the saved optimizer state is empty after {state.step} steps, {DAMAGED}")
