"""A data set in memory: flattened rows and labels, for training and for the final test."""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import InputFormat
from ..labels import shown


@dataclass(frozen=True)
class Dataset:
    """Rows and labels.

    Args:
        name: the name of the data.
        x, x_test: (rows, F) uint8, float32 or float64, contiguous, channel-major.
        y, y_test: (rows,) int64 in 0..classes - 1.
        classes: number of classes.
        inputs: the format of a row of x; by default F bytes or F columns of numbers.
        class_names: of the classes, in their order; by default their numbers.
        test: how the test rows were chosen.

    Raises:
        InputError: sizes do not fit, a label is out of range, or x is not finite.
    """

    name: str
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    inputs: InputFormat = None  # type: ignore[assignment]  # made below
    class_names: tuple[str, ...] = ()
    test: str = "as published"

    def __post_init__(self) -> None:
        inputs = self.inputs or InputFormat.of(self.x)
        object.__setattr__(self, "inputs", inputs)
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.classes))))
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a row: (C, H, W) of images, else (F,)."""
        return self.inputs.image or (self.features,)

    @property
    def channels(self) -> int:
        """Number of equal runs of features, each with one mean and deviation."""
        return self.inputs.channels

    def fingerprint(self) -> str:
        """SHA-256 of the training rows, labels and classes: a run resumes on its own data only."""
        return self._digest(self.x)

    def matches(self, fingerprint: str) -> bool:
        """Whether a fingerprint is that of these data.

        Earlier versions trained on float32 whatever the data, and recorded no class names.
        """
        if fingerprint == self.fingerprint():
            return True
        return self.x.dtype == torch.float64 and fingerprint == self._digest(self.x.float())

    def _digest(self, x: Tensor) -> str:
        digest = hashlib.sha256(f"{tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.numpy().data)
        digest.update(self.y.numpy().data)
        if self.class_names != tuple(map(str, range(self.classes))):
            digest.update(json.dumps(self.class_names).encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line: rows, features, classes with their counts, normalisation, and the test rows."""
        counts = torch.bincount(self.y, minlength=self.classes).tolist()
        pairs = [f"{name} ({n:,})" for name, n in zip(self.class_names, counts, strict=True)]
        what, sizes = self.inputs.kind, " x ".join(map(str, self.inputs.shape))
        if len(self.inputs.shape) == 1:
            of, per = f"{self.features:,} features", "each column"
        else:
            of, per = f"{sizes} {what}", "each channel" if self.channels > 1 else "all pixels alike"
        if self.inputs.kind == "bytes":
            per = "each channel" if self.channels > 1 else "all bytes alike"
        return (
            f"{self.name}: {len(self.x):,} training rows of {of}, {self.classes:,} classes: "
            f"{shown(pairs)}; {per} less its mean, divided by its deviation; "
            f"{len(self.x_test):,} test rows {self.test}"
        )
