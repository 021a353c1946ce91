"""What a block is trained for: the numbers of the one step that every variant shares.

    z      = signal * u_y + noise * eps + sigma * eps_1
    u_hat  = softmax(logits) @ W_embed  (head "softmax")   or   logits @ W_embed  (head "linear")
    target = u_y - flow * eps
    error  = |u_hat - target|^2                            (sum over D)
    loss   = sum over rows of weight * error / rows

With head "cross_entropy" the error of a row is -log softmax(logits)[y], which trains the output
head and the local baselines. Kernels see these numbers and know neither a schedule nor a variant.
"""

from dataclasses import dataclass

from torch import Tensor

from .check import LARGEST, check_number
from .schedule import NoiseSchedule


@dataclass(frozen=True)
class Numbers:
    """One step's numbers.

    Args:
        signal, noise, weight: float32, one per slice (n,), or one per slice and row (n, B).
        head: "softmax", "linear" or "cross_entropy".
        flow: 0, or 1 for the flow-matching target u_y - eps.
        sigma: standard deviation of flow matching's second noise eps_1.
    """

    signal: Tensor
    noise: Tensor
    weight: Tensor
    head: str = "softmax"
    flow: float = 0.0
    sigma: float = 0.0


@dataclass(frozen=True)
class DT:
    """NoProp-DT: block t denoises z_{t-1} ~ q(z_{t-1} | y) (arXiv:2503.24322v2, eq. 8).

    signal = sqrt(alpha_bar_{t-1}), noise = sqrt(1 - alpha_bar_{t-1}), and the weight of block t's
    squared error is (T / 2) eta (SNR(t) - SNR(t-1)).

    Args:
        schedule: the noise levels.
        eta: the paper's loss weight; under Adam and AdamW it hardly matters, since both divide it
            out.
    """

    schedule: NoiseSchedule
    eta: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, NoiseSchedule):
            got = type(self.schedule).__name__
            raise ValueError(f"DT: schedule must be a NoiseSchedule, got {got}")
        eta = check_number("DT", "eta", self.eta, "be above 0", lambda eta: 0 < eta <= LARGEST)
        object.__setattr__(self, "eta", eta)

    @property
    def T(self) -> int:
        return self.schedule.T

    def numbers(self, t: Tensor) -> Numbers:
        """Numbers of the blocks t (n,), int64 in 1..T."""
        schedule = self.schedule
        previous = schedule.alpha_bar[t - 1]
        weight = 0.5 * self.T * self.eta * (schedule.snr[t] - schedule.snr[t - 1])
        return Numbers(previous.sqrt().float(), (1 - previous).sqrt().float(), weight.float())
