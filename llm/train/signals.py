"""SIGTERM and Ctrl-C while training: they ask for a stop behind the running step, where the run can be saved."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)


class StopRequest:
    """Remembers the signal that asked to stop; a further Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile SIGINT and SIGTERM only ask. Outside the main thread, which alone may say so, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return   # schedulers repeat their SIGTERM
        self.number = number
        log.warning("%s: saving and stopping after this step", signal.Signals(number).name)
