"""How the loops of the CPU's step are compiled: by numba, when first called, and kept for later processes.

No licence to reorder or to fuse: numba optimises code that it has just compiled otherwise than the same code from its
cache, and a training must end with the same bits on a machine's first run and on its next.

Everything is split into blocks whose number depends on shapes alone, so that no bit depends on the number of threads.
What lets LLVM vectorise: one-dimensional slices (no negative index to wrap) and division as numpy does it (no branch
for zero). No flag lets the compiler assume that values are finite: NaN is to be seen.

Numba's OpenMP threads do not survive a fork: a process that has made a step may start others only by exec or spawn.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

ROWS = 16  # rows of one block
OPTIONS = {"error_model": "numpy"}
part = njit(**OPTIONS)  # of a loop: compiled into it


def compiled(parallel: bool = False) -> Callable[[Any], Any]:
    """A loop that Python calls, kept on the disk."""

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, parallel=parallel, **OPTIONS)(function)
        except RuntimeError:  # neither this folder nor the user's cache can be written: compiled in each process
            return njit(parallel=parallel, **OPTIONS)(function)

    return decorate
