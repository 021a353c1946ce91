"""graphed: K steps of another contender in one CUDA graph, captured by hand.

The first call of a kind runs plainly on its own stream, which also compiles; the second captures,
and later ones replay. Rows, given noise and the optimizer's numbers are copied to the graph's own
tensors before a replay; otherwise the graph draws the noise.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...machine import gpu
from ...problem.problem import Problem, Weights
from ..contender import Contender


class Graphed(Contender):
    """
    Args:
        make: (problem, threads) to the contender; the result of its `numbers` changes from call to
            call, and is passed to its `steps`.
    """

    def __init__(
        self, problem: Problem, threads: int, *, make: Callable[..., Contender], **how: Any
    ) -> None:
        super().__init__(problem, threads)
        self.inner = make(problem, threads, **how)
        self.maths = self.inner.maths
        # by K and whether noise is given: the graph's own tensors and its replay; None: called once
        self.graphs: dict[Any, tuple[list[Tensor], Callable[[], Tensor]] | None] = {}

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        given = [indices] if eps is None else [indices, eps]
        numbers = self.inner.numbers(len(indices))
        given += [] if numbers is None else [numbers]
        key = len(indices), eps is None
        if key not in self.graphs:
            self.graphs[key] = None
            return gpu.apart(self.device, lambda: self.work(given, eps is not None))
        if (found := self.graphs[key]) is None:
            own = [value.clone() for value in given]
            replay = gpu.capture(self.device, lambda: self.work(own, eps is not None))
            found = self.graphs[key] = own, replay
        for kept, value in zip(found[0], given, strict=True):
            kept.copy_(value, non_blocking=True)
        return found[1]().clone()

    def work(self, given: list[Tensor], noise: bool) -> Tensor:
        indices, *rest = given
        eps = rest.pop(0) if noise else None
        return self.inner.steps(indices, eps, *rest)

    def resident(self) -> dict[str, int]:
        return self.inner.resident()

    def gradient_bytes(self) -> int:
        return self.inner.gradient_bytes()

    def step_bytes(self, indices: Tensor) -> None:
        return None  # the graph's own memory, which no step allocates

    def weights(self) -> Weights:
        return self.inner.weights()
