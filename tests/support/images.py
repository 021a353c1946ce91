"""Small images that are learned in a moment, and a model for them."""

import numpy as np

import noprop
import noprop_kernels as nk
from noprop_kernels.plan import Conv2d, MaxPool2d

CLASSES = 3


def toy_images(
    rows: int, seed: int, shape: tuple[int, ...] = (3, 16, 16)
) -> tuple[np.ndarray, np.ndarray]:
    """Images of bytes (rows, *shape), in which the class is a bright row of the picture."""
    random = np.random.default_rng(seed)
    y = np.arange(rows) % CLASSES
    x = random.integers(0, 100, (rows, *shape), dtype=np.uint8)
    x[np.arange(rows), ..., 4 + 4 * y, :] += 150
    return x, y


def image_model(shape: tuple[int, ...] = (3, 16, 16), T: int = 2) -> noprop.Model:
    """Of few channels: one convolution for x."""
    layers = {
        "c": Conv2d("x", 4, activation="relu", pool=MaxPool2d(), dropout=0.2),
        "f": nk.Dense(("c", "z"), 8, activation="relu"),
        "logits": nk.Dense("f", 3),
    }
    goal = nk.DT(nk.NoiseSchedule.cosine(T=T))
    blocks = nk.DenoisingBlocks(
        nk.Plan({"x": shape, "z": (3,)}, layers), goal, optimizer=nk.AdamW(lr=1e-2)
    )
    return noprop.Model(blocks)
