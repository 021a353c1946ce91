"""Features are (x - mean) * scale, with scale = 1 / std: the only place with this formula.

Numbers are normalised in float64 and rounded once to float32, so that a clock of 1.7e9 seconds
keeps differences of one second. Bytes count as x / 255 and go through the kernels' two float32
operations: training gathers bytes inside the kernels, and prediction must give the same bits.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noprop_kernels.arguments.batches import mean_and_scale, per_feature

from .errors import InputError

NUMBERS_AT_ONCE = 1 << 20  # a float64 copy of 8 MB
LEAST_STD = 2.0**-126  # the least whose inverse float32 can hold
ULPS = 2.0**-50  # a smaller part of the mean is float64's rounding noise


class Normalisation(NamedTuple):
    """Mean and deviation of x, where x is `channels` equal runs of features.

    A tuple, as `train_steps` takes it for its `normalize`.

    Attributes:
        mean, std: (channels,) float64; std is 1 where a channel is constant.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, pair: Any) -> "Normalisation":
        """From any pair (mean, std), or from None, which leaves numbers as they are."""
        mean, std = (0.0, 1.0) if pair is None else pair
        made = (torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in (mean, std))
        return cls(*(value.flatten() for value in made))

    def apply(self, x: Tensor) -> Tensor:
        """The features of rows.

        Args:
            x: (B, F) uint8, counted as x / 255, or any other numbers, counted as they are.

        Returns:
            (B, F) float32, where x is.
        """
        mean, scale = (v.to(x.device) for v in self.mean_and_scale(x.dtype, x.shape[1]))
        if x.dtype == torch.uint8:
            return x.float().sub_(mean).mul_(scale)
        features = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        for rows, part in zip(_parts(features), _parts(x), strict=True):
            rows.copy_((part.double() - mean).mul_(scale))
        return features

    def mean_and_scale(self, dtype: torch.dtype, F: int) -> tuple[Tensor, Tensor]:
        """mean and 1 / std of x, (F,) each: float32 in units of bytes, or float64 for numbers."""
        if dtype == torch.uint8:
            mean, scale = mean_and_scale(
                "normalise", self, torch.empty(0, F, dtype=dtype, device="cpu")
            )
            assert mean is not None and scale is not None
            return mean, scale
        mean, std = (per_feature("normalise", value, F) for value in self)
        return mean, torch.where((1 / std).isfinite(), 1 / std, 0.0)

    def to_json(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Normalisation":
        """
        Raises:
            InputError: it is no record of a mean and a deviation.
        """
        try:
            made = cls.of((record["mean"], record["std"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"a saved normalisation must have mean and std: {error}") from error
        right = made.mean.isfinite().all() and made.std.isfinite().all() and (made.std > 0).all()
        if len(made.mean) != len(made.std) or len(made.mean) == 0 or not right:
            raise InputError("a saved normalisation must have finite means, and deviations above 0")
        return made


class Moments:
    """Mean and deviation of each channel, gathered from parts of the rows, in one pass.

    Bytes are counted, which without weights is exact; numbers are merged as (rows, mean, sum of
    squares) in float64, by the formula of Chan, Golub and LeVeque. A weighted row counts as so many
    rows.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.rows = 0.0
        self.counts = torch.zeros(channels, 256, dtype=torch.float64, device="cpu")
        self.mean = self.squares = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self.low = torch.full((channels,), torch.inf, dtype=torch.float64, device="cpu")
        self.high = -self.low

    def add(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Adds rows (B, F), uint8 or other finite numbers, of one kind in all calls; weight (B,)
        float64, where x is.
        """
        if weight is not None:
            x, weight = x[weight > 0], weight[weight > 0]
        if len(x) == 0:
            return
        first = 0
        for part in _parts(x):
            w = None if weight is None else weight[first : first + len(part)]
            first += len(part)
            count = float(len(part)) if w is None else w.sum().item()
            runs = part.reshape(len(part), self.channels, -1)
            if x.dtype == torch.uint8:
                each = None if w is None else w[:, None].expand(-1, runs.shape[2]).flatten()
                for c in range(self.channels):
                    counts = torch.bincount(runs[:, c].flatten(), each, minlength=256)
                    self.counts[c] += counts.cpu()
            else:
                self._merge(runs.double(), w, count)
            self.rows += count

    def _merge(self, runs: Tensor, w: Tensor | None, count: float) -> None:
        """Runs (B, channels, run) float64 of weights w (B,), whose sum is `count`."""
        if w is None:
            mean = runs.mean((0, 2)).cpu()
        else:
            w = w[:, None, None]
            mean = (runs * w).sum((0, 2)).cpu() / (count * runs.shape[2])
        apart = (runs - mean.to(runs.device)[:, None]).square_()
        squares = (apart if w is None else apart * w).sum((0, 2)).cpu()
        share = count / (self.rows + count)
        apart = mean - self.mean
        between = apart**2 * (self.rows * share * runs.shape[2])
        self.mean, self.squares = self.mean + apart * share, self.squares + squares + between
        self.low = torch.minimum(self.low, runs.amin((0, 2)).cpu())
        self.high = torch.maximum(self.high, runs.amax((0, 2)).cpu())
        self.run = runs.shape[2]

    def result(self) -> Normalisation:
        """
        Raises:
            InputError: a channel's numbers are too large to be squared.
        """
        if self.counts.any():
            # the moments follow from the counts
            value, counts = (
                torch.arange(256, dtype=torch.float64, device="cpu") / 255,
                self.counts.double(),
            )
            total = counts.sum(1, keepdim=True)
            mean = (counts * value).sum(1, keepdim=True) / total
            std = ((counts * (value - mean) ** 2).sum(1, keepdim=True) / total).sqrt()
            mean, std = mean[:, 0], std[:, 0]
        else:
            # the mean of a channel with one value is exactly that value
            mean = torch.where(self.low == self.high, self.low, self.mean)
            std = (self.squares / (self.rows * self.run)).sqrt()
        if not bool((mean.isfinite() & std.isfinite()).all()):
            channel = int((~(mean.isfinite() & std.isfinite())).nonzero()[0])
            raise InputError(f"column {channel} of x is too large to be normalised: divide it")
        constant = ~((std > LEAST_STD) & (std > ULPS * mean.abs()))
        return Normalisation(mean, torch.where(constant, 1.0, std))


def statistics(x: Tensor, channels: int = 1) -> Normalisation:
    """Mean and deviation of each channel, where uint8 counts as x / 255.

    Args:
        x: (rows, F) uint8 or other numbers; F a multiple of `channels`. No copy of it is made.
    """
    moments = Moments(channels)
    moments.add(x)
    return moments.result()


def rows_at_once(features: int) -> int:
    """Number of rows copied to float64 at a time; means are summed in parts of this size."""
    return max(1, NUMBERS_AT_ONCE // max(1, features))


def _parts(x: Tensor) -> Iterator[Tensor]:
    return iter(x.split(rows_at_once(x.shape[1])))
