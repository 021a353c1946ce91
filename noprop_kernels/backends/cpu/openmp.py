"""PyTorch's OpenMP threads, which spin for a while after a parallel operation."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

PAUSE_SOFT = 1  # of omp_pause_resource_t
PARENT = os.getpid()


def let_go() -> None:
    """Ends the threads that spin on processors which ours need.

    PyTorch's next parallel operation makes them anew. Where no runtime that can do this is found,
    they stay.
    """
    if (pause := pause_function()) is not None:
        pause(PAUSE_SOFT)


@functools.cache
def pause_function() -> Callable[[int], int] | None:
    """omp_pause_resource_all of the OpenMP runtime that PyTorch itself runs on, or None.

    A process may have loaded several runtimes, scikit-learn's for one. A symbol looked up in
    PyTorch's library is found there or in what that library was linked to, and nowhere else.

    Not in a forked child, where the runtime would wait for threads that only its parent has.
    """
    if os.getpid() != PARENT:
        return None
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libtorch_cpu" in line}
    for path in sorted(paths):
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.CDLL(path).omp_pause_resource_all
    return None


os.register_at_fork(after_in_child=pause_function.cache_clear)
