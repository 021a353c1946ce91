"""The optimizers that the kernels apply: torch.optim's names, defaults and formulas."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

from .check import LARGEST, SMALLEST, check_number


@dataclass(frozen=True)
class Optimizer:
    """The common part of the optimizers. Backends, files and messages read an optimizer as this
    data; its formulas are in each backend's one place.

    Args:
        lr: learning rate, above or equal to 0.
        weight_decay: a number, or one per slice.

    Attributes:
        kind: its name in OPTIMIZERS, in saved models and for the CPU kernels.
        torch_moments: torch.optim's names of "m" and "v".
        torch_options: what torch.optim's groups hold beside our fields, always with this value.
    """

    kind: ClassVar[str] = ""
    torch_moments: ClassVar[tuple[str, ...]] = ()
    torch_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    lr: float = 1e-3
    weight_decay: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        self._keep("lr", self.lr)
        if isinstance(self.weight_decay, Sequence) and not isinstance(self.weight_decay, str):
            decays = tuple(self._number("weight_decay", value) for value in self.weight_decay)
            object.__setattr__(self, "weight_decay", decays)
        else:
            self._keep("weight_decay", self.weight_decay)

    def _number(
        self,
        name: str,
        value: object,
        must: str = "be at least 0",
        fits: Callable[[float], bool] = lambda value: 0 <= value <= LARGEST,
    ) -> float:
        return check_number(type(self).__name__, name, value, must, fits)

    def _keep(self, name: str, *rule: Any) -> None:
        """Sets a field to its number, checked, in an object that is frozen."""
        object.__setattr__(self, name, self._number(name, *rule))

    @property
    def moments(self) -> tuple[str, ...]:
        """The moments that each parameter keeps: "m", "v", both or none."""
        raise NotImplementedError

    @property
    def formula(self) -> str:
        """The name by which the GPU kernels specialise on its formulas."""
        return self.kind.lower()

    def hyper(self) -> dict[str, Any]:
        """Its own hyperparameters: its fields beside lr and weight_decay."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("lr", "weight_decay")}


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

    kind = "SGD"
    torch_moments = ("momentum_buffer",)

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("momentum", self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ValueError("SGD: nesterov needs a momentum above 0")

    @property
    def moments(self) -> tuple[str, ...]:
        return ("m",) if self.momentum > 0 else ()

    @property
    def formula(self) -> str:
        if self.momentum == 0:
            return "sgd"
        return "nesterov" if self.nesterov else "momentum"


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

    kind = "Adam"
    torch_moments = ("exp_avg", "exp_avg_sq")
    torch_options = MappingProxyType({"decoupled_weight_decay": False})

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if not (isinstance(self.betas, Sequence) and len(self.betas) == 2):
            raise ValueError(f"{name}: betas must be two numbers, got {self.betas!r}")
        within = "be in [0, 1)", lambda beta: 0 <= beta < 1
        betas = tuple(self._number("betas", beta, *within) for beta in self.betas)
        object.__setattr__(self, "betas", betas)
        self._keep("eps", self.eps, "be above 0", lambda eps: SMALLEST <= eps <= LARGEST)

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

    kind = "AdamW"
    torch_options = MappingProxyType({"decoupled_weight_decay": True})

    weight_decay: float | tuple[float, ...] = 1e-2


OPTIMIZERS: dict[str, type[Optimizer]] = {each.kind: each for each in (SGD, Adam, AdamW)}
*_first, _last = OPTIMIZERS
NAMES = f"{', '.join(_first)} or {_last}"


def check_optimizer(op: str, value: object, place: str = "") -> Optimizer:
    """`value`, which must be of a class that the kernels know.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, Optimizer) or value.kind not in OPTIMIZERS:
        got = type(value).__name__
        raise ValueError(f"{op}: optimizer must be {NAMES}{place}, got {got}")
    return value
