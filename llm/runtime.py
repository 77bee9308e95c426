"""Where a run computes: device, precision, processes. The only module that reads the environment.

A `World` is made from plain values and passed on; there is no global. One process is a World of size 1.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them."""

    device: torch.device
    precision: Precision
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Matrix products in the run's precision; weights, norms and losses stay in float32."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.precision])

    def to_device(self, batch: Any) -> Any:
        """The batch with every tensor in it on this process's device."""
        if isinstance(batch, Tensor):
            return batch.to(self.device, non_blocking=True)
        if isinstance(batch, Mapping):
            return {key: self.to_device(value) for key, value in batch.items()}
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*map(self.to_device, batch))
        if isinstance(batch, list | tuple):
            return type(batch)(map(self.to_device, batch))
        return batch

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes."""
        return list(values)


def start(*, device: str = "auto", precision: str = "auto", threads: int | None = None) -> World:
    """Look at the machine and settle device and precision.

    Args:
        device: "auto" (CUDA, else Apple's MPS, else CPU), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        threads: CPU threads; default torch's own choice.

    Raises:
        ValueError: if there is no such device or several processes were started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"WORLD_SIZE={os.environ['WORLD_SIZE']}: this version trains in one process; "
                         "start it without torchrun")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        torch.set_num_threads(threads)
    try:
        chosen = torch.device(device if device != "auto" else best_device())
    except RuntimeError as error:
        raise ValueError(f"--device {device}: choose from auto, cpu, cuda, cuda:1, mps") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {device}: this torch sees {torch.cuda.device_count()} CUDA devices; use another, "
                         "or --device cpu")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {device}: this torch sees no MPS device; use --device cpu")
    return World(chosen, resolve_precision(precision, chosen.type, has_bf16=has_fast_bf16(chosen.type)))


def best_device() -> str:
    """CUDA if there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_fast_bf16(device_type: str) -> bool:
    """Whether bf16 matrix products run in hardware here."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if device_type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_precision(requested: str, device_type: str, *, has_bf16: bool) -> Precision:
    """The precision that "auto" means on a kind of device, or the requested one.

    Args:
        requested: "auto", "fp32", "bf16" or "fp16".
        device_type: "cpu", "cuda" or "mps".
        has_bf16: whether the device multiplies bf16 matrices in hardware.

    Raises:
        ValueError: for any other request.

    Example:
        >>> resolve_precision("auto", "cpu", has_bf16=False), resolve_precision("auto", "cuda", has_bf16=False)
        ('fp32', 'fp16')
    """
    if requested == "auto":
        if has_bf16:
            return "bf16"
        return "fp16" if device_type == "cuda" else "fp32"
    if requested not in DTYPES:
        raise ValueError(f"precision={requested!r}; choose from auto, {', '.join(DTYPES)}")
    return requested   # type: ignore[return-value]


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held so far, in bytes: on CUDA the device's, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):   # Linux, where ru_maxrss begins with the peak of the process it was started by
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:   # Windows
        return 0
    scale = 1 if os.uname().sysname == "Darwin" else 1024   # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
