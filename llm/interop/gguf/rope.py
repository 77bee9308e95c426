"""How GGUF says that RoPE is bent for long texts, and in which of these ways our models can be bent too.

`linear` and `yarn` are numbers in the file. Llama 3.1's way is no kind of its own there, but a tensor
`rope_freqs.weight` that holds how many times slower each pair turns; the numbers behind it are found again by trying
those that Llama 3.1 to 3.3 have. Read next: `vocabulary.py`.
"""

from typing import Any

import numpy as np
import torch

from llm.interop.gguf.container import GGUFFile, shown
from llm.models.config import QwenConfig
from llm.models.scaling import RopeScaling
from llm.nn.rope import llama3_frequencies, rope_frequencies

FACTORS = "rope_freqs.weight"
LLAMA3_CONTEXT = 8192
KEYS = {"rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.finetuned",
        "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}


def read_scaling(file: GGUFFile, architecture: str, *, context: int, head_dim: int, theta: float) -> dict[str, Any]:
    """`context_length` and `rope_scaling` of our configuration.

    Raises:
        ValueError: for a kind of scaling, or numbers, that our modules do not compute.
    """
    start = f"{architecture}.rope.scaling"
    kind = file.value(f"{start}.type", str, "none")
    factor = float(np.float32(file.value(f"{start}.factor", float, 1.0)))
    trained = file.value(f"{start}.original_context_length", int, 0)
    if FACTORS in file.tensors:
        if kind not in ("none", "linear") or factor != 1.0:
            raise file.error(f"it has both {FACTORS} and rope scaling {shown(kind)} by {factor}; only one is possible")
        return {"context_length": context, "rope_scaling": _read_llama3(file, head_dim, theta, trained)}
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {"context_length": context}
    if kind == "linear":
        scaling = RopeScaling(kind="linear", factor=factor, trained_context=trained or context)
        return {"context_length": scaling.reach, "rope_scaling": scaling}
    if kind == "yarn":
        fast, slow = (float(np.float32(file.value(f"{start}.yarn_{name}", float, default)))
                      for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
        scaling = RopeScaling(kind="yarn", factor=factor, trained_context=trained or context, beta_fast=fast,
                              beta_slow=slow)
        return {"context_length": max(context, scaling.reach), "rope_scaling": scaling}
    raise file.error(f"'{start}.type' = {shown(kind)} is not supported; only none, linear and yarn are")


def _read_llama3(file: GGUFFile, head_dim: int, theta: float, trained: int) -> RopeScaling:
    info = file.tensors[FACTORS]
    if info.shape != (head_dim // 2,):
        raise file.error(f"the tensor {FACTORS!r} has shape {info.shape}, not ({head_dim // 2},); it is damaged")
    factors = file.read(FACTORS)
    largest = float(factors.max())
    if not (np.isfinite(factors).all() and largest >= 1):
        raise file.error(f"the tensor {FACTORS!r} holds {largest}, and every number in it must be 1 or more")
    scaling = RopeScaling(kind="llama3", factor=largest, trained_context=trained or LLAMA3_CONTEXT)
    if not np.allclose(factors, llama3_factors(scaling, head_dim=head_dim, theta=theta), rtol=1e-4):
        raise file.error(f"the tensor {FACTORS!r} bends RoPE in another way than Llama 3.1 does, which is not "
                         "supported; load the original model folder")
    return scaling


def llama3_factors(scaling: RopeScaling, *, head_dim: int, theta: float) -> np.ndarray:
    """(D/2,) float32, how many times slower each pair turns."""
    position = torch.zeros(1, 1, dtype=torch.int64)
    plain, _ = rope_frequencies(position, head_dim=head_dim, theta=theta)
    bent, _ = llama3_frequencies(position, head_dim=head_dim, theta=theta, **scaling.numbers)
    return (plain / bent).numpy()


def scaling_values(config: QwenConfig) -> dict[str, Any]:
    """The values from which `read_scaling` makes a configuration's scaling again, its context included.

    Raises:
        ValueError: if GGUF has no words for it.
    """
    scaling = config.rope_scaling
    same_as_read = {
        "none": RopeScaling(),
        "linear": RopeScaling(kind="linear", factor=scaling.factor, trained_context=scaling.trained_context),
        "yarn": RopeScaling(kind="yarn", factor=scaling.factor, trained_context=scaling.trained_context,
                            beta_fast=scaling.beta_fast, beta_slow=scaling.beta_slow),
        "llama3": RopeScaling(kind="llama3", factor=scaling.factor, trained_context=scaling.trained_context),
    }
    if same_as_read.get(scaling.kind) != scaling:
        raise ValueError(f"GGUF has no words for {scaling}; only linear, yarn without attention_factor and truncate, "
                         "and llama3 between 1 and 4 turns: export as a Hugging Face folder instead")
    if scaling.kind == "none":
        return {"context_length": config.context_length}
    values: dict[str, Any] = {"rope.scaling.original_context_length": scaling.trained_context}
    if scaling.kind != "llama3":
        values |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": float(scaling.factor)}
    if scaling.kind == "yarn":
        values |= {"rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
                   "rope.scaling.yarn_beta_slow": float(scaling.beta_slow)}
    return {"context_length": config.context_length, **values}
