"""The optimizers that the kernels apply: torch.optim's names, defaults and formulas."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Optimizer:
    """What all of them share.

    Args:
        lr: learning rate, above or equal to 0.
        weight_decay: a number, or one per slice.
    """

    lr: float = 1e-3
    weight_decay: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(f"{name}: lr must be at least 0, got {self.lr}")
        decays = self.weight_decay
        if isinstance(decays, Sequence):
            object.__setattr__(self, "weight_decay", tuple(float(value) for value in decays))
        for value in decays if isinstance(decays, Sequence) else (decays,):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: weight_decay must be at least 0, got {value}")

    @property
    def moments(self) -> tuple[str, ...]:
        """The moments that each parameter keeps: "m", "v", both or none."""
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, torch.optim.SGD's formulas (dampening 0).

    Args:
        lr: learning rate.
        weight_decay: L2 penalty, a number or one per slice.
        momentum: factor of the momentum buffer, kept as "m"; 0 keeps none.
        nesterov: look ahead; needs a momentum above 0.

    Raises:
        ValueError: a number is out of range.
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.momentum) and self.momentum >= 0):
            raise ValueError(f"SGD: momentum must be at least 0, got {self.momentum}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD: nesterov needs a momentum above 0")

    @property
    def moments(self) -> tuple[str, ...]:
        return ("m",) if self.momentum > 0 else ()


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, torch.optim.Adam's formulas: weight_decay is an L2 penalty, part of the gradient.

    Args:
        lr: learning rate.
        weight_decay: L2 penalty, a number or one per slice.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, above 0.

    Raises:
        ValueError: a number is out of range.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"{name}: betas must be in [0, 1), got {self.betas}")
        if not self.eps > 0:
            raise ValueError(f"{name}: eps must be above 0, got {self.eps}")

    @property
    def moments(self) -> tuple[str, ...]:
        return ("m", "v")


@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW, torch.optim.AdamW's formulas and default: the decay is apart from the gradient.

    Args:
        lr: learning rate.
        weight_decay: decay of the weights by lr * weight_decay a step, a number or one per slice.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, above 0.

    Raises:
        ValueError: a number is out of range.
    """

    weight_decay: float | tuple[float, ...] = 1e-2
