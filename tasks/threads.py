"""Work of one process spread over threads, as many as there are cores and memory for, with results in order.

    with at_once(bytes_each=3e9) as threads:
        for result in threads.in_order(work, items): ...

For numpy, torch and compression, which let other threads work meanwhile. torch's own threads rest: each of ours is one.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

MEMORY_SHARE = 0.5  # of what is free now
MOST = 64
CGROUP = Path("/sys/fs/cgroup")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads:
    """A pool of `count` threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count, "at once")

    def submit(self, work: Callable[..., Result], *arguments: object) -> "Future[Result]":
        """Begins one piece of work as soon as a thread is free."""
        return self._pool.submit(work, *arguments)

    def in_order(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work(item)` of each item, in the order of items; at most `count` are worked on or wait to be taken."""
        ahead: collections.deque[Future[Result]] = collections.deque()
        for item in items:
            ahead.append(self.submit(work, item))
            if len(ahead) == self.count:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def end(self) -> None:
        """Waits for what is worked on; the rest is not begun."""
        self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def at_once(bytes_each: float) -> Iterator[Threads]:
    """Threads for work that takes so much memory a piece: at least one, at most one a core."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = Threads(max(1, min(MOST, cores, int(MEMORY_SHARE * free_memory() / max(bytes_each, 1)))))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        threads.end()
        torch.set_num_threads(before)


def free_memory() -> int:
    """Bytes that this process may still take: the machine's, or less where a control group limits it."""
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # no control group, or one without a limit ("max")
        used = int((CGROUP / "memory.current").read_text())
        free = min(free, int((CGROUP / "memory.max").read_text()) - used)
    return max(free, 0)
