"""The probabilities of a model's answer in float64, each row's a function of that row alone."""

from typing import Any

import numpy as np

from .model import Model


def probabilities(model: Model, x: Any) -> np.ndarray:
    """(n, M) float64, the probs of `Model.predict`, whose rows add up to 1 in float64.

    Bit for bit a row's are the same in every subset and order of the rows: numpy forms exponents
    and sums row by row, where float32 ones of PyTorch differ in their last bit by the row's place.

    Args:
        model: of one replica.
        x: as `Model.predict` takes it.

    Raises:
        ValueError: x does not fit.
    """
    rows = model.format_of(x).array(x)
    probs = np.empty((len(rows), model.blocks.M))
    for part, _, logits in model.beliefs(rows):
        found = logits.double().cpu().numpy()  # (E, B, M)
        powers = np.exp(found - found.max(axis=-1, keepdims=True))
        mean = (powers / powers.sum(axis=-1, keepdims=True)).mean(axis=0)
        probs[part] = mean / mean.sum(axis=-1, keepdims=True)
    return probs
