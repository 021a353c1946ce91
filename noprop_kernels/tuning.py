"""A search for faster launches of the Triton kernels: opt-in, and no bit changes.

    with tuning.use(tuning.tune(blocks, x, y)):
        blocks.train_steps(X, Y, indices)

backends/triton/launch_options.py says what can be chosen, and what cannot.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backends import dispatch
from .backends.triton.launch_options import STAGES, WARPS, Launches, use

REPEATS = 20


def tune(blocks: Any, x: Tensor, y: Tensor, *, repeats: int = REPEATS) -> Launches:
    """Finds the fastest launches for training `blocks` on batches like this one, by trying them.

    A choice that changes a bit of the step's result, or does not fit on the device, is skipped. The
    object's parameters, moments and counters are restored at the end.

    Args:
        blocks: a DenoisingBlocks that the Triton backend trains.
        x: (B, F), or any form that train_step takes.
        y: (B,) int64.
        repeats: number of timings of each choice, of which the fastest counts.

    Raises:
        BackendError: Triton cannot run it.
        ValueError: an argument does not fit.
    """
    if repeats < 1:
        raise ValueError(f"tune: repeats must be at least 1, got {repeats}")
    with dispatch.use_backend("triton"):
        dispatch.choose(blocks.plan, blocks.device, blocks.precision)
        state = blocks.state_dict()
        before = {name: value.clone() for name, value in state.items()}

        def restore() -> None:
            for name, value in state.items():
                value.copy_(before[name])

        def result(launches: Launches) -> dict[str, Tensor]:
            restore()
            with use(launches):
                loss = blocks.train_step(x, y).loss
            return {name: value.clone() for name, value in state.items()} | {"loss": loss}

        def milliseconds(launches: Launches) -> float:
            restore()
            with use(launches):
                return fastest(blocks.device, lambda: blocks.train_step(x, y), repeats)

        try:
            with torch.no_grad():
                return search(result, milliseconds)
        finally:
            with torch.no_grad():
                restore()


def search(
    result: Callable[[Launches], dict[str, Tensor]], milliseconds: Callable[[Launches], float]
) -> Launches:
    """Chooses, kernel by kernel, the fastest launch with the bits of the static one."""
    best = Launches()
    want, least = result(best), milliseconds(best)
    for kernel, counts in WARPS.items():
        start = best
        for warps in counts or (None,):
            for stages in STAGES:
                tried = start.changed(kernel, warps, stages)
                try:
                    got = result(tried)
                except Exception as error:
                    if type(error).__name__ != "OutOfResources":  # Triton's, not imported here
                        raise
                    continue
                if not all(torch.equal(value, got[name]) for name, value in want.items()):
                    continue
                if (taken := milliseconds(tried)) < least:
                    best, least = tried, taken
    return best


def fastest(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of a step; on a GPU those of its graph, without the host's cost of launches."""
    if device.type != "cuda":
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            samples.append((time.perf_counter() - start) * 1e3)
        return min(samples)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        best = float("inf")
        for _ in range(repeats):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end))
    torch.cuda.current_stream(device).wait_stream(stream)
    return best
