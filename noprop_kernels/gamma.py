"""Noise levels of continuous time: gamma(t) = -log SNR(t) falls from t = 0, noise, to t = 1."""

import torch
from torch import Tensor

from .check import LARGEST, check_memory, check_number


class Gamma:
    """gamma(t), piecewise linear between values at evenly spaced t, and its slope.

    SNR(t) = exp(-gamma(t)) and alpha_bar_t = sigmoid(-gamma(t)) (arXiv:2503.24322v2, appendix B).

    Attributes:
        values: (P,) float64, gamma at t = 0, 1 / (P - 1), ..., 1.

    Args:
        values: (P,), P at least 2, strictly falling.

    Raises:
        ValueError: values do not fit.
    """

    def __init__(self, values: Tensor) -> None:
        check_memory("Gamma", "values", values)
        try:
            values = torch.as_tensor(values, dtype=torch.float64, device="cpu").clone()
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"Gamma: values must be numbers, got {error}") from error
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(
                f"Gamma: values must have shape (P,) with P at least 2, got {tuple(values.shape)}"
            )
        if not bool(values.isfinite().all()) or not bool((values.diff() < 0).all()):
            raise ValueError(
                "Gamma: values must be finite and fall with t, from the noise's end to the label's"
            )
        self.values = values

    @classmethod
    def linear(cls, gamma_0: float = -3.0, gamma_1: float = 6.0) -> "Gamma":
        """gamma(t) = gamma_0 + (gamma_1 - gamma_0) (1 - t).

        Args:
            gamma_0: at the label's end, t = 1; -3 is SNR(1) = 20.1, alpha_bar_1 = .953.
            gamma_1: at the noise's end, t = 0; 6 is alpha_bar_0 = .0025.
        """
        rule = "be a finite number", lambda value: abs(value) <= LARGEST
        gamma_0 = check_number("Gamma.linear", "gamma_0", gamma_0, *rule)
        gamma_1 = check_number("Gamma.linear", "gamma_1", gamma_1, *rule)
        if gamma_1 <= gamma_0:
            raise ValueError(
                f"Gamma.linear: gamma_1 must be above gamma_0, got {gamma_1} and {gamma_0}"
            )
        return cls(torch.tensor([gamma_1, gamma_0], dtype=torch.float64, device="cpu"))

    def __call__(self, t: Tensor) -> Tensor:
        """gamma at t in [0, 1], float64 of any shape."""
        values = self.values.to(t.device)
        left, rest = self._segment(t)
        return torch.lerp(values[left], values[left + 1], rest)

    def slope(self, t: Tensor) -> Tensor:
        """gamma'(t), below 0; at a corner that of the segment to its right."""
        return self.with_slope(t)[1]

    def with_slope(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """gamma(t) and gamma'(t)."""
        values = self.values.to(t.device)
        left, rest = self._segment(t)
        slopes = values.diff() * (len(values) - 1)
        return torch.lerp(values[left], values[left + 1], rest), slopes[left]

    def ends(self) -> tuple[Tensor, Tensor]:
        """gamma(0) and gamma(1), without dimensions."""
        return self.values[0], self.values[-1]

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The segment of each t, and t's place in it, in [0, 1]."""
        segments = len(self.values) - 1
        at = t.double() * segments
        left = at.floor().long().clamp(0, segments - 1)
        return left, at - left

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Gamma) and torch.equal(self.values, other.values)

    def __hash__(self) -> int:
        return hash(tuple(self.values.tolist()))

    def __repr__(self) -> str:
        return f"Gamma({[round(value, 4) for value in self.values.tolist()]})"
