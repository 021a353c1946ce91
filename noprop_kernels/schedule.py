"""Noise levels of NoProp-DT's T blocks; t = 0 is noise, t = T the label (the reverse of DDPM)."""

import math

import torch
from torch import Tensor

from .check import LARGEST, check_memory, check_number, check_positive

MOST_BLOCKS = 0xFFFD  # the last three of 16 bits are no block's: z_0, shared parts


def posterior(alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c of q(z_t | z_{t-1}, y) = N(a u_y + b z_{t-1}, c) between neighbouring levels (eq. 6).

    Args:
        alpha_bar: (T + 1,) float64, growing.

    Returns:
        Three of (T,).
    """
    previous, now = alpha_bar[:-1], alpha_bar[1:]
    alpha = previous / now  # the paper's alpha_{t-1}
    a = now.sqrt() * (1 - alpha) / (1 - previous)
    b = alpha.sqrt() * (1 - now) / (1 - previous)
    c = (1 - now) * (1 - alpha) / (1 - previous)
    return a, b, c


class NoiseSchedule:
    """Noise levels by the paper's t (arXiv:2503.24322v2, eqs. 5 and 6), all float64.

    Attributes:
        T: number of blocks.
        alpha_bar: (T + 1,), signal level ᾱ_t, growing with t.
        snr: (T + 1,), alpha_bar / (1 - alpha_bar).
        a, b, c: (T + 1,), coefficients of block t's step z_t = a u_hat + b z_{t-1} + sqrt(c) eps;
            slot 0 is NaN, since no block leads to z_0.

    Args:
        alpha_bar: (T + 1,), strictly increasing, in [0, 1). Indexed by the paper's t.

    Raises:
        ValueError: alpha_bar does not fit.
    """

    def __init__(self, alpha_bar: Tensor) -> None:
        check_memory("NoiseSchedule", "alpha_bar", alpha_bar)
        try:
            alpha_bar = torch.as_tensor(alpha_bar, dtype=torch.float64, device="cpu").clone()
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ValueError(f"NoiseSchedule: alpha_bar must be numbers, got {error}") from error
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2:
            raise ValueError(
                "NoiseSchedule: alpha_bar must have shape (T + 1,) with T at least 1, "
                f"got {tuple(alpha_bar.shape)}"
            )
        if len(alpha_bar) > MOST_BLOCKS + 1:
            raise ValueError(
                f"NoiseSchedule: T must be at most {MOST_BLOCKS}, the blocks that noise has "
                f"addresses for, got {len(alpha_bar) - 1}"
            )
        if not bool((alpha_bar.diff() > 0).all()):
            raise ValueError(
                "NoiseSchedule: alpha_bar must grow with t (DDPM counts the other way)"
            )
        if not (alpha_bar[0] >= 0 and alpha_bar[-1] < 1):
            raise ValueError(
                "NoiseSchedule: alpha_bar must lie in [0, 1), got "
                f"[{alpha_bar[0].item()}, {alpha_bar[-1].item()}]"
            )
        self.T = len(alpha_bar) - 1
        self.alpha_bar = alpha_bar
        self.snr = alpha_bar / (1 - alpha_bar)
        nan = alpha_bar.new_full((1,), math.nan)
        self.a, self.b, self.c = (torch.cat([nan, value]) for value in posterior(alpha_bar))

    @classmethod
    def cosine(cls, T: int = 10, s: float = 0.008) -> "NoiseSchedule":
        """The cosine schedule of T + 1 steps: alpha_bar_t = f((T + 1 - t) / (T + 1)) / f(0).

        f(u) = cos^2(pi/2 (u + s) / (1 + s)). The paper says only "fixed cosine"; this reading has
        T + 1 finite levels and alpha_bar_T < 1, so that no signal-to-noise ratio has to be clipped.
        """
        T = check_positive("NoiseSchedule.cosine", "T", T, MOST_BLOCKS)
        s = check_number(
            "NoiseSchedule.cosine", "s", s, "be at least 0", lambda s: 0 <= s <= LARGEST
        )
        u = torch.arange(T + 1, 0, -1, dtype=torch.float64, device="cpu") / (T + 1)
        f = torch.cos((u + s) / (1 + s) * (math.pi / 2)) ** 2
        alpha_bar = f / math.cos(s / (1 + s) * math.pi / 2) ** 2
        alpha_bar[0] = 0  # cos(pi/2) is exactly 0; floating point gives 4e-33
        return cls(alpha_bar)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoiseSchedule) and torch.equal(self.alpha_bar, other.alpha_bar)

    def __hash__(self) -> int:
        return hash(tuple(self.alpha_bar.tolist()))

    def __repr__(self) -> str:
        return f"NoiseSchedule(alpha_bar={[round(value, 4) for value in self.alpha_bar.tolist()]})"
