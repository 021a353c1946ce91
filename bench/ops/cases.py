"""The cases of both drivers, `python -m bench parts` and `pytest bench/ops`."""

import time
from typing import Any, NamedTuple

from .convolution import Convolution, ConvolutionInputGradient, ConvolutionWeightGradient
from .labels import AddNoise, BlocksNoise, BlocksUpdate, DenoisingLoss, OutputHead
from .linear import Dense, DenseUpdate, Linear, LinearForward
from .op import Call, Op

OPS: tuple[type[Op], ...] = (
    *(Linear, LinearForward, Dense, DenseUpdate),
    *(Convolution, ConvolutionInputGradient, ConvolutionWeightGradient),
    *(DenoisingLoss, AddNoise, BlocksNoise, OutputHead, BlocksUpdate),
)
CHECK_CALLS = 3


class Case(NamedTuple):
    """One operation at one size."""

    op: type[Op]
    size: tuple[int, ...]

    @property
    def shape(self) -> str:
        return "x".join(map(str, self.size))

    def __str__(self) -> str:
        return f"{self.op.name}-{self.shape}"


CASES = [Case(op, size) for op in OPS for size in op.sizes]
CONTENDERS = [(case, name) for case in CASES for name in case.op.contenders]


class Started(NamedTuple):
    """A call that passed its check, and the seconds of its first ones, which may compile."""

    call: Call
    seconds: list[float]


def start(case: Case, contender: str, **how: Any) -> Started:
    """Makes a contender's call and checks its first results.

    Raises:
        Mismatch: they are wrong.
    """
    call = getattr(case.op(*case.size, **how), contender)()
    seconds, first = [], {}
    for number in range(CHECK_CALLS):
        begin = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begin)
        if number == 0:  # later ones move what it returned
            first = {name: value.detach().clone() for name, value in result.items()}
    case.op(*case.size, **how).check(contender, first)
    return Started(call, seconds)
