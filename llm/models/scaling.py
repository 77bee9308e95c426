"""How RoPE is bent for texts longer than those of the training: the numbers of each kind. Torch-free.

The arithmetic is in `llm/nn/rope.py`, whose functions take exactly the numbers that stand here.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

ScalingKind = Literal["none", "linear", "dynamic", "yarn", "llama3"]
USED: dict[str, tuple[str, ...]] = {   # which numbers each kind reads
    "none": (),
    "linear": ("factor",),
    "dynamic": ("factor", "trained_context"),
    "yarn": ("factor", "trained_context", "beta_fast", "beta_slow", "attention_factor", "truncate"),
    "llama3": ("factor", "trained_context", "low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """One of the published ways to make RoPE reach further than the training did.

    With a scaling, `context_length` of the model is the longer reach, `trained_context` what the weights first saw.

    Example:
        >>> RopeScaling(kind="yarn", factor=4.0, trained_context=32768).reach
        131072
    """

    kind: ScalingKind = "none"
    factor: float = 1.0                      # how many times longer
    trained_context: int = 0                 # tokens of the longest text in the original training
    beta_fast: float = 32.0                  # yarn: pairs with more turns stay
    beta_slow: float = 1.0                   # yarn: pairs with fewer turns are interpolated
    attention_factor: float | None = None    # yarn: on cosine and sine; default 0.1 ln(factor) + 1
    truncate: bool = True                    # yarn: boundaries at whole pairs
    low_freq_factor: float = 1.0             # llama3: pairs with fewer turns are interpolated
    high_freq_factor: float = 4.0            # llama3: pairs with more turns stay

    @property
    def reach(self) -> int:
        """The longest text in tokens that the scaling is meant for."""
        return int(self.factor * self.trained_context) if math.isfinite(self.factor) else 0

    @property
    def numbers(self) -> dict[str, Any]:
        """What the kind's function in `llm/nn/rope.py` takes."""
        return {name: getattr(self, name) for name in USED[self.kind]}

    def complaints(self, *, context_length: int, head_dim: int) -> list[str]:
        """Everything wrong with these numbers in a model of such a context and head width."""
        if self.kind not in get_args(ScalingKind):
            return [f"rope_scaling kind={self.kind!r}; choose from {', '.join(get_args(ScalingKind))}"]
        found = []
        plain = RopeScaling()
        if idle := [name for name in vars(self) if name not in ("kind", "trained_context", *USED[self.kind])
                    and getattr(self, name) != getattr(plain, name)]:
            found.append(f"rope_scaling kind={self.kind} takes no {' or '.join(idle)}; leave it out")
        if self.kind == "none":
            return found
        found += [f"rope_scaling {name}={value} must be a number" for name, value in self.numbers.items()
                  if isinstance(value, float) and not math.isfinite(value)]
        if self.factor < 1:
            found.append(f"rope_scaling factor={self.factor} must be at least 1; it says how many times longer")
        if self.trained_context < 1:
            found.append(f"rope_scaling trained_context={self.trained_context} is not set; give the longest text of "
                         "the original training in tokens")
        elif self.kind in ("linear", "dynamic") and context_length != self.reach:
            found.append(f"context_length={context_length} must be factor x trained_context = {self.reach} under "
                         f"{self.kind} scaling")
        elif self.kind == "yarn" and context_length < self.reach:
            found.append(f"context_length={context_length} must be at least factor x trained_context = {self.reach} "
                         "under yarn scaling")
        if self.kind == "dynamic" and head_dim < 4:
            found.append(f"head_dim={head_dim} must be at least 4 for dynamic scaling")
        if self.beta_fast <= self.beta_slow or self.beta_slow <= 0:
            found.append(f"rope_scaling beta_slow={self.beta_slow} must be positive and below "
                         f"beta_fast={self.beta_fast}")
        if self.low_freq_factor >= self.high_freq_factor:
            found.append(f"rope_scaling low_freq_factor={self.low_freq_factor} must be below "
                         f"high_freq_factor={self.high_freq_factor}")
        return found
