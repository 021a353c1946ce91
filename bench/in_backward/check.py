"""Whether a trainer's first step is float64's, and its losses torch's after many."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .models import Task
from .trainers import Plain, Trainer

STEPS = 200
ROUNDING = 1e-7  # of a float32 loss, where torch's runs are equal in bits


class Mismatch(Exception):
    """A trainer does not do what torch does."""


def first_step_errors(task: Task, make: type[Trainer]) -> tuple[float, float]:
    """The errors of the weights after one step, theirs and torch float32's, against float64."""
    rows = task.indices(1, seed=1)
    exact = Plain(task, torch.float64)
    exact.steps(rows)
    errors = []
    for each in (make(task), Plain(task)):
        each.steps(rows)
        pairs = zip(each.model.parameters(), exact.model.parameters(), strict=True)
        squares = [(value.double() - right).square().sum() for value, right in pairs]
        errors.append(torch.stack(squares).sum().sqrt().item())
    return errors[0], errors[1]


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def losses(task: Task, make: type[Trainer], count: int, steps: int) -> Tensor:
    """The loss (steps,) float64 of each step, on `count` threads."""
    with threads(count):
        return make(task).steps(task.indices(steps, seed=2)).double()


def loss_distances(task: Task, make: type[Trainer], steps: int) -> tuple[float, float, float]:
    """How far the losses of the last half of the steps are from torch's on one thread: theirs, and
    those of torch on two; and the losses' size. Root mean squares."""
    plain = losses(task, Plain, 1, steps)
    found = (losses(task, make, 2, steps), losses(task, Plain, 2, steps))
    last = [each[steps // 2 :] for each in (found[0] - plain, found[1] - plain, plain)]
    ours, other, size = (each.square().mean().sqrt().item() for each in last)
    return ours, other, size


def check_first_step(task: Task, make: type[Trainer]) -> None:
    """Raises Mismatch unless the weights' error is at most twice torch's own."""
    found, torchs = first_step_errors(task, make)
    if not found <= 2 * torchs:
        raise Mismatch(f"{task.name}: the weights' error is {found:.3g}, torch's own {torchs:.3g}")


def check_losses(task: Task, make: type[Trainer], steps: int = STEPS) -> str:
    """Raises Mismatch unless the losses' distance is at most twice torch's own, and tells both."""
    found, torchs, size = loss_distances(task, make, steps)
    if not found <= 2 * torchs + ROUNDING * size:
        raise Mismatch(f"{task.name}: losses are {found:.3g} from torch's, its own {torchs:.3g}")
    return (
        f"{task.name}: after {steps} steps losses are {found:.3g} from torch's on 1 thread, "
        f"torch's on 2 threads {torchs:.3g}"
    )
