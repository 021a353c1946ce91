"""The interface of everything that the runner measures."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ..machine import gpu
from ..problem.problem import Factors, Problem, Weights
from ..problem.sizes import Shape

PRECISIONS = ("float32", "tf32", "bfloat16")


class Missing(Exception):
    """This machine lacks what a contender needs; leaving it out is no error."""


class Contender:
    """Trains all T blocks of a problem, K steps a call.

    Attributes:
        maths: what is computed: "adamw", "sgd", "end_to_end", "ct", "fm", "inference", a sampler or
            a part of a step; only contenders with the same maths are compared.
        dropout: of each convolution's result in a rival's step, the part that is 0; or in a check
            what the result is multiplied by.

    Args:
        problem: what to train; its tensors are not changed.
        threads: cores it may use.
        maths: where it is not the class's own.
    """

    maths = "adamw"

    def __init__(self, problem: Problem, threads: int, *, maths: str | None = None) -> None:
        self.maths = maths or self.maths
        self.problem = problem
        self.shape = problem.shape
        self.threads = threads
        self.X, self.Y = problem.X, problem.Y
        self.device = problem.device
        self.dropout: Mapping[str, float | Tensor] = problem.shape.dropout
        eye = torch.eye(problem.shape.M, device=self.device)
        self.embedding = eye if problem.embedding is None else problem.embedding  # u_y = its row y

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        """Losses (K, T) of K steps, or (K, 1) end to end.

        Args:
            indices: (K, B) int64, rows of X and Y.
            eps: (K, T, B, D) float32, the noise, as Problem.eps has it; None: drawn here.
        """
        raise NotImplementedError

    def numbers(self, K: int) -> Tensor | None:
        """Numbers that change from step to step beside rows and noise; a third argument of
        `steps`."""
        return None

    def weights(self) -> Weights:
        """Copies of the current weights and running statistics, with the problem's names."""
        raise NotImplementedError

    def check_eps(self, K: int, seed: int) -> tuple[Tensor | None, Tensor]:
        """Noise for the correctness check: the argument for `steps`, and the noise that K steps
        then use."""
        eps = self.problem.eps(K, seed)
        return eps, eps

    def check_factors(self, k: int) -> Factors:
        """Those of dropout in step k of the correctness check."""
        return self.problem.factors(seed=4 + k)

    def flop(self) -> int:
        """Operations of a step, counting products only."""
        return self.shape.flop

    def traffic(self) -> int:
        """Bytes of weights and optimizer that a step at K = 1 reads and writes, each once."""
        resident = self.resident()
        return 2 * (resident["weights"] + resident["optimizer"])

    def resident(self) -> dict[str, int]:
        """Bytes that stay between two steps, in parts."""
        weights = 4 * self.shape.parameters
        moments = 0 if self.maths == "sgd" else 2 * weights
        return {"weights": weights, "optimizer": moments}

    def gradient_bytes(self) -> int:
        """Most bytes of parameters' gradients that exist at once."""
        return 4 * self.shape.parameters

    def step_bytes(self, indices: Tensor) -> int | None:
        """Most bytes that a step holds beside `resident`: activations, gradients, workspace.

        By PyTorch's own record of its allocations; None where it does not see the work.
        """
        if self.device.type == "cuda":
            gpu.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.steps(indices[:1])
            return torch.cuda.max_memory_allocated(self.device) - before
        activities = [ProfilerActivity.CPU]
        with quiet_stderr(), profile(activities=activities, profile_memory=True) as profiler:
            self.steps(indices[:1])
        events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        allocations = [event for event in events if event.name() == "[memory]"]
        allocations.sort(key=lambda event: event.start_ns())
        return max(accumulate(event.nbytes() for event in allocations))  # type: ignore

    def close(self) -> None:
        """Releases what outlives the object."""

    def draw(self, K: int, B: int) -> Tensor:
        """The noise of K steps of B rows in one call, which is faster than T or K calls."""
        return torch.randn(K, self.shape.T, B, self.shape.D, device=self.device)

    def autocast(self) -> torch.autocast:
        """PyTorch's own setting for the problem's precision; none for float32."""
        low = self.problem.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, low)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, F) and u_y (B, D) of the rows (B,)."""
        return self.X.index_select(0, rows), self.embedding.index_select(0, self.Y[rows])


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Discards what native code writes to stderr: the profiler's messages about itself."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@dataclass(frozen=True)
class Entry:
    """A contender by name, made when its turn comes.

    Args:
        name: as in the result files; that of each way of calling ours begins with `ours`.
        make: (problem, threads) to contender.
        compiles: its first call compiles; failing to is then a result and no mistake.
        slow: left out of a quick run.
        single: takes one step a call, and is timed at K = 1 alone.
        min_threads: minimum of threads; with fewer it equals another contender, or cannot be
            limited to so few.
        precisions: the precisions of products' operands that it supports.
        fits: whether it runs at a shape; where not it equals another contender, or has no form.
    """

    name: str
    make: Callable[[Problem, int], Contender]
    compiles: bool = False
    slow: bool = False
    single: bool = False
    min_threads: int = 1
    precisions: tuple[str, ...] = ("float32",)
    fits: Callable[[Shape], bool] = lambda shape: True
