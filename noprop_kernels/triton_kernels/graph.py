"""K steps of a training call: plain launches, or a CUDA graph of them."""

from collections.abc import Callable

from ..calls import Gather, TrainCall
from .launch import run
from .walk import Walk


def train(call: TrainCall, walk_of: Callable[[TrainCall], Walk]) -> None:
    launch_steps(call, walk_of(call))


def launch_steps(call: TrainCall, walk: Walk) -> None:
    for k in range(call.K):
        walk.at |= {name: v[k] for name, v in call.inputs.items() if not isinstance(v, Gather)}
        run(walk, k)
