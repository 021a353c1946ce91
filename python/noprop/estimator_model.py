"""The untrained model of a classifier, and its seed."""

from numbers import Integral
from typing import Any

import numpy as np

import noprop_kernels as nk
from noprop_kernels.check import check_integer

from . import presets, variants
from .devices import pick_device
from .errors import extra
from .inputs import InputFormat
from .model import Model

with extra("sklearn"):
    from sklearn.utils import check_random_state


def seed_of(random_state: Any) -> int:
    """A number is the seed itself; a RandomState, or None, gives one.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(random_state, Integral):
        return check_integer("fit", "random_state", random_state, 0, 2**32 - 1)
    return int(check_random_state(random_state).randint(2**31 - 1))


def new_model(
    classes: np.ndarray,
    features: int,
    columns: tuple[str, ...] | None,
    seed: int,
    device: str,
    *,
    hidden: int,
    T: int,
    variant: str,
    precision: str,
    backend: str | None,
) -> Model:
    """A model of one-hot embeddings and dense blocks, on its device.

    Args:
        classes: (M,) labels, sorted.
        features: F.
        columns: names of the features, or None.
        seed: of weights and noise.
        device: one of devices.NAMES.
        hidden, T, variant, precision, backend: as of NoPropClassifier.

    Raises:
        ValueError: an argument does not fit, or the device cannot be used.
    """
    chosen = variants.VARIANTS[variant]
    goal = chosen.of_settings(chosen.defaults | {"T": T})
    plan = presets.plan_of(variant, "mlp", "one-hot", (features,), len(classes), hidden)
    place = pick_device(device, backend, plan, sampled=chosen.sampled)
    blocks = nk.DenoisingBlocks(plan, goal, seed=seed, precision=precision, backend=backend)
    inputs = InputFormat((features,), "numbers", columns)
    return Model(blocks, classes=_texts(classes), inputs=inputs).to(place.device)


def _texts(classes: np.ndarray) -> tuple[str, ...]:
    """The labels as a model names them: whole numbers without a point."""
    whole = classes.dtype.kind == "f"
    return tuple(str(int(value) if whole else value) for value in classes.tolist())
