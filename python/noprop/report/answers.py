"""Answers for labelled rows: which classes are confused, and what probabilities are worth."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..calibration import Bin, bins_of, calibration_error
from ..model import Model


@dataclass(frozen=True)
class Answers:
    """Answers and labels of B rows of M classes.

    Attributes:
        y: (B,) int64, the true classes.
        labels: (B,) int64, the answered ones.
        probs: (B, M) float64.
    """

    y: Tensor
    labels: Tensor
    probs: Tensor

    @classmethod
    def of(cls, model: Model, x: Any, y: Tensor) -> "Answers":
        """Those of a model of one replica."""
        answer = model.predict(x)
        return cls(y.cpu(), answer.labels.cpu(), answer.probs.double().cpu())

    @property
    def right(self) -> Tensor:
        """(B,) bool."""
        return self.labels == self.y

    @property
    def accuracy(self) -> float:
        return self.right.double().mean().item()

    @cached_property
    def confusion(self) -> Tensor:
        """(M, M) int64: rows of a true class (first axis) by the answered one."""
        M = self.probs.shape[1]
        return torch.bincount(self.y * M + self.labels, minlength=M * M).view(M, M)

    def confused(self, most: int) -> list[tuple[int, int, int, int]]:
        """(true, answered, rows, all rows of the true class) of the commonest wrong answers."""
        counts = self.confusion.clone().fill_diagonal_(0)
        M, of_class = len(counts), self.confusion.sum(1)
        order = counts.flatten().sort(descending=True, stable=True).indices[:most].tolist()
        return [
            (at // M, at % M, int(counts.flatten()[at]), int(of_class[at // M]))
            for at in order
            if counts.flatten()[at] > 0
        ]

    def worst(self, most: int) -> list[int]:
        """The rows of the wrong answers of the highest probability."""
        wrong = self.confidence.where(~self.right, -1)
        order = wrong.sort(descending=True, stable=True).indices[:most]
        return order[~self.right[order]].tolist()

    # what the probabilities are worth

    @cached_property
    def confidence(self) -> Tensor:
        """(B,): the probability of the answered class."""
        return self.probs.gather(1, self.labels[:, None])[:, 0]

    @cached_property
    def bins(self) -> list[Bin]:
        """The reliability diagram."""
        return bins_of(self.confidence, self.right)

    @property
    def calibration_error(self) -> float:
        """The expected one."""
        return calibration_error(self.bins)

    @property
    def log_loss(self) -> float:
        """The mean of -log p of the true class, in nats, p at least float32's epsilon."""
        p = self.probs.gather(1, self.y[:, None])
        return -p.clamp(min=torch.finfo(torch.float32).eps).log().mean().item()

    @property
    def brier_score(self) -> float:
        """The mean of the squared distance of the probabilities to the true class' 1 and 0."""
        own = self.probs.gather(1, self.y[:, None])[:, 0]
        return (self.probs.square().sum(1) - 2 * own + 1).mean().item()
