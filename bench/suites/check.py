"""Checks a contender's first steps against the twin's."""

import time

import torch

from ..contenders.contender import Contender
from ..contenders.rivals.stacked import Stacked, StackedSGD
from ..machine import gpu
from ..problem import twin

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
        problem.wanted[key] = twin.run(problem, contender.maths, indices, used, factors=factors)
    want = problem.wanted[key]
    twin.check(problem, contender.maths, indices, used, *result, plain, want)
    return seconds
