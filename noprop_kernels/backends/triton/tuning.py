"""How kernels are launched, where the static choice is not wanted: opt-in, and no bit changes.

    with tuning.use(tuning.tune(blocks, x, y)):
        blocks.train_steps(X, Y, indices)

Warps and pipeline stages of the products, and early launch (PDL), can be chosen. Tiles cannot,
since sums would be taken in another order; nor warps of kernels that sum over lanes; nor less than
a warpgroup's four, with which a product would take another matrix instruction.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import dispatch

# kernels whose sums are products alone may have other warps; the update also sums biases
WARPS = {"dense_kernel": (4, 8), "result_gradient_kernel": (4, 8), "update_kernel": ()}
STAGES = (1, 2, 3, 4)
REPEATS = 20


@dataclass(frozen=True)
class Launches:
    """A choice of launch configurations.

    Args:
        pdl: False: a launch waits for the end of the one before it; True: as the device can.
        warps: by kernel, "dense_kernel" | "result_gradient_kernel": 4 | 8.
        stages: by kernel, those and "update_kernel": 1..4, how far loads run ahead in a product.

    Raises:
        ValueError: a kernel or a number is none of these.
    """

    pdl: bool = True
    warps: dict[str, int] = field(default_factory=dict)
    stages: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        allowed = {"warps": WARPS, "stages": dict.fromkeys(WARPS, STAGES)}
        for name, known in allowed.items():
            for kernel, count in getattr(self, name).items():
                if count not in known.get(kernel, ()):
                    choices = {kernel: counts for kernel, counts in known.items() if counts}
                    raise ValueError(
                        f"Launches: {name} must be among {choices}, got {{{kernel!r}: {count!r}}}"
                    )

    def key(self) -> tuple:
        """What a CUDA graph of such launches freezes."""
        return self.pdl, *sorted(self.warps.items()), None, *sorted(self.stages.items())

    def changed(self, kernel: str, warps: int | None, stages: int) -> "Launches":
        """The same but for one kernel."""
        more = {} if warps is None else {kernel: warps}
        return replace(self, warps=self.warps | more, stages=self.stages | {kernel: stages})


_current: ContextVar[Launches] = ContextVar("noprop_kernels_launches", default=Launches())  # noqa: B039


def current() -> Launches:
    return _current.get()


@contextmanager
def use(launches: Launches) -> Iterator[None]:
    """Launches kernels so inside the `with`."""
    token = _current.set(launches)
    try:
        yield
    finally:
        _current.reset(token)


def tune(blocks: Any, x: Tensor, y: Tensor, *, repeats: int = REPEATS) -> Launches:
    """The fastest launches for training `blocks` on batches like this one, by trying them.

    A choice that changes a bit of the step's result, or does not fit on the device, is passed over.
    The object's parameters, moments and counters are in the end as they were.

    Args:
        blocks: a DenoisingBlocks that the Triton backend trains.
        x: (B, F), or what train_step takes.
        y: (B,) int64.
        repeats: of each timing, of which the fastest counts.

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
    """Kernel by kernel, the choice that gives the static launches' bits in the least time."""
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
                    if type(error).__name__ != "OutOfResources":  # Triton's, imported nowhere here
                        raise
                    continue
                if not all(torch.equal(value, got[name]) for name, value in want.items()):
                    continue
                if (taken := milliseconds(tried)) < least:
                    best, least = tried, taken
    return best


def fastest(device: torch.device, work: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of a step; on a GPU of its graph, whose launches cost the host nothing."""
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
