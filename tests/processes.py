"""Two real processes that talk over gloo, kept for many tests: starting them costs more than what they are asked."""

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest


class Pair:
    """Runs a function in both processes: `pair(function, ...)` gives what they returned, in the order of their ranks.

    The function gets the process's `World` first; it and its arguments must be importable by name.
    """

    def __init__(self) -> None:
        self.ends: list[Connection] = []
        self.processes: list[Any] = []

    def start(self) -> None:
        """Start both; done by the first call, and anew after a failure."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = get_context("spawn")
        for rank in range(2):
            ours, theirs = context.Pipe()
            self.ends.append(ours)
            self.processes.append(context.Process(target=_serve, args=(theirs, rank, port), daemon=True))
            self.processes[-1].start()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        if not self.processes:
            self.start()
        for end in self.ends:
            end.send((function, arguments))
        results: dict[int, Any] = {}
        while len(results) < len(self.ends):
            waiting = [end for rank, end in enumerate(self.ends) if rank not in results]
            answering = wait(waiting, timeout=300)   # a machine may be busy with other work
            if not answering:
                self.kill()
                pytest.fail("a process does not answer")
            for end in answering:
                result, error = end.recv()
                if error is not None:
                    self.kill()   # the other one may be waiting for it
                    raise AssertionError(error)
                results[self.ends.index(end)] = result
        return [results[rank] for rank in range(len(self.ends))]

    def kill(self) -> None:
        """End both at once."""
        for process in self.processes:
            process.kill()
        self.ends, self.processes = [], []

    def close(self) -> None:
        """Let both go together."""
        for end in self.ends:
            end.send(None)
        for process in self.processes:
            process.join(30)
            assert process.exitcode == 0


def _serve(end: Connection, rank: int, port: int) -> None:
    import torch

    from llm.launch import Launch
    from llm.runtime import start

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with start(device="cpu", precision="fp32", parallel="ddp", launch=Launch(rank, rank, 2)) as world:
        while (task := end.recv()) is not None:
            function, arguments = task
            try:
                end.send((function(world, *arguments), None))
            except Exception:
                end.send((None, traceback.format_exc()))
