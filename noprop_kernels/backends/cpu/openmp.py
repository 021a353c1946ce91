"""Pauses PyTorch's OpenMP threads, which spin for a while after a parallel operation."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable
from pathlib import Path

PAUSE_SOFT = 1  # a value of omp_pause_resource_t
PARENT = os.getpid()


def let_go() -> None:
    """Ends PyTorch's threads that spin on processors which the kernels need.

    PyTorch's next parallel operation starts them again. They stay where no runtime offers this.
    """
    if (pause := pause_function()) is not None:
        pause(PAUSE_SOFT)


@functools.cache
def pause_function() -> Callable[[int], int] | None:
    """omp_pause_resource_all of the OpenMP runtime that PyTorch itself runs on, or None.

    A process may have loaded several runtimes, for example scikit-learn's. A symbol looked up in
    PyTorch's library is found there or in the libraries it links, and nowhere else.

    None in a forked child, where the runtime would wait for threads that only its parent has.
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
