"""Checks a contender's first steps against the twin's."""

import time

import torch
from torch import Tensor

from ..contenders.contender import Contender
from ..contenders.rivals.processes import share
from ..contenders.rivals.stacked import Stacked, StackedSGD
from ..machine import gpu
from ..problem import continuous, coupled, twin

CHECK_STEPS = 3
PLAIN = {"adamw": Stacked, "sgd": StackedSGD}


def check_steps(contender: Contender) -> list[float]:
    """Takes three steps and compares them with the twin's; returns the seconds of each.

    Raises:
        Mismatch: they are not.
    """
    problem = contender.problem
    indices = problem.indices(CHECK_STEPS, seed=1)
    given, used = contender.check_eps(CHECK_STEPS, seed=2)
    losses, seconds = [], []
    factors = [contender.check_factors(k) for k in range(CHECK_STEPS)]
    for k in range(CHECK_STEPS):  # one by one, since the first compiles
        begin = time.perf_counter()
        eps = None if given is None else given[k : k + 1]
        contender.dropout = factors[k]
        losses.append(contender.steps(indices[k : k + 1], eps))
        gpu.synchronize(problem.device)
        seconds.append(time.perf_counter() - begin)
    contender.dropout = problem.shape.dropout
    plain: list[twin.Result] = []
    if problem.precision != "float32":
        stacked = PLAIN[contender.maths](problem, contender.threads, shared=True)
        plain.append((stacked.steps(indices, used), stacked.weights()))
        plain.append(twin.run(problem, contender.maths, indices, used, rounded=True))
    result = torch.cat(losses), contender.weights()
    key = contender.maths, given is None
    if key not in problem.wanted:
        run = continuous.run if problem.shape.timed else twin.run
        run = coupled.run if contender.maths in coupled.MATHS else run
        problem.wanted[key] = run(problem, contender.maths, indices, used, factors=factors)
    want = problem.wanted[key]
    if problem.shape.image is None:
        twin.check(problem, contender.maths, indices, used, *result, plain, want)
    else:
        check_blocks(contender, indices, used, result, want)
    return seconds


def check_blocks(
    contender: Contender, indices: Tensor, eps: Tensor, result: twin.Result, want: twin.Result
) -> None:
    """Raises unless most blocks are the twin's, and all are within 50 times the tolerance.

    Among millions of ReLUs and pools some are within a rounding of a tie. One moves a row's
    gradient, and with it its block, by more than rounding does: by 0.2 of the distance was seen.

    Raises:
        Mismatch: of the first block that differs.
    """
    problem, maths = contender.problem, contender.maths
    differ = []
    for t in range(problem.shape.T):
        block = slice(t, t + 1)
        mine, its = (
            (losses[:, block], {name: value[block] for name, value in weights.items()})
            for losses, weights in (result, want)
        )
        part = share(problem, block)
        try:
            twin.check(part, maths, indices, eps[:, block], *mine, want=its)
        except twin.Mismatch as error:
            differ.append(error)
        twin.check(part, maths, indices, eps[:, block], *mine, want=its, tolerance=50)
    if 2 * len(differ) >= problem.shape.T:
        raise differ[0]
