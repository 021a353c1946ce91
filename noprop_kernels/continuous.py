"""NoProp-CT and NoProp-FM: one block for all t in [0, 1], t = 0 noise, t = 1 the label."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .check import LARGEST, check_memory, check_number
from .gamma import Gamma
from .gamma_network import GammaNetwork, LearnedGamma
from .goal import Levels, divergence
from .samplers import STAGES, Table, ancestral, ddim, integrate, points

WEIGHTS = ("snr", "uniform", "min-snr")
Weight = str | tuple[str, float]


@dataclass(frozen=True)
class CT:
    """NoProp-CT: one block denoises z_t ~ q(z_t | y) at every t (arXiv:2503.24322v2, eq. 9).

    signal = sqrt(alpha_bar_t), noise = sqrt(1 - alpha_bar_t), alpha_bar_t = sigmoid(-gamma(t)), and
    the weight of the squared error is (eta / 2) SNR'(t), with SNR'(t) = -gamma'(t) exp(-gamma(t)).
    The block's plan has an input "t", the embedding of t.

    One Adam trains all t, so that weights matter: SNR'(t) lies almost wholly near t = 1, where z_t
    shows the label, and little of it where the block must read x.

    Args:
        schedule: gamma(t), a Gamma; or a GammaNetwork, which a Shared learns.
        eta: the paper's loss weight.
        weight: "snr", the paper's; "uniform", eta / 2 at every t; or ("min-snr", k), (eta / 2)
            min(SNR(t), k) (Hang et al., arXiv:2303.09556, for predictions of the data).
        stratified: whether row b of a batch of B has its t in [b / B, (b + 1) / B) in place of
            [0, 1).
    """

    schedule: Gamma | GammaNetwork | LearnedGamma = field(default_factory=Gamma.linear)
    eta: float = 1.0
    weight: Weight = "snr"
    stratified: bool = False

    T: int = field(default=1, init=False, repr=False, compare=False)
    head: str = field(default="softmax", init=False, repr=False, compare=False)
    flow: float = field(default=0.0, init=False, repr=False, compare=False)
    sigma: float = field(default=0.0, init=False, repr=False, compare=False)
    radius: float = field(default=0.0, init=False, repr=False, compare=False)
    timed: bool = field(default=True, init=False, repr=False, compare=False)
    steps: int = field(default=1000, init=False, repr=False, compare=False)
    samplers: tuple[str, ...] = field(
        default=("ancestral", "ddim", *STAGES), init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Gamma | GammaNetwork | LearnedGamma):
            got = type(self.schedule).__name__
            raise ValueError(f"CT: schedule must be a Gamma or a GammaNetwork, got {got}")
        eta = check_number("CT", "eta", self.eta, "be above 0", lambda eta: 0 < eta <= LARGEST)
        object.__setattr__(self, "eta", eta)
        object.__setattr__(self, "weight", check_weight(self.weight))
        check_flag("CT", self.stratified)

    @property
    def gamma(self) -> Gamma | LearnedGamma:
        """The schedule, which must have its values.

        Raises:
            ValueError: it is a GammaNetwork, whose values a Shared has.
        """
        if isinstance(self.schedule, GammaNetwork):
            raise ValueError(
                "CT: schedule must have values here, got a GammaNetwork, whose values are a "
                "Shared's: shared.present_goal() has them"
            )
        return self.schedule

    def alpha_bar(self, t: Tensor) -> Tensor:
        """sigmoid(-gamma(t)), float64."""
        return torch.sigmoid(-self.gamma(t))

    def levels(self, t: Tensor) -> Levels:
        """The levels at t, float64 in [0, 1] of any shape; (K, R, B) for R learned schedules."""
        check_t(t)
        if self.weight == "snr":
            gamma, slope = self.gamma.with_slope(t)
            weight = -slope * torch.exp(-gamma)
            return self._levels(gamma, weight)
        gamma = self.gamma(t)
        if self.weight == "uniform":
            weight = torch.ones_like(gamma)
        else:
            weight = torch.exp(-gamma).clamp_max(float(self.weight[1]))
        return self._levels(gamma, weight)

    def _levels(self, gamma: Tensor, weight: Tensor) -> Levels:
        return Levels(
            torch.sigmoid(-gamma).sqrt().float(),
            torch.sigmoid(gamma).sqrt().float(),
            (0.5 * self.eta * weight).float(),
        )

    def last(self) -> Levels:
        """The levels of z_1 ~ q(z_1 | y); (R,) each for R learned schedules."""
        _, gamma = self.gamma.ends()
        signal, noise = torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()
        return Levels(signal.float(), noise.float(), torch.ones_like(gamma).float())

    def prior(self, u_squared: Tensor, D: int) -> Tensor:
        """KL(q(z_0 | y) || N(0, I)), averaged over labels of this mean |u_y|^2."""
        gamma, _ = self.gamma.ends()
        return divergence(torch.sigmoid(-gamma), logsigmoid(gamma), u_squared, D)

    def table(self, sampler: str, steps: int) -> Table:
        """The evaluations of a sampler.

        "ancestral" is eq. 3 between neighbouring t, "ddim" its deterministic form; "euler", "heun"
        and "rk4" integrate dz/dt = -gamma'(t) / 2 (sqrt(alpha_bar_t) u_hat - alpha_bar_t z), the
        flow with the same marginals.
        """
        if sampler == "ancestral":
            return ancestral(self.alpha_bar(points(steps)))
        if sampler == "ddim":
            return ddim(self.alpha_bar(points(steps)))
        return integrate(sampler, steps, self._drift)

    def _drift(self, t: Tensor) -> tuple[Tensor, Tensor]:
        gamma, slope = self.gamma.with_slope(t)
        speed, alpha_bar = -0.5 * slope, torch.sigmoid(-gamma)
        return speed * alpha_bar.sqrt(), -speed * alpha_bar


@dataclass(frozen=True)
class FM:
    """NoProp-FM: one block predicts the velocity from noise to label (arXiv:2503.24322v2, eq. 12).

    z_t = t u_y + (1 - t) z_0 + sigma eps_1 with z_0 ~ N(0, I); v_hat = logits @ W_embed, whose
    target is u_y - z_0; every t has the weight 1. A class is read by the nearest embedding, so that
    fixed embeddings need no output head. The block's plan has an input "t", the embedding of t.

    Args:
        sigma: standard deviation of the noise around the path.
        stratified: as of CT.
    """

    sigma: float = 0.0
    stratified: bool = False

    T: int = field(default=1, init=False, repr=False, compare=False)
    head: str = field(default="linear", init=False, repr=False, compare=False)
    flow: float = field(default=1.0, init=False, repr=False, compare=False)
    radius: float = field(default=0.0, init=False, repr=False, compare=False)
    timed: bool = field(default=True, init=False, repr=False, compare=False)
    steps: int = field(default=1000, init=False, repr=False, compare=False)
    samplers: tuple[str, ...] = field(default=tuple(STAGES), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rule = "be at least 0", lambda sigma: 0 <= sigma <= LARGEST
        object.__setattr__(self, "sigma", check_number("FM", "sigma", self.sigma, *rule))
        check_flag("FM", self.stratified)

    def levels(self, t: Tensor) -> Levels:
        """The levels at t, float64 in [0, 1] of any shape."""
        check_t(t)
        return Levels(t.float(), (1 - t).float(), torch.ones_like(t).float())

    def last(self) -> Levels:
        """The levels of z_1 = u_y."""
        one = torch.ones((), dtype=torch.float32, device="cpu")
        return Levels(one, torch.zeros_like(one), one)

    def prior(self, u_squared: Tensor, D: int) -> Tensor:
        """0: z_0 is drawn from N(0, I) itself."""
        return torch.zeros_like(u_squared)

    def table(self, sampler: str, steps: int) -> Table:
        """The evaluations that integrate dz/dt = v_hat from t = 0 to 1."""
        return integrate(sampler, steps, lambda t: (torch.ones_like(t), torch.zeros_like(t)))


def check_weight(weight: object) -> Weight:
    if isinstance(weight, str) and weight in WEIGHTS[:2]:
        return weight
    if isinstance(weight, Sequence) and len(weight) == 2 and weight[0] == WEIGHTS[2]:
        rule = "be above 0", lambda k: 0 < k <= LARGEST
        return WEIGHTS[2], check_number("CT", "weight's k", weight[1], *rule)
    raise ValueError(f'CT: weight must be "snr", "uniform" or ("min-snr", k), got {weight!r}')


def check_flag(op: str, stratified: object) -> None:
    if not isinstance(stratified, bool):
        raise ValueError(f"{op}: stratified must be true or false, got {stratified!r}")


def check_t(t: object) -> None:
    """
    Raises:
        ValueError: it holds no real numbers.
    """
    if not (isinstance(t, Tensor) and t.is_floating_point()):
        got = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise ValueError(f"levels: t must be a tensor of floats, got {got}")
    check_memory("levels", "t", t)
