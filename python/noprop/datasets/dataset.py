"""A data set in memory: flattened rows and labels, for training and for the one test at the end."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Dataset:
    """Rows and labels.

    Args:
        name: what the data are called.
        x, x_test: (rows, F) uint8 or float32, contiguous, channel-major.
        y, y_test: (rows,) int64 in 0..classes - 1.
        classes: number of classes.
        channels: the F features are this many equal runs, each with one mean and deviation.

    Raises:
        InputError: sizes do not fit, a label is out of range, or x is not finite.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    channels: int = 1

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.x, self.y), ("test", self.x_test, self.y_test)):
            if len(x) != len(y) or len(x) == 0:
                raise InputError(f"{self.name}: {len(x)} {part} rows with {len(y)} labels")
            if int(y.min()) < 0 or int(y.max()) >= self.classes:
                raise InputError(
                    f"{self.name}: {part} labels must be in 0..{self.classes - 1}, got "
                    f"{int(y.min())}..{int(y.max())}"
                )
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise InputError(f"{self.name}: {part} rows must be finite")
        if self.x.shape[1] != self.x_test.shape[1] or self.x.dtype != self.x_test.dtype:
            raise InputError(
                f"{self.name}: training rows have {self.x.shape[1]} features ({self.x.dtype}), "
                f"test rows {self.x_test.shape[1]} ({self.x_test.dtype})"
            )

    @property
    def features(self) -> int:
        return self.x.shape[1]

    def fingerprint(self) -> str:
        """SHA-256 of the training rows and labels: a run goes on with its own data."""
        digest = hashlib.sha256(f"{tuple(self.x.shape)} {self.x.dtype}".encode())
        digest.update(self.x.numpy().data)
        digest.update(self.y.numpy().data)
        return digest.hexdigest()


def statistics(x: Tensor, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, where uint8 counts as x / 255.

    Args:
        x: (rows, F) uint8 or float32; F a multiple of `channels`.

    Returns:
        mean, std: (channels,) float32; std is 1 where a channel is constant.
    """
    runs = x.reshape(len(x), channels, -1)
    if x.dtype == torch.uint8:
        # 256 counts hold all that the moments need, and spare a floating-point copy
        value = torch.arange(256, dtype=torch.float64, device=x.device) / 255
        counts = torch.stack(
            [torch.bincount(runs[:, c].flatten(), minlength=256) for c in range(channels)]
        ).double()  # (channels, 256)
        rows = counts.sum(1, keepdim=True)
        mean = (counts * value).sum(1, keepdim=True) / rows
        std = ((counts * (value - mean) ** 2).sum(1, keepdim=True) / rows).sqrt()
        mean, std = mean[:, 0], std[:, 0]
    else:
        std, mean = torch.std_mean(runs.double(), dim=(0, 2), correction=0)
    std = torch.where(std > 0, std, 1.0)
    return mean.float(), std.float()
