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
    """omp_pause_resource_all of the OpenMP runtime that PyTorch loaded, or None.

    Not in a forked child, where the runtime would wait for threads that only its parent has.
    """
    if os.getpid() != PARENT:
        return None
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    libraries = {line.split()[-1] for line in maps.splitlines() if "omp" in line}
    for path in sorted(libraries):
        if Path(path).name.startswith(("libgomp", "libomp")):
            with contextlib.suppress(OSError, AttributeError):
                return ctypes.CDLL(path).omp_pause_resource_all
    return None


os.register_at_fork(after_in_child=pause_function.cache_clear)
