"""Data sets by name: digits, MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100, or a file of your own.

Files are looked for, and downloaded to, the folders that torchvision uses: MNIST/raw,
FashionMNIST/raw, cifar-10-batches-py and cifar-100-python.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .datasets import cifar, idx, own
from .datasets.dataset import Dataset
from .datasets.download import (
    CIFAR10,
    CIFAR100,
    FASHION_MNIST,
    MNIST,
    Say,
    Source,
    fetch_archive,
    fetch_files,
)
from .datasets.own import read_rows as read_rows
from .datasets.split import hold_out
from .errors import InputError
from .inputs import InputFormat

NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
DIGITS = Path(__file__).with_name("datasets") / "digits.npz"
DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class Published:
    """What is known of published images without reading them.

    Attributes:
        name: one of NAMES.
        inputs: the format of a row.
        classes: number of classes.
        rows, test_rows: of either part.
    """

    name: str
    inputs: InputFormat
    classes: int
    rows: int
    test_rows: int = 10_000

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)"""
        return self.inputs.image or self.inputs.shape

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(map(str, range(self.classes)))

    @property
    def nbytes(self) -> int:
        """Of the training rows."""
        return self.rows * self.inputs.features

    def describe(self) -> str:
        """One line: rows, their size, classes and the test rows."""
        sizes = " x ".join(map(str, self.inputs.shape))
        return (
            f"{self.name}: {self.rows:,} training rows of {sizes} {self.inputs.kind}, "
            f"{self.classes} classes, {self.test_rows:,} test rows as published; not read"
        )


GREY, COLOUR = InputFormat((28, 28), "bytes"), InputFormat((3, 32, 32), "bytes")
PUBLISHED = {
    found.name: found
    for found in (
        Published("mnist", GREY, 10, 60_000),
        Published("fashion-mnist", GREY, 10, 60_000),
        Published("cifar10", COLOUR, 10, 50_000),
        Published("cifar100", COLOUR, 100, 50_000),
    )
}


def default_folder() -> Path:
    """NOPROP_DATA, else noprop in the user's cache folder."""
    if folder := os.environ.get("NOPROP_DATA"):
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "noprop"


def load(
    name: str | Path,
    folder: Path | None = None,
    say: Say = lambda line: None,
    *,
    label: str | None = None,
    labels: str | Path | None = None,
) -> Dataset:
    """The data set of that name.

    Args:
        name: one of NAMES, or the path of a file or a folder of your own (datasets/own.py).
        folder: the data folder, which must exist; None is `default_folder()`, made for a download.
        say: called with a line for each download.
        label, labels: of your own data, the column or the file of the labels.

    Raises:
        InputError: the name is unknown, or a file is corrupt, or missing and not to be downloaded.
        ImportError: a package that reads it is not installed.
    """
    name = str(name)
    if name not in NAMES:
        if not own.is_own(name):
            known, kinds = ", ".join(NAMES), ", ".join(own.KINDS)
            raise InputError(
                f"data must be one of {known}, a file ({kinds}) or a folder, got {name!r}"
            )
        file = None if labels is None else Path(labels).expanduser()
        return own.load(Path(name).expanduser(), label, file)
    if label is not None or labels is not None:
        raise InputError(f"label and labels are of your own data, {name} brings its labels")
    if name == "digits":
        return _digits()
    if folder is not None and not (folder := folder.expanduser()).is_dir():
        raise InputError(f"the data folder {folder} does not exist")
    folder = folder or default_folder()
    if name == "mnist":
        return _idx(name, idx.folder_of(folder, "MNIST"), MNIST, say)
    if name == "fashion-mnist":
        return _idx(name, idx.folder_of(folder, "FashionMNIST"), FASHION_MNIST, say)
    if name == "cifar10":
        files, labels = (cifar.CIFAR10_TRAIN, cifar.CIFAR10_TEST), "labels"
        return _cifar(name, folder / "cifar-10-batches-py", CIFAR10, files, labels, 10, say)
    files, labels = (cifar.CIFAR100_TRAIN, cifar.CIFAR100_TEST), "fine_labels"
    return _cifar(name, folder / "cifar-100-python", CIFAR100, files, labels, 100, say)


def _digits() -> Dataset:
    """The 1797 images of 8 x 8, 0..16, of scikit-learn's `load_digits`: the test rows of "Optical
    Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
    Repository, doi 10.24432/C50P49, CC BY 4.0). A fixed fifth of them is the test set."""
    with np.load(DIGITS) as arrays:
        x, y = torch.from_numpy(arrays["pixels"]), torch.from_numpy(arrays["labels"]).long()
    train, test = hold_out(len(x), DIGITS_TEST_FRACTION)
    inputs = InputFormat((8, 8), "bytes")
    split = "a fifth of all, always the same"
    return Dataset("digits", x[train], y[train], x[test], y[test], 10, inputs, test=split)


def _idx(name: str, folder: Path, sources: tuple[Source, ...], say: Say) -> Dataset:
    missing = [s for s in sources if idx.find(folder, s.name.removesuffix(".gz")) is None]
    fetch_files(missing, folder, say)
    x, y = idx.read_split(folder, "train")
    x_test, y_test = idx.read_split(folder, "t10k")
    inputs = InputFormat(tuple(x.shape[1:]), "bytes")
    return Dataset(name, x.flatten(1), y, x_test.flatten(1), y_test, 10, inputs)


def _cifar(
    name: str,
    folder: Path,
    source: Source,
    files: tuple[tuple[str, ...], tuple[str, ...]],
    labels: str,
    classes: int,
    say: Say,
) -> Dataset:
    train, test = files
    missing = [file for file in train + test if not (folder / file).is_file()]
    if missing:
        fetch_archive(source, folder, missing, say)
    x, y = cifar.read_split(folder, train, labels)
    x_test, y_test = cifar.read_split(folder, test, labels)
    return Dataset(name, x, y, x_test, y_test, classes, InputFormat((3, 32, 32), "bytes"))
