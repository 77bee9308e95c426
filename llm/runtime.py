"""Where a run computes: device, precision, processes. The only module that lets processes talk.

A `World` is made from plain values and passed on; there is no global. One process is a World of size 1, on the same
path. Several are started by torchrun (`launch.py`): each holds a copy of the model and computes its share of every
step. They exchange gradients through `wrap`, and everything else through `gather`.
"""

import base64
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llm.launch import Launch, read_launch

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PARALLEL = ("auto", "none", "ddp")
MESSAGE_BYTES = 1024   # what most messages fit in; longer ones take a second round


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    As a context manager it parts in good order: at the end all wait for each other, so that none is left talking to
    one that is gone. An error does not wait.
    """

    device: torch.device
    precision: Precision
    rank: int = 0
    size: int = 1

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.size > 1 and kind is None:
            self.barrier()
            dist.destroy_process_group()

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

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: its backward also averages the gradients over the processes.

        With several processes they then all start from the weights of the first. Alone it is the model itself.
        """
        if self.size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def micro_batch(self, wrapped: nn.Module, *, is_last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward AND backward of one micro-batch: only the last of a step exchanges gradients."""
        if is_last or not isinstance(wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, such as running statistics, by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; all must call it, and each waits for the others.

        Args:
            value: anything JSON can spell, NaN and infinity included.

        Raises:
            RuntimeError: if another process is gone.
        """
        if self.size == 1:
            return [value]
        data = json.dumps(value).encode()
        first = _all_gather(len(data).to_bytes(8, "little") + data[:MESSAGE_BYTES], 8 + MESSAGE_BYTES, self.size)
        lengths = [int.from_bytes(message[:8], "little") for message in first]
        rest = max(lengths) - MESSAGE_BYTES
        second = _all_gather(data[MESSAGE_BYTES:], rest, self.size) if rest > 0 else [b""] * self.size
        return [json.loads((begin[8:] + end)[:length])
                for begin, end, length in zip(first, second, lengths, strict=True)]

    def total(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes; every process gets the same bits."""
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def total_by_name(self, sums: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """The same for values under names; a process need not have every name."""
        totals: dict[str, list[float]] = {}
        for found in self.gather({name: list(map(float, values)) for name, values in sums.items()}):
            for name, values in found.items():
                totals[name] = [a + b for a, b in zip(totals.get(name, [0.0] * len(values)), values, strict=True)]
        return totals

    def barrier(self) -> None:
        """Go on only when all processes are here."""
        self.gather(None)

    def agree(self, what: str, value: Any) -> None:
        """Make sure that all processes hold the same value; otherwise they would wait for each other in vain.

        Raises:
            ValueError: if they do not.
        """
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise ValueError(f"the processes disagree about {what}: {', '.join(map(str, values))}; start all with the "
                             "same settings, on files that all of them see")

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Something that the first process does before the others, such as a download that they then find done."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def seed(self, seed: int, *, step: int = 0) -> None:
        """Seed torch's generators: alone and in the first process with `seed`, elsewhere with one that follows from it.

        Args:
            seed: of the run.
            step: of a run that goes on with more processes than before.
        """
        is_new = self.rank > 0 or step > 0
        torch.manual_seed(int(np.random.SeedSequence([seed, self.rank, step]).generate_state(1)[0]) if is_new else seed)

    def rng_state(self) -> dict[str, str]:
        """The state of torch's generators in this process, as plain text."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return {name: base64.b64encode(state.numpy().tobytes()).decode() for name, state in states.items()}

    def restore_rng(self, states: Sequence[Mapping[str, str]], *, seed: int, step: int) -> None:
        """Go on with the generators of a run.

        Args:
            states: the `rng_state` of each of its processes; on another kind of device only what is there for it.
            seed: of the run, for a process that it did not have.
            step: where it goes on, likewise.

        Raises:
            ValueError: if a state is damaged.
        """
        if self.rank >= len(states):
            self.seed(seed, step=step)
            return
        try:
            packed = {name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
                      for name, text in states[self.rank].items()}
            torch.set_rng_state(packed["cpu"])
            if self.device.type == "cuda" and "cuda" in packed:
                torch.cuda.set_rng_state(packed["cuda"], self.device)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(f"the saved state of the random numbers is damaged ({error}); start a new run from the "
                             "weights with --model") from error


def start(
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    parallel: str = "none",
    launch: Launch | None = None,
) -> World:
    """Look at the machine, settle device and precision, and meet the other processes if torchrun started several.

    Args:
        device: "auto" (CUDA, else Apple's MPS, else CPU), "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", "fp32", "bf16" or "fp16".
        threads: CPU threads of each process; default torch's own choice.
        parallel: how several processes work together: "ddp" gives each a copy of the model, "none" refuses several,
            "auto" is what fits their number.
        launch: which process this is; default what the environment says.

    Raises:
        ValueError: if there is no such device, or not one for each process.
    """
    launch = launch if launch is not None else read_launch()
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        torch.set_num_threads(threads)
    if parallel not in PARALLEL:
        raise ValueError(f"parallel={parallel!r}; choose from {', '.join(PARALLEL)}")
    if launch.size > 1 and parallel == "none":
        raise ValueError(f"torchrun started {launch.size} processes, and with parallel=none each would work for "
                         "itself; use parallel=ddp, or start one process without torchrun")
    if launch.size == 1 and parallel == "ddp":
        log.warning("parallel=ddp has no effect on one process; `torchrun --nproc-per-node N -m ...` starts N")
    chosen = _choose_device(device, launch)
    world = World(chosen, resolve_precision(precision, chosen.type, has_bf16=has_fast_bf16(chosen.type)), launch.rank,
                  launch.size)
    if launch.size > 1 and not dist.is_initialized():
        # tensors on the CPU, which is what `gather` sends, never wait for the GPU
        on_cuda = "nccl" if dist.is_nccl_available() else "gloo"
        dist.init_process_group("gloo" if chosen.type == "cpu" else f"cpu:gloo,cuda:{on_cuda}",
                                rank=launch.rank, world_size=launch.size)
        world.agree("device and precision", [chosen.type, world.precision])
    return world


def end_all(message: str, status: int) -> NoReturn:
    """End this process, one of several, because of an error, so that the error is told once.

    When a process fails, the others lose it in the middle of a sentence and fail too. The first to come here says
    why; the others wait until it has, because torchrun kills all when one is gone, and stay silent. It ends without
    tidying up, since that may mean talking to processes that are gone.
    """
    try:
        launch = read_launch()
        store = next(dist.rendezvous("env://", launch.rank, launch.size, timeout=timedelta(seconds=10)))[0]
        if store.add("llm/failed", 1) == 1:
            print(message, file=sys.stderr, flush=True)
            store.set("llm/told", "")
        else:
            store.wait(["llm/told"], timedelta(seconds=10))
    except Exception:   # nobody to ask whether it was told already
        print(message, file=sys.stderr, flush=True)
    os._exit(status)


def _all_gather(data: bytes, length: int, size: int) -> list[bytes]:
    """The data of all processes, each filled up to the length."""
    mine = torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8)
    found = [torch.empty_like(mine) for _ in range(size)]
    try:
        dist.all_gather(found, mine)
    except RuntimeError as error:
        raise RuntimeError("another process of this run is gone, or did not answer") from error
    return [tensor.numpy().tobytes() for tensor in found]


def _choose_device(name: str, launch: Launch) -> torch.device:
    """The device of this process; of several on a machine, each takes a GPU of its own."""
    try:
        chosen = torch.device(name if name != "auto" else best_device())
    except RuntimeError as error:
        raise ValueError(f"--device {name}: choose from auto, cpu, cuda, cuda:1, mps") from error
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {name}: this torch sees no MPS device; use --device cpu")
    if launch.size > 1 and chosen.type == "mps":
        raise ValueError(f"--device {name}: {launch.size} processes cannot share Apple's GPU; use --device cpu")
    if launch.size > 1 and chosen.type == "cuda":
        if chosen.index is not None:
            raise ValueError(f"--device {name}: each of {launch.size} processes takes a GPU of its own; use --device "
                             "cuda")
        chosen = torch.device("cuda", launch.local_rank)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {chosen}: this torch sees {torch.cuda.device_count()} CUDA devices; use another, "
                         "fewer processes, or --device cpu")
    if launch.size > 1 and chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


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


def total_memory(device: torch.device) -> int | None:
    """The memory of a device in bytes, whoever uses it now; None where nobody says."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    names = getattr(os, "sysconf_names", {})   # Windows has none
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else None


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
