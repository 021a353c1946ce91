"""The goal of a block's training: the levels of the one step that every variant shares.

    z      = signal * u_y + noise * eps + sigma * eps_1
    u_hat  = softmax(logits) @ W_embed  (head "softmax")   or   logits @ W_embed  (head "linear")
    target = u_y - flow * eps
    error  = |u_hat - target|^2                            (sum over D)
    loss   = sum over rows of weight * error / rows

With head "cross_entropy" the error of a row is -log softmax(logits)[y], which trains the output
head and the local baselines. With head "radial" it is -log softmax(r)[y] of the distances
r_m = -|u_hat - u_m|^2 / (2 radius^2), where u_hat is that of "softmax". Kernels see these numbers
and know neither a schedule nor a variant.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from .check import LARGEST, check_number
from .samplers import Table, ancestral
from .schedule import NoiseSchedule


@dataclass(frozen=True)
class Levels:
    """The levels of a step, float32.

    Args:
        signal, noise: of z, one per slice (n,), or one per step, slice and row (K, n, B).
        weight: of the error, likewise.
    """

    signal: Tensor
    noise: Tensor
    weight: Tensor


class StepGoal(Protocol):
    """The goal of a step; every call asks it for the levels.

    Attributes:
        head: "softmax", "linear", "cross_entropy" or "radial".
        flow: 0, or 1 for the flow-matching target u_y - eps.
        sigma: standard deviation of flow matching's second noise eps_1.
        radius: of head "radial", else 0.
        timed: whether a step draws a t in [0, 1] for each row, which is then the plan's input "t".
        stratified: whether these t are drawn from equal parts of [0, 1], one for each row.
    """

    @property
    def head(self) -> str: ...

    @property
    def flow(self) -> float: ...

    @property
    def sigma(self) -> float: ...

    @property
    def radius(self) -> float: ...

    @property
    def timed(self) -> bool: ...

    @property
    def stratified(self) -> bool: ...

    def levels(self, t: Tensor) -> Levels:
        """The levels at t, int64 in 1..T (n,), or where it is timed float64 in [0, 1] (K, n, B)."""
        ...


@runtime_checkable
class Goal(StepGoal, Protocol):
    """A variant of NoProp: T blocks, the goal of each, and how they predict.

    Attributes:
        samplers: the kinds that `table` knows, the default with noise first.
        steps: of a sampler by default.
    """

    @property
    def T(self) -> int: ...

    @property
    def samplers(self) -> tuple[str, ...]: ...

    @property
    def steps(self) -> int: ...

    def last(self) -> Levels:
        """The levels of the last z, without dimensions, and a weight of 1."""
        ...

    def prior(self, u_squared: Tensor, D: int) -> Tensor:
        """KL(q(z_0 | y) || N(0, I)) for embeddings of width D, averaged over labels.

        Args:
            u_squared: (), or (R,), the mean of |u_y|^2 over the labels, float64.
        """
        ...

    def table(self, sampler: str, steps: int) -> Table:
        """The evaluations from z_0 to the last z."""
        ...


def divergence(alpha_bar: Tensor, log_rest: Tensor, u_squared: Tensor, D: int) -> Tensor:
    """KL(N(sqrt(alpha_bar) u, (1 - alpha_bar) I) || N(0, I)), log_rest = log(1 - alpha_bar).

    1/2 (alpha_bar |u|^2 - D alpha_bar - D log(1 - alpha_bar)); its gradient in u is alpha_bar u.
    """
    return 0.5 * (alpha_bar * u_squared - D * alpha_bar - D * log_rest)


def check_goal(op: str, goal: object) -> None:
    """Raises ValueError where `goal` is not a goal."""
    if not isinstance(goal, Goal) or isinstance(goal, type):
        raise ValueError(f"{op}: goal must be a DT, CT or FM, got {type(goal).__name__}")


@dataclass(frozen=True)
class DT:
    """NoProp-DT: block t denoises z_{t-1} ~ q(z_{t-1} | y) (arXiv:2503.24322v2, eq. 8).

    signal = sqrt(alpha_bar_{t-1}), noise = sqrt(1 - alpha_bar_{t-1}), and the weight of block t's
    squared error is (T / 2) eta (SNR(t) - SNR(t-1)).

    Args:
        schedule: the noise levels.
        eta: the paper's loss weight; with Adam and AdamW it has almost no effect, since both divide
            it out.
    """

    schedule: NoiseSchedule
    eta: float = 0.1

    head: str = field(default="softmax", init=False, repr=False, compare=False)
    flow: float = field(default=0.0, init=False, repr=False, compare=False)
    sigma: float = field(default=0.0, init=False, repr=False, compare=False)
    radius: float = field(default=0.0, init=False, repr=False, compare=False)
    timed: bool = field(default=False, init=False, repr=False, compare=False)
    stratified: bool = field(default=False, init=False, repr=False, compare=False)
    samplers: tuple[str, ...] = field(default=("ancestral",), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, NoiseSchedule):
            got = type(self.schedule).__name__
            raise ValueError(f"DT: schedule must be a NoiseSchedule, got {got}")
        eta = check_number("DT", "eta", self.eta, "be above 0", lambda eta: 0 < eta <= LARGEST)
        object.__setattr__(self, "eta", eta)

    @property
    def T(self) -> int:
        return self.schedule.T

    @property
    def steps(self) -> int:
        return self.T

    def levels(self, t: Tensor) -> Levels:
        """The levels of the blocks t, int64 in 1..T."""
        schedule = self.schedule
        previous = schedule.alpha_bar[t - 1]
        weight = 0.5 * self.T * self.eta * (schedule.snr[t] - schedule.snr[t - 1])
        return Levels(previous.sqrt().float(), (1 - previous).sqrt().float(), weight.float())

    def last(self) -> Levels:
        """The levels of z_T ~ q(z_T | y)."""
        last = self.schedule.alpha_bar[-1]
        return Levels(last.sqrt().float(), (1 - last).sqrt().float(), torch.ones_like(last).float())

    def prior(self, u_squared: Tensor, D: int) -> Tensor:
        """KL(q(z_0 | y) || N(0, I)), averaged over labels of this mean |u_y|^2."""
        first = self.schedule.alpha_bar[0].to(u_squared.device)
        return divergence(first, torch.log1p(-first), u_squared, D)

    def table(self, sampler: str, steps: int) -> Table:
        """The chain's steps (eq. 3), one a block.

        Raises:
            ValueError: steps is not T.
        """
        if steps != self.T:
            raise ValueError(f"predict: steps must be the {self.T} blocks, got {steps}")
        return ancestral(self.schedule.alpha_bar)


@dataclass(frozen=True)
class LastLevel:
    """The goal of an output head: the class, read from z_T ~ q(z_T | y) (eq. 8's first term).

    Args:
        of: the variant.
        head: "cross_entropy", or "radial" with its radius.
    """

    of: Goal
    head: str = "cross_entropy"
    radius: float = 0.0
    flow: float = field(default=0.0, init=False, repr=False, compare=False)
    sigma: float = field(default=0.0, init=False, repr=False, compare=False)
    timed: bool = field(default=False, init=False, repr=False, compare=False)
    stratified: bool = field(default=False, init=False, repr=False, compare=False)

    def levels(self, t: Tensor) -> Levels:
        """The levels of z_T, whatever t."""
        last = self.of.last()
        return Levels(*(value.expand(t.shape) for value in (last.signal, last.noise, last.weight)))
