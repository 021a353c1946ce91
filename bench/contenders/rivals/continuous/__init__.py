"""The rivals at CT and FM: each form in which PyTorch's experts would write a step of replicas.

All read images cropped to what results depend on, and draw t and noise by torch in the step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ....problem.sizes import Shape
from ...contender import Entry
from ..processes import Processes
from .compiled import StepCompiled
from .coupled import CoupledCompiled, CoupledEager
from .eager import Eager
from .stacked import Stacked, Vmapped

MATHS = ("ct", "fm")


def several(shape: Shape) -> bool:
    """Whether replicas can be stacked."""
    return shape.T > 1


def single(shape: Shape) -> bool:
    """Whether there is one replica."""
    return not several(shape)


def several_mlps(shape: Shape) -> bool:
    return several(shape) and shape.image is None


def several_images(shape: Shape) -> bool:
    return several(shape) and shape.image is not None


def processes(problem: Any, threads: int, *, maths: str) -> Processes:
    return Processes(
        problem, threads, make=partial(Eager, maths=maths, block_major=True), maths=maths
    )


def both(name: str, make: Callable[..., Any], **how: Any) -> list[Entry]:
    """A contender at CT and at FM."""
    return [Entry(name, partial(make, maths=maths), **how) for maths in MATHS]


CONTINUOUS_RIVALS = (
    *both("eager", Eager),
    *both("processes", processes, min_threads=2, fits=several),
    *both("stacked", Stacked, fits=several_mlps),
    *both("vmapped", Vmapped, slow=True, fits=several_images),
    *both("step_compiled", StepCompiled, compiles=True),
    *both(
        "stacked_compiled",
        partial(StepCompiled, all_replicas=True),
        compiles=True,
        fits=several_mlps,
    ),
    Entry("eager", partial(CoupledEager, maths="coupled"), fits=single),
    Entry(
        "step_compiled",
        partial(CoupledCompiled, maths="coupled"),
        compiles=True,
        fits=single,
    ),
)
