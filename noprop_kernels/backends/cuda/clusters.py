"""Thread-block clusters: whether a group of thread blocks is launched as one, and its size.

A cluster uses the hardware's barrier instead of one in global memory. NOPROP_CUDA_CLUSTERS=1 turns
them on; they are off by default, since no GPU has shown that they help.
"""

from functools import lru_cache
from typing import Any

from ... import settings
from . import tiles


def held(module: Any, device: int, precision: str, room: int) -> tuple[int, ...]:
    """Clusters of 1, 2, ... thread blocks that the device runs at the same time; () if off.

    Args:
        room: free floats of shared memory; a block that uses all of it is alone on its
            multiprocessor.

    Raises:
        ValueError: the variable is neither 0 nor 1.
        RuntimeError: the device has no clusters.
    """
    return held_by(module, device, precision, room) if settings.cuda_clusters() else ()


@lru_cache(maxsize=64)
def held_by(module: Any, device: int, precision: str, room: int) -> tuple[int, ...]:
    sizes = range(1, tiles.constant("kMostOfCluster") + 1)
    try:
        return tuple(module.resident_clusters(device, precision, room, size) for size in sizes)
    except RuntimeError as error:
        raise RuntimeError(f"{settings.CLUSTERS}=1: {error}") from error
