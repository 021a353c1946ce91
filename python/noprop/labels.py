"""Converts labels of any kind into class numbers and class names.

A class is a whole number, a text or a truth value; classes are numbered in sorted order.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

WHOLE = 2.0**53  # above it floating-point numbers are not unique integers
SHOWN = 10  # class names shown in a text
MISSING = ("NAType", "NaTType")  # of pandas


def encode(
    y: Any, names: Sequence[str] | None = None, op: str = "fit", name: str = "y"
) -> tuple[Tensor, tuple[str, ...]]:
    """Converts labels into class numbers.

    Args:
        y: (rows,) or (rows, 1): whole numbers of any type, texts or truth values; or (rows, C),
            one-hot. A tensor, an array, a series or table of pandas, or a list.
        names: the class names, if they are known; else the labels' own, in sorted order.
        op, name: the function and the argument in errors.

    Returns:
        (rows,) int64 in 0..C - 1, and the C names.

    Raises:
        InputError: a label is missing, is no class name, or is one of several in its row; the text
            names the row.
    """
    values, own = _values(y, op, name)
    found, inverse = np.unique(values, return_inverse=True)
    texts = own or tuple(map(_text, found.tolist()))
    if own is not None:  # one-hot: every column is a class, whether it occurs or not
        inverse, found = values, np.arange(len(own))
    elif found.dtype == bool:
        texts, inverse = ("False", "True"), values.astype(np.int64)
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{op}: {name} must be of texts that UTF-8 can hold, got {text!r}")
    index = torch.from_numpy(inverse.astype(np.int64).reshape(-1))
    if names is None:
        return index, texts
    place = {text: i for i, text in enumerate(names)}
    for number, text in enumerate(texts):
        if text not in place and bool((index == number).any()):
            row = int((index == number).nonzero()[0])
            raise InputError(
                f"{op}: {name} must be one of the classes {shown(names)}, got {text!r} in row {row}"
            )
    places = torch.tensor([place.get(text, -1) for text in texts], dtype=torch.int64, device="cpu")
    return places[index] if len(places) else index, tuple(names)


def for_model(y: Any, classes: int, op: str = "fit") -> tuple[Tensor, tuple[str, ...]]:
    """As `encode`, for a model with a number of classes but no names yet.

    Whole numbers that all lie in 0..classes - 1 are taken as class numbers.

    Raises:
        InputError: as `encode`, or the labels have more or fewer classes.
    """
    index, names = encode(y, None, op)
    plain = tuple(map(str, range(classes)))
    if set(names) <= set(plain):
        return encode(y, plain, op)
    if len(names) != classes:
        raise InputError(
            f"{op}: y must be of {classes} classes, as the model is, got {len(names)}: "
            f"{shown(names)}"
        )
    return index, names


def shown(names: Sequence[str]) -> str:
    """Names for a text, not too many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def _values(y: Any, op: str, name: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(rows,) integers, bools or texts; for one-hot rows, column numbers and the column names."""
    pandas, columns = sys.modules.get("pandas"), None
    if pandas is not None and isinstance(y, pandas.DataFrame):
        columns = tuple(map(str, y.columns))
        kinds = {kind for kind in y.dtypes}
        y = y.to_numpy(None if len(kinds) == 1 else object)
    elif pandas is not None and isinstance(y, pandas.Series | pandas.Categorical | pandas.Index):
        y = (
            y.to_numpy()
            if y.dtype.kind in "biuf" and not hasattr(y.dtype, "na_value")
            else np.asarray(y, object)
        )
    if isinstance(y, Tensor):
        if y.is_meta or y.is_nested or y.layout != torch.strided:
            raise InputError(f"{op}: {name} must be dense and have values, got one on {y.device}")
        y = y.detach().cpu()
        y = (y.double() if y.is_floating_point() else y).numpy()
    try:
        array = np.asarray(y)
        if isinstance(y, list | tuple) and array.dtype.kind in "US":
            array = np.asarray(y, object)  # keeps a number among texts a number
    except (ValueError, TypeError) as error:
        raise InputError(f"{op}: {name} must be an array of labels: {error}") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        return _one_hot(array, op, name), columns or tuple(map(str, range(array.shape[1])))
    if array.ndim != 1:
        raise InputError(
            f"{op}: {name} must be (rows,) labels, or (rows, C) one-hot, got {array.shape}"
        )
    if array.dtype.kind == "O":
        array = _plain(array, op, name)
    if array.dtype.kind == "S":
        array = np.array([_decoded(value) for value in array.tolist()], str)
    if array.dtype.kind == "U":
        if len(empty := np.flatnonzero(np.char.strip(array) == "")):
            raise InputError(
                f"{op}: {name} must have a label in every row, got none in row {empty[0]}"
            )
        return array, None
    if array.dtype.kind == "f":
        return _whole(array, op, name), None
    if array.dtype.kind not in "biu":
        raise InputError(f"{op}: {name} must be whole numbers, texts or bools, got {array.dtype}")
    return array, None


def _plain(array: np.ndarray, op: str, name: str) -> np.ndarray:
    """Objects as one common type: integers, bools, floats or texts."""
    kinds = [_kind(value) for value in array]
    for row, kind in enumerate(kinds):
        if kind not in ("text", "bool", "float", "int"):
            raise InputError(
                f"{op}: {name} must have a label in every row, got {kind} in row {row}"
            )
        if kind != kinds[0] and {kind, kinds[0]} != {"int", "float"}:
            raise InputError(
                f"{op}: {name} must be of one kind, got {array[0]!r} in row 0 and {array[row]!r} "
                f"in row {row}"
            )
    if "float" in kinds:
        return array.astype(np.float64)
    if "text" in kinds:
        return np.array([_decoded(v) if isinstance(v, bytes) else v for v in array], str)
    if "bool" in kinds:
        return array.astype(bool)
    longest = max((abs(int(value)) for value in array), default=0)
    return array.astype(np.int64 if longest < 2**63 else str)


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin1")


def _kind(value: Any) -> str:
    """The kind of a label, or its type's name where it is none."""
    if isinstance(value, str | bytes):
        return "text"
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, float | np.floating) and value == value:
        return "float"
    if isinstance(value, int | np.integer):
        return "int"
    missing = value is None or isinstance(value, float) or type(value).__name__ in MISSING
    return "none" if missing else type(value).__name__


def _whole(array: np.ndarray, op: str, name: str) -> np.ndarray:
    """Floating-point labels, all whole, as integers."""
    wrong = ~(np.isfinite(array) & (array == np.round(array)) & (np.abs(array) <= WHOLE))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        hint = (
            ""
            if not np.isfinite(array[row])
            else "; numbers to be predicted are no classes: put them into ranges"
        )
        raise InputError(
            f"{op}: {name} must be whole numbers, texts or bools, got {array[row]} in row "
            f"{row}{hint}"
        )
    return array.astype(np.int64)


def _one_hot(array: np.ndarray, op: str, name: str) -> np.ndarray:
    """The column of the 1 in each row."""
    wanted = f"{op}: {name} must be (rows,) labels, or (rows, C) with one 1 and zeros in a row"
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{wanted}, got {array.shape} of {array.dtype}") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{wanted}, got {array.shape} of {array.dtype}")
    wrong = ~(((array == 0) | (array == 1)).all(1) & ((array == 1).sum(1) == 1))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{wanted}, got {shown(array[row].tolist())} in row {row}")
    return array.argmax(1)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
