"""What a stack of slices was made of, which stays, and what its calls keep for later ones."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..goal import StepGoal
from ..plan import Plan

# parameters, buffers and numbers are float32 but for these
INTEGERS = {"seeds", "draws", "updates", "t"}


class Cache(dict):
    """Values by key, each beside what it was made of, which its user compares with what is there.

    An object's copies and files start without it.
    """

    def keep(self, key: tuple, value: Any) -> None:
        if len(self) >= 64:
            self.clear()
        self[key] = value

    def __reduce__(self) -> tuple[type, tuple]:
        return Cache, ()


@dataclass
class Layout:
    """The names and shapes of a stack's tensors, and what its steps are made of.

    Args:
        goal: gives the levels of a step.
        held: the paper's t of each replica's slices, ascending.
        replicas: R; slices are stacked replica by replica.
        stream: of the noise in training.
        params, stats: names of the plan's parameters and running statistics.
        moments: of the optimizer, "m" and "v" or fewer.
        buffers: names of the tensors that are not the plan's.
        shapes: of every tensor by its name.
    """

    goal: StepGoal
    held: tuple[int, ...]
    replicas: int
    stream: int
    params: tuple[str, ...]
    stats: tuple[str, ...]
    moments: tuple[str, ...]
    buffers: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    cache: Cache = field(default_factory=Cache)

    @property
    def N(self) -> int:
        """Slices."""
        return len(self.held) * self.replicas

    def t(self, index: Tensor) -> Tensor:
        """The paper's t of the slices at these positions, int64 on the CPU."""
        held = torch.tensor(self.held, dtype=torch.int64, device="cpu")
        return held[index % len(held)]


def make_layout(
    plan: Plan,
    goal: StepGoal,
    *,
    held: tuple[int, ...],
    replicas: int,
    stream: int,
    moments: tuple[str, ...],
    buffers: dict[str, tuple[int, ...]],
) -> Layout:
    params, stats = plan.parameters(), plan.statistics()
    N = len(held) * replicas
    return Layout(
        goal=goal,
        held=held,
        replicas=replicas,
        stream=stream,
        params=tuple(params),
        stats=tuple(stats),
        moments=moments,
        buffers=tuple(buffers),
        shapes=buffers
        | {
            name + suffix: (N, *shape)
            for name, shape in (params | stats).items()
            for suffix in ("", "_m", "_v")
        },
    )


def dtype_of(name: str) -> torch.dtype:
    return torch.int64 if name in INTEGERS else torch.float32
