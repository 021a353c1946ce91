"""The engine ray: the workers are actors on the nodes of a cluster of Ray, or of this machine.

Ray places them, starts those that die again, and brings the rows once to each node. What trains
where is the driver's, and the units' checkpoints are in the store: Ray's own objects die with their
node.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..building import Split
from ..errors import InputError, extra

with extra("ray"):
    import ray  # pyright: ignore[reportMissingImports]

from .driver import Driver
from .events import Pool
from .job import Job, arrays_of
from .ray_pool import RayPool

LOCAL = "local"  # the address of a Ray of this process' own


@dataclass(frozen=True)
class Size:
    """How many workers, and the threads of each."""

    workers: int
    threads: int


@contextmanager
def session(address: str | None, workers: int | None, threads: int | None) -> Iterator[Size]:
    """Connects to a cluster, or starts a Ray of this machine, without dashboard and usage reports.

    Args:
        address: of the cluster, "auto" for one that was started here; None: this machine alone.
        workers: at most so many; None: one a node.
        threads: of each; None: an even share of the smallest node's processors.

    Raises:
        InputError: the cluster cannot be reached.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # Ray has no argument for it
    own: dict[str, Any] = {}
    if address is None:
        workers = workers or 1
        threads = threads or max(1, torch.get_num_threads() // workers)
        # a Ray of this machine places by what it is told, and all workers shall run
        own = {"include_dashboard": False, "num_cpus": workers * threads}
    try:
        ray.init(address or LOCAL, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:  # among them other versions
        raise InputError(f"no cluster of Ray at {address or LOCAL}: {error}") from error
    try:
        yield size_of(workers, threads)
    finally:
        ray.shutdown()


def size_of(workers: int | None, threads: int | None) -> Size:
    """What was asked for, else what the cluster's nodes have."""
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    nodes = [int(processors) for processors in nodes if processors >= 1] or [1]
    workers = workers or len(nodes)
    each = -(-workers // len(nodes))  # of a node
    return Size(workers, threads or max(1, min(nodes) // each))


def train(
    job: Job,
    split: Split,
    size: Size,
    made: Callable[[Pool], Driver],
    stop: Callable[[], bool],
) -> dict[str, Any]:
    """Trains within a `session`, as `Driver.run`.

    Args:
        job, split: what is trained.
        size: of the pool of workers.
        made: makes the driver of a pool.
        stop: true ends it.

    Returns:
        What happened, with "trained": whether all is trained to its end.
    """
    arrays = arrays_of(split)
    pool = RayPool(size.workers, size.threads, job, ray.put(arrays))
    driver = made(pool)
    trained = driver.run(stop)
    elsewhere = pool.nodes - {ray.get_runtime_context().get_node_id()}
    rows = sum(array.nbytes for array in arrays)
    return {
        "trained": trained,
        "workers": size.workers,
        "threads_each": size.threads,
        "isa": driver.isa,
        "nodes": len(pool.nodes),
        "bytes_rows": rows,
        "bytes_data": rows * len(elsewhere),
        **driver.counts.to_json(),
    }
