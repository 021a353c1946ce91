"""The fixed description of a stack of slices, and the cache of its calls."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..goal import StepGoal
from ..plan import Plan

# parameters and buffers are float32 except these
INTEGERS = {"seeds", "draws", "updates", "t"}


class Cache(dict):
    """A cache: each value is stored with the objects that it was built from, and compared with the
    current ones before reuse.

    It is not copied or pickled.
    """

    def keep(self, key: tuple, value: Any) -> None:
        if len(self) >= 64:
            self.clear()
        self[key] = value

    def __reduce__(self) -> tuple[type, tuple]:
        return Cache, ()


@dataclass
class Layout:
    """The names and shapes of a stack's tensors, and the constants of its steps.

    Args:
        goal: gives the levels of a step.
        given: names of the plan's inputs that a caller gives, which are all but "z", and "t" where
            the goal draws it.
        held: the paper's t of each replica's slices, ascending.
        replicas: R; slices are stacked replica by replica.
        stream: the stream of the noise in training.
        params, stats: names of the plan's parameters and running statistics.
        moments: the optimizer's moments, "m" and "v" or fewer.
        buffers: names of the tensors that are not the plan's.
        shapes: of every tensor by its name.
    """

    goal: StepGoal
    given: tuple[str, ...]
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
        """The number of slices."""
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
        given=tuple(name for name in plan.inputs if name != "z" and not drawn(goal, name)),
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


def drawn(goal: StepGoal, name: str) -> bool:
    """Whether a goal draws this input of a plan by itself."""
    return goal.timed and name == "t"


def dtype_of(name: str) -> torch.dtype:
    return torch.int64 if name in INTEGERS else torch.float32
