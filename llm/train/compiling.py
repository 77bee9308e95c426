"""torch.compile where it works: block by block, in place, and back to eager with a warning where it does not."""

import logging
from collections.abc import Callable

import torch
from torch import nn

log = logging.getLogger(__name__)


def compile_blocks(model: nn.Module, try_out: Callable[[], None]) -> None:
    """torch.compile each block in place, so that the names in the state dict stay as they are.

    Args:
        model: its `blocks` are compiled; a module without blocks is compiled whole.
        try_out: runs a forward and backward; if that fails, everything goes back to eager with a warning.
    """
    parts = list(getattr(model, "blocks", [model]))
    devices = [parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"][:1]
    for part in parts:
        part.compile()
    with torch.random.fork_rng(devices=devices):
        try:
            try_out()
        except Exception as error:   # no C++ compiler, an unsupported operation, ...: all the compiler's own kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            log.warning("torch.compile does not work here, training goes on without it: %s", reason)
            for part in parts:
                part._compiled_call_impl = None   # what Module.compile set
