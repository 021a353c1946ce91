"""Converts the training data of `fit` into the arguments of `train_steps`.

Arrays in memory are normalised once, except bytes, which the kernels normalise as they gather them.
Arrays in files are read and normalised batch by batch; torch's data sets and loaders row by row.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from noprop_kernels import philox

from . import labels
from .errors import InputError
from .inputs import Array, InputFormat, is_mapped, to_array
from .model import Model
from .normalisation import Moments, rows_at_once


class Feed(Protocol):
    """The source of an epoch's batches.

    Attributes:
        rows: of an epoch.
        Y: (rows,) int64 labels on the blocks' device, indexed by the places in `order`.
        batch_size: the data's own, or None.
        row_weight: (rows,) float32 of mean 1, indexed as Y is, or None.
    """

    rows: int
    batch_size: int | None
    row_weight: Tensor | None

    @property
    def Y(self) -> Tensor: ...

    def order(self, seed: int, epoch: int) -> Tensor:
        """(rows,) int64: an epoch's rows in the order of training."""
        ...

    def take(self, indices: Tensor) -> dict[str, Any]:
        """The arguments X, Y, indices and normalize of `train_steps` for rows `indices` (K, B), and
        row_weight where they have weights.
        """
        ...


def feed_of(model: Model, x: Any, y: Any, batch_size: int, sample_weight: Any = None) -> Feed:
    """Checks the data of `fit`, and sets on `model` what it does not know of them yet.

    Args:
        model: receives the inputs' format, the normalisation and the classes that it lacks.
        x, y, sample_weight: as `fit` takes them.
        batch_size: for data sets that are read row by row.

    Raises:
        InputError: x, y or sample_weight does not fit.
    """
    if isinstance(x, DataLoader | Dataset):
        if y is not None:
            raise InputError(f"fit: y must be None, as {type(x).__name__} brings labels with x")
        if sample_weight is not None:
            raise InputError(
                f"fit: sample_weight must be None where x is a {type(x).__name__}, whose rows have "
                "an order of its own; give arrays, or draw rows as often as they weigh"
            )
        if model.replicas > 1:
            raise InputError(
                "fit: x must be an array where there are several replicas, each with an order of "
                f"its own, got {type(x).__name__}, which is read in one: train a model of each seed"
            )
        return _stream(model, x, batch_size)
    inputs = model.inputs or InputFormat.of(x)
    array = inputs.array(x, "fit")
    _check_size(model, inputs)
    if len(array) == 0:
        raise InputError("fit: x must have at least 1 row, got 0")
    if y is None:
        raise InputError("fit: y must be the labels of x, got None")
    known = model.classes_
    Y, names = labels.encode(y, known) if known else labels.for_model(y, model.blocks.M)
    if len(Y) != len(array):
        raise InputError(f"fit: y must have as many rows as x, {len(array)}, got {len(Y)}")
    weight = _weights_of(sample_weight, len(array))
    normalize = model.normalize
    if normalize is None:
        moments = Moments(inputs.channels)
        for first_row, part in _parts(array, inputs):
            rows = inputs.rows(part, "fit", first_row=first_row)
            own = None if weight is None else weight[first_row : first_row + len(rows)]
            moments.add(rows, None if own is None else own.to(rows.device))
        normalize = moments.result()
    else:
        for first_row, part in _parts(array, inputs):
            inputs.rows(part, "fit", first_row=first_row)  # checks the values
    model.inputs, model.classes_, model.normalize = inputs, names, normalize
    row_weight = None if weight is None else (weight / weight.mean()).float().to(model.device)
    kind = Mapped if is_mapped(array) else InMemory
    return kind(model, array, Y, row_weight)


def _weights_of(sample_weight: Any, rows: int) -> Tensor | None:
    """(rows,) float64 on the CPU; None: the rows weigh the same."""
    if sample_weight is None:
        return None
    weight = to_array(sample_weight, "fit", "sample_weight")
    if tuple(weight.shape) != (rows,):
        raise InputError(
            f"fit: sample_weight must be ({rows},), a number for each row of x, got "
            f"{tuple(weight.shape)}"
        )
    if isinstance(weight, Tensor):
        weight = weight.to("cpu", torch.float64)
    else:
        weight = torch.tensor(weight.astype(np.float64), dtype=torch.float64, device="cpu")
    wrong = ~((weight >= 0) & weight.isfinite())
    if wrong.any():
        row = int(wrong.nonzero()[0])
        got = f"{weight[row].item()} in row {row}"
        raise InputError(f"fit: sample_weight must be finite and at least 0, got {got}")
    if not 0 < weight.sum() < torch.inf:
        raise InputError(
            f"fit: sample_weight must have a finite sum above 0, got {weight.sum().item()}"
        )
    return weight


class InMemory:
    """Arrays that stay on the blocks' device for the whole training."""

    batch_size: int | None = None

    def __init__(
        self, model: Model, array: Array, Y: Tensor, row_weight: Tensor | None = None
    ) -> None:
        assert model.inputs is not None
        device, inputs, self.rows = model.device, model.inputs, len(array)
        self.normalize, self.row_weight = None, row_weight
        try:
            if inputs.kind == "bytes" and model.encoder is None:
                self.X, self.normalize = inputs.rows(array, "fit").to(device), model.normalize
            else:
                self.X = torch.empty(0, dtype=torch.float32, device=device)
                for first_row, part in _parts(array, inputs):
                    made = model.features(part)
                    if first_row == 0:
                        self.X = made.new_empty(self.rows, made.shape[1])
                    self.X[first_row : first_row + len(made)] = made
            self.Y = Y.to(device)
        except torch.OutOfMemoryError as error:
            size = self.rows * (inputs.features * (1 if inputs.kind == "bytes" else 4) + 8)
            raise MemoryError(
                f"fit: no memory on {device} for the {size:,} bytes of the data, which stay there "
                "while they are trained on; train on the CPU instead"
            ) from error

    def order(self, seed: int, epoch: int) -> Tensor:
        return philox.permutation(seed, epoch, self.rows).to(self.Y.device)

    def take(self, indices: Tensor) -> dict[str, Any]:
        batch = {"X": self.X, "Y": self.Y, "indices": indices, "normalize": self.normalize}
        return batch if self.row_weight is None else batch | {"row_weight": self.row_weight}


class Mapped:
    """An array in a file; only the rows of one call are in memory."""

    batch_size: int | None = None

    def __init__(
        self, model: Model, array: Array, Y: Tensor, row_weight: Tensor | None = None
    ) -> None:
        self.model, self.array, self.rows, self.Y = model, array, len(array), Y.to(model.device)
        self.row_weight = row_weight

    def order(self, seed: int, epoch: int) -> Tensor:
        return philox.permutation(seed, epoch, self.rows).to(self.Y.device)

    def take(self, indices: Tensor) -> dict[str, Any]:
        rows = self.array[indices.flatten().cpu().numpy()]
        batch = _batch(self.model, rows, self.Y[indices])
        if self.row_weight is None:
            return batch
        return batch | {"row_weight": self.row_weight[indices]}


class Stream:
    """A data set of torch, read row by row: each epoch once, in its own order.

    Args:
        start: the batches (x, y) of an epoch, from the seed and the epoch's number.
        rows: rows of an epoch.
        steady: whether an epoch's rows are always the same in the same order.
    """

    row_weight: Tensor | None = None

    def __init__(
        self,
        model: Model,
        start: Callable[[int, int], Iterable[Any]],
        rows: int,
        batch_size: int,
        steady: bool,
    ) -> None:
        self.model, self.start, self.rows = model, start, rows
        self.batch_size: int | None = batch_size
        self.steady = steady
        self.labels = torch.zeros(rows, dtype=torch.int64, device="cpu")
        self.source: Iterator[Any] = iter(())
        self.begun = False
        self.parts: list[tuple[Tensor, Tensor]] = []
        self.at = 0

    @property
    def Y(self) -> Tensor:
        if self.at < self.rows:
            self._read(self.rows - self.at)  # a run resumed after its blocks' last step
        return self.labels.to(self.model.device)

    def order(self, seed: int, epoch: int) -> Tensor:
        if epoch > 0 and not self.begun:
            self._warn()
        self.source, self.parts, self.at, self.begun = iter(self.start(seed, epoch)), [], 0, True
        return torch.arange(self.rows, dtype=torch.int64, device=self.model.device)

    def take(self, indices: Tensor) -> dict[str, Any]:
        first = int(indices[0, 0])
        if first > self.at:
            self._warn()
            self._read(first - self.at)
        x, y = self._read(indices.numel())
        return _batch(self.model, x, y.view(indices.shape).to(self.model.device))

    def _warn(self) -> None:
        if not self.steady:
            warnings.warn(
                "fit: the loader gives its rows in an order of its own, so that going on does not "
                "give the bits of never having stopped",
                stacklevel=5,
            )

    def _read(self, count: int) -> tuple[Tensor, Tensor]:
        """The next rows (count, F) and their labels."""
        inputs, names = self.model.inputs, self.model.classes_
        assert inputs is not None
        have = sum(len(y) for _, y in self.parts)
        while have < count:
            batch = next(self.source, None)
            if batch is None:
                raise InputError(
                    f"fit: the loader must give {self.rows} rows in every epoch, as in the first, "
                    f"got {self.at + have}"
                )
            x, y = _pair(batch)
            x = inputs.rows(x, "fit", first_row=self.at + have)
            self.parts.append((x, labels.encode(y, names)[0]))
            if len(x) != len(self.parts[-1][1]):
                raise InputError(
                    f"fit: a batch has {len(x)} rows with {len(self.parts[-1][1])} labels"
                )
            have += len(x)
        x, y = (torch.cat(values) for values in zip(*self.parts, strict=True))
        self.parts = [(x[count:], y[count:])]
        self.labels[self.at : self.at + count] = y[:count]
        self.at += count
        return x[:count], y[:count]


def _stream(model: Model, source: Any, batch_size: int) -> Feed:
    """The feed of a data set or a loader; it reads all rows once where something is unknown."""
    steady = not isinstance(source, DataLoader | IterableDataset)
    if isinstance(source, DataLoader):
        batch_size, loader = source.batch_size or batch_size, source
        start = lambda seed, epoch: loader  # noqa: E731
    elif isinstance(source, IterableDataset):
        loader = DataLoader(source, batch_size)
        start = lambda seed, epoch: loader  # noqa: E731
    else:
        size = len(source)  # type: ignore[arg-type]  # a data set that is no stream has a length
        loader = DataLoader(source, batch_size)

        def start(seed: int, epoch: int) -> Iterable[Any]:
            order = philox.permutation(seed, epoch, size).tolist()
            return DataLoader(source, batch_size, sampler=order)

    known = model.inputs is not None and model.normalize is not None and model.classes_ is not None
    rows = _rows_of(loader) if known else None
    if rows is None:
        rows = _survey(model, loader)
    return Stream(model, start, rows, batch_size, steady)


def _survey(model: Model, loader: DataLoader) -> int:
    """Finds the number of rows, the normalisation and the classes in one pass."""
    inputs, moments, rows, ys = model.inputs, None, 0, []
    for batch in loader:
        x, y = _pair(batch)
        if inputs is None:
            inputs = InputFormat.of(x)
        if moments is None:
            _check_size(model, inputs)
            moments = Moments(inputs.channels)
        part = inputs.rows(x, "fit", first_row=rows)
        moments.add(part)
        rows += len(part)
        ys.append(y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y))
    if moments is None or rows == 0:
        raise InputError("fit: x must give at least 1 row, got 0")
    y, known = np.concatenate(ys), model.classes_
    Y, names = labels.encode(y, known) if known else labels.for_model(y, model.blocks.M)
    if len(Y) != rows:
        raise InputError(f"fit: y must have as many rows as x, {rows}, got {len(Y)}")
    model.inputs, model.classes_ = inputs, names
    if model.normalize is None:
        model.normalize = moments.result()
    return rows


def _rows_of(loader: DataLoader) -> int | None:
    """The number of rows that a loader announces."""
    try:
        rows, batches = len(loader.sampler), len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None
    if loader.batch_size is None:
        return None
    return min(rows, batches * loader.batch_size)  # drop_last


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise InputError(f"fit: x must give pairs (x, y), got {type(batch).__name__}")
    return batch[0], batch[1]


def _batch(model: Model, rows: Any, Y: Tensor) -> dict[str, Any]:
    """The arguments of `train_steps` for rows (K * B, F) in memory and labels (K, B)."""
    features = model.features(rows)
    return {"X": features.view(*Y.shape, -1), "Y": Y, "indices": None, "normalize": None}


def _parts(array: Array, inputs: InputFormat) -> Iterator[tuple[int, Array]]:
    """(first_row, part) of an array, part by part."""
    size = rows_at_once(inputs.features)
    return ((start, array[start : start + size]) for start in range(0, len(array), size))


def _check_size(model: Model, inputs: InputFormat) -> None:
    drawn = ("z", "t") if model.blocks.goal.timed else ("z",)
    names = [name for name in model.blocks.plan.inputs if name not in drawn]
    if model.encoder is None and len(names) == 1:
        plan = model.blocks.plan
        width, shape = plan.widths[names[0]], plan.shapes[names[0]]
        if inputs.features != width:
            raise InputError(
                f"fit: x must have {width} features in a row, as the blocks have, got "
                f"{inputs.features}"
            )
        if len(shape) == 3 and inputs.image not in (None, shape):
            raise InputError(
                f"fit: x must be images {shape}, as the blocks have, or their rows, got "
                f"{inputs.image}"
            )
