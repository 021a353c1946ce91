"""The OpenMP runtime that PyTorch runs on, whose threads also run the kernels.

After an operation on several threads they spin for a while, on processors that other threads of
ours would need.
"""

import contextlib
import ctypes
from pathlib import Path

NAMES = ("GOMP_parallel", "omp_get_num_threads", "omp_pause_resource_all")


def functions() -> tuple[int, int, int]:
    """The addresses of its functions NAMES, or zeros where PyTorch has no runtime that offers them.

    A process may have loaded several runtimes, for example scikit-learn's. A symbol looked up in
    PyTorch's library is found there or in the libraries it links, and nowhere else.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return 0, 0, 0
    paths = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libtorch_cpu" in line}
    for path in sorted(paths):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(path)
            parallel, num_threads, pause = (address(getattr(library, name)) for name in NAMES)
            return parallel, num_threads, pause
    return 0, 0, 0


def address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
