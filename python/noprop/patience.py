"""Early stopping: accuracy on rows held out, and the weights of the best epoch."""

import copy
from typing import Any

import numpy as np

from .estimator_rows import Rows
from .model import Model
from .probabilities import probabilities


class Patience:
    """Ends a training where accuracy on rows held out no longer grows.

    Args:
        held: the rows held out.
        epochs: so many in a row without a gain of more than `tol` end it.
        tol: that gain.

    Attributes:
        scores: the accuracy after each epoch.
        best: the highest.
        over: whether the training is to end.
    """

    def __init__(self, held: Rows, epochs: int, tol: float) -> None:
        self.held, self.epochs, self.tol = held, epochs, tol
        self.scores: list[float] = []
        self.best, self.without_gain, self.over = -np.inf, 0, False
        self.state: dict[str, Any] = {}

    def look(self, model: Model) -> float:
        """The model's accuracy, which is that of its probabilities' argmax."""
        right = probabilities(model, self.held.X).argmax(axis=1) == self.held.label
        score = float(np.average(right, weights=self.held.weight))
        self.without_gain = 0 if score > self.best + self.tol else self.without_gain + 1
        self.over = self.without_gain >= self.epochs
        self.scores.append(score)
        if score > self.best:
            self.best, self.state = score, copy.deepcopy(model.blocks.state_dict())
        return score

    def restore(self, model: Model) -> None:
        """Gives the model the weights of its best epoch."""
        if self.state:
            model.blocks.load_state_dict(self.state)
