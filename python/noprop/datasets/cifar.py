"""CIFAR-10 and CIFAR-100 in their published pickles: rows of 3 x 32 x 32 bytes, channel-major."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import pickles

FEATURES = 3 * 32 * 32
CIFAR10_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
CIFAR10_TEST = ("test_batch",)
CIFAR100_TRAIN = ("train",)
CIFAR100_TEST = ("test",)


def read_split(folder: Path, names: tuple[str, ...], labels: str) -> tuple[Tensor, Tensor]:
    """Images (rows, 3072) uint8 and labels (rows,) int64 of some files, in their order.

    Args:
        folder: the folder of the files.
        names: the files of the split.
        labels: the key of the labels, "labels" or "fine_labels".

    Raises:
        InputError: a file is missing, corrupt, or not of that layout.
    """
    batches = [_read_batch(folder / name, labels) for name in names]
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _read_batch(path: Path, labels: str) -> tuple[Tensor, Tensor]:
    content = pickles.read_dict(path)
    x, y = content.get("data"), content.get(labels)
    if not (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.shape[1:] == (FEATURES,)):
        raise InputError(f"{path}: data must be a uint8 array (rows, {FEATURES})")
    if not (isinstance(y, list) and len(y) == len(x) and all(type(i) is int for i in y)):
        raise InputError(f"{path}: {labels} must be a list of {len(x)} integers")
    return torch.from_numpy(x.copy(order="C")), torch.tensor(y, dtype=torch.int64, device="cpu")
