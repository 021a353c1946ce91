"""A rule's optimizer as kernels take it: its name and its numbers."""

import math

from ...optimizers import SGD, Adam, AdamW, Optimizer
from ..calls import Rule


def rule_name(rule: Rule | None) -> str:
    return "none" if rule is None else optimizer_name(rule.optimizer)


def optimizer_name(optimizer: Optimizer) -> str:
    if isinstance(optimizer, SGD):
        momentum = "nesterov" if optimizer.nesterov else "momentum"
        return momentum if optimizer.momentum else "sgd"
    assert isinstance(optimizer, Adam)  # the caller refuses what is none of ours
    return "adamw" if isinstance(optimizer, AdamW) else "adam"


def hyper(rule: Rule | None) -> tuple[float, ...]:
    """The optimizer's own numbers, formed in float64."""
    optimizer = rule.optimizer if rule is not None else None
    if isinstance(optimizer, SGD):
        return (optimizer.momentum,)
    if isinstance(optimizer, Adam):
        beta_1, beta_2 = optimizer.betas
        return 1 - beta_1, beta_2, 1 - beta_2, optimizer.eps
    return (0.0,)


def log_betas(rule: Rule | None) -> tuple[float, float]:
    """ln beta; of a beta of 0 what gives exp(ln beta) = 0."""
    optimizer = rule.optimizer if rule is not None else None
    betas = optimizer.betas if isinstance(optimizer, Adam) else (0.0, 0.0)
    first, second = (math.log(beta) if beta > 0 else -1e4 for beta in betas)
    return first, second
