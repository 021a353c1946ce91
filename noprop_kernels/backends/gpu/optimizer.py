"""A rule's optimizer as kernels take it: the name of its formulas, and its numbers."""

import math
from functools import lru_cache
from typing import NamedTuple

from ...optimizers import Optimizer
from ..calls import Rule


class Hyper(NamedTuple):
    """An optimizer's numbers, formed in float64; 0 stands for those that it has none of."""

    momentum: float
    one_less_beta_1: float
    beta_2: float
    one_less_beta_2: float
    eps: float
    log_beta_1: float
    log_beta_2: float


def formula_of(rule: Rule | None) -> str:
    return "none" if rule is None else rule.optimizer.formula


def hyper_of(rule: Rule | None) -> Hyper:
    return _hyper_of(None if rule is None else rule.optimizer)


@lru_cache(maxsize=64)
def _hyper_of(optimizer: Optimizer | None) -> Hyper:
    own = {} if optimizer is None else optimizer.hyper()
    beta_1, beta_2 = own.get("betas", (0.0, 0.0))
    # of a beta of 0 what gives exp(ln beta) = 0
    log_1, log_2 = (math.log(beta) if beta > 0 else -1e4 for beta in (beta_1, beta_2))
    momentum, eps = own.get("momentum", 0.0), own.get("eps", 0.0)
    return Hyper(momentum, 1 - beta_1, beta_2, 1 - beta_2, eps, log_1, log_2)
