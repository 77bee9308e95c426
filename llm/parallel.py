"""One way to use several processes: the same function over many items, results in order, memory bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def map_in_order(function: Callable[[Item], Value], items: Iterable[Item], *, workers: int) -> Iterator[Value]:
    """Like `map`, in several processes; the results come in the order of the items whatever the number of workers.

    Args:
        function: importable by name, as are its arguments and results by pickling.
        items: read only a few ahead of the results, so that they need not fit into memory together.
        workers: processes; 1 works in this one. A script that asks for more needs the usual
            `if __name__ == "__main__":`, since processes are spawned.

    Raises:
        ValueError: if workers is below 1.

    Example:
        >>> list(map_in_order(abs, [-1, 2, -3], workers=1))
        [1, 2, 3]
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1")
    if workers == 1:
        yield from map(function, items)
        return
    context = get_context("spawn")   # a fork would copy the locks of torch's threads, held or not
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: deque[Future[Value]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:   # the caller has had enough, or an item failed: do not work off the rest
                future.cancel()
