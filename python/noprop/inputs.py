"""The format of the rows that a model was trained on, and the conversion of data to it.

The values of x count, never their type: for a model of bytes every number is a byte, for a model of
numbers every number is itself. Ambiguous input is refused, with the remedy.
"""

import numbers
import sys
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError

MOST_CHANNELS = 4  # of a picture: red, green, blue, alpha
ROUNDED = (torch.float64, torch.int64, torch.int32)  # float32 rounds these
WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.float64}
Array = Tensor | np.ndarray


@dataclass(frozen=True)
class InputFormat:
    """The format of a row of x.

    Attributes:
        shape: (F,), (H, W) or (C, H, W), as given.
        kind: "bytes", 0..255 of [0, 1], or "numbers".
        columns: the names of the F columns of a table, or None.
        label: the column of that table that held the labels, or None.
    """

    shape: tuple[int, ...]
    kind: str
    columns: tuple[str, ...] | None = None
    label: str | None = None

    @classmethod
    def of(cls, x: Any, op: str = "fit", name: str = "x") -> "InputFormat":
        """The format of training rows: uint8 are bytes, everything else is numbers.

        Args:
            x: (rows, F), (rows, H, W) or (rows, C, H, W): a tensor, an array, a table of pandas, or
                lists.
            op, name: the function and the argument in errors.

        Raises:
            InputError: it is none of these.
        """
        columns = tuple(map(str, x.columns)) if _is_frame(x) else None
        if columns is not None and len(set(columns)) < len(columns):
            raise InputError(f"{op}: {name} must have no column twice, got {list(columns)}")
        array = to_array(x, op, name)
        _check_shape(array, op, name)
        kind = "bytes" if _dtype(array) == torch.uint8 and columns is None else "numbers"
        return cls(tuple(array.shape[1:]), kind, columns)

    @property
    def features(self) -> int:
        return prod(self.shape)

    @property
    def channels(self) -> int:
        """Number of equal runs of features with a mean each: channels, or columns."""
        if len(self.shape) == 3:
            return self.shape[0]
        return self.shape[0] if len(self.shape) == 1 and self.kind == "numbers" else 1

    @property
    def image(self) -> tuple[int, int, int] | None:
        """(C, H, W) where a row is an image, else None."""
        if len(self.shape) == 1:
            return None
        height, width = self.shape[-2:]
        return self.channels, height, width

    def array(self, x: Any, op: str = "predict", name: str = "x") -> Array:
        """x as one array (rows, ...) whose rows have this format; an array is not copied.

        Raises:
            InputError: a shape or a column does not fit.
        """
        if _is_frame(x) and self.columns is not None:
            x = self._columns_of(x, op, name)
        array = to_array(x, op, name)
        got = tuple(array.shape[1:])
        flat, one_channel = (self.features,), _without_one_channel
        if array.ndim == 0 or (got != flat and one_channel(got) != one_channel(self.shape)):
            raise InputError(f"{op}: {name} must be {self._shapes()}, got {_remedy(array, self)}")
        return array

    def rows(self, x: Any, op: str = "predict", name: str = "x", first_row: int = 0) -> Tensor:
        """x as rows, each flattened, ready to be normalised.

        Args:
            x: (B, *shape) or (B, F): a tensor, an array, a table of pandas, or lists, of any type.
                Of a table whose model was trained on one, columns are found by name.
            op, name: the function and the argument in errors.
            first_row: the number of the first row in errors.

        Returns:
            (B, F) uint8 of bytes, else float32 or float64.

        Raises:
            InputError: a shape, a column or a value does not fit; the text names it.
        """
        tensor = _to_tensor(self.array(x, op, name))
        tensor = tensor.reshape(len(tensor), self.features)
        if self.kind == "bytes":
            return self._bytes(tensor, op, name, first_row)
        if tensor.dtype == torch.uint8 and self.columns is None:
            raise InputError(
                f"{op}: {name} must be numbers like those of the model's training, got uint8, "
                "which stands for bytes of [0, 1]; make it float32, divided by 255 if those were so"
            )
        rows = tensor.to(torch.float64 if tensor.dtype in ROUNDED else torch.float32)
        self._refuse_nan(rows, op, name, first_row)
        return rows

    def place(self, row: int, feature: int) -> str:
        """The name of an entry in errors."""
        if self.columns is not None:
            return f"row {row}, column {self.columns[feature]!r}"
        if len(self.shape) == 1:
            return f"row {row}, column {feature}"
        at = tuple(int(i) for i in np.unravel_index(feature, self.shape))
        return f"row {row}, place {at}"

    def to_json(self) -> dict[str, Any]:
        columns = None if self.columns is None else list(self.columns)
        return {
            "shape": list(self.shape),
            "kind": self.kind,
            "columns": columns,
            "label": self.label,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "InputFormat":
        """
        Raises:
            InputError: it is no such record.
        """
        try:
            names = ("shape", "kind", "columns", "label")
            shape, kind, columns, label = (record[name] for name in names)
            right = kind in ("bytes", "numbers") and len(shape) in (1, 2, 3)
            right = right and all(type(size) is int and size > 0 for size in shape)
            right = right and (label is None or type(label) is str)
            if columns is not None:
                right = right and len(shape) == 1 and len(columns) == shape[0]
                right = right and all(type(column) is str for column in columns)
        except (KeyError, TypeError) as error:
            raise InputError(f"a saved model's inputs cannot be read: {error!r}") from error
        if not right:
            raise InputError(f"a saved model's inputs do not fit each other: {record}")
        return cls(tuple(shape), kind, None if columns is None else tuple(columns), label)

    def _bytes(self, tensor: Tensor, op: str, name: str, first_row: int) -> Tensor:
        if tensor.dtype == torch.uint8:
            return tensor
        text = (
            f"{op}: {name} must be whole numbers 0 to 255, as the model was trained on bytes, got "
        )
        wrong = ~((tensor >= 0) & (tensor <= 255) & (tensor == tensor.to(torch.uint8)))
        if wrong.any():
            row, feature = (int(i) for i in wrong.nonzero()[0])
            value, at = tensor[row, feature].item(), self.place(row + first_row, feature)
            raise InputError(
                f"{text}{value} in {at}; if it is of [0, 1], multiply by 255 and round"
            )
        of_unit = tensor.is_floating_point() or tensor.dtype == torch.bool
        if of_unit and tensor.numel() and tensor.max() == 1:
            raise InputError(
                f"{text}{tensor.dtype} of 0 and 1 alone; multiply by 255 what is of [0, 1], and "
                "make uint8 what is bytes"
            )
        return tensor.to(torch.uint8)

    def _refuse_nan(self, rows: Tensor, op: str, name: str, first_row: int) -> None:
        if (
            rows.device.type != "cpu"
            or not rows.numel()
            or all(map(torch.isfinite, rows.aminmax()))
        ):
            return  # on a GPU the kernels check, without a synchronisation
        row, feature = (int(i) for i in (~rows.isfinite()).nonzero()[0])
        value, at = rows[row, feature].item(), self.place(row + first_row, feature)
        raise InputError(f"{op}: {name} must be finite, got {value} in {at}")

    def _columns_of(self, frame: Any, op: str, name: str) -> Any:
        """The model's columns of a table, in the model's order."""
        assert self.columns is not None
        have = [str(column) for column in frame.columns]
        if missing := [column for column in self.columns if column not in have]:
            raise InputError(f"{op}: {name} must have the column {missing[0]!r}, got {have}")
        if extra := [column for column in have if column not in self.columns]:
            raise InputError(
                f"{op}: {name} has a column {extra[0]!r} that the model was not trained on; drop it"
            )
        if len(have) != len(self.columns):
            raise InputError(f"{op}: {name} has a column twice, got {have}")
        return frame.iloc[:, [have.index(column) for column in self.columns]]

    def _shapes(self) -> str:
        sizes = ", ".join(map(str, self.shape))
        wide = f"(rows, {self.features})"
        return wide if len(self.shape) == 1 else f"(rows, {sizes}) or {wide}"


def to_array(x: Any, op: str, name: str) -> Array:
    """x as a tensor or an array of numbers; neither is copied.

    Raises:
        InputError: it is neither, and cannot be made one.
    """
    if isinstance(x, Tensor):
        if x.layout != torch.strided or x.is_nested:
            got = "a nested tensor" if x.is_nested else x.layout
            raise InputError(f"{op}: {name} must be dense, got {got}; use .to_dense()")
        if x.is_meta:
            raise InputError(f"{op}: {name} must have values, got a tensor on meta")
        if x.is_quantized:
            raise InputError(f"{op}: {name} must be numbers, got {x.dtype}; use .dequantize()")
        if x.is_complex():
            raise InputError(f"{op}: {name} must be real numbers, got {x.dtype}")
        return x.detach()
    if hasattr(x, "toarray"):
        raise InputError(f"{op}: {name} must be dense, got {type(x).__name__}; use .toarray()")
    if _is_frame(x):
        return _frame_array(x, op, name)
    try:
        array = x if isinstance(x, np.ndarray) else np.asarray(x)
    except (ValueError, TypeError) as error:
        raise InputError(f"{op}: {name} must be an array of numbers: {error}") from error
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.getmaskarray(array).any():
            raise InputError(f"{op}: {name} must have no masked entry")
        array = array.data
    if array.dtype.kind in "OUS":
        array = _numbers(array, op, name)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{op}: {name} must be numbers, got {array.dtype}")
    return array


def is_mapped(x: Any) -> bool:
    """Whether an array is memory-mapped from a file."""
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap):
            return True
        x = x.base
    return False


def _numbers(array: np.ndarray, op: str, name: str) -> np.ndarray:
    """Objects that are numbers, as float64; None is NaN."""
    for place, value in np.ndenumerate(array):
        if value is not None and not isinstance(value, numbers.Real | np.bool_):
            at = f"row {place[0]}, column {place[1]}" if len(place) == 2 else f"place {place}"
            got = str(value) if isinstance(value, str | bytes) else type(value)
            raise InputError(f"{op}: {name} must be numbers, got {got!r} in {at}")
    return array.astype(np.float64)


def _frame_array(frame: Any, op: str, name: str) -> np.ndarray:
    """The numbers of a pandas table; missing ones are NaN."""
    if len(set(frame.dtypes)) == 1 and frame.dtypes.iloc[0] in (np.float32, np.float64, np.int64):
        return frame.to_numpy()
    array = np.empty(frame.shape)
    for i, column in enumerate(map(str, frame.columns)):
        values = frame.iloc[:, i]
        if values.dtype.kind not in "biufO" or values.dtype == "category":
            values = values.astype(object)  # text, dates: the error names the first one
        if values.dtype.kind == "O":
            for row, value in enumerate(values):
                missing = value is None or value is sys.modules["pandas"].NA
                if not missing and not isinstance(value, numbers.Real | np.bool_):
                    raise InputError(
                        f"{op}: {name} must be numbers, got {value!r} in row {row}, "
                        f"column {column!r}"
                    )
        array[:, i] = values.to_numpy(np.float64, na_value=np.nan)
    return array


def _is_frame(x: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(x, pandas.DataFrame)


def _dtype(array: Array) -> torch.dtype:
    if isinstance(array, Tensor):
        return array.dtype
    return torch.uint8 if array.dtype == np.uint8 else torch.float64


def _to_tensor(array: Array) -> Tensor:
    """The array as a tensor of a type that torch computes with."""
    if isinstance(array, np.ndarray):
        kind = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
        array = np.ascontiguousarray(array, kind)
        if not array.flags.writeable:
            array = array.copy()  # torch would warn
        array = torch.from_numpy(array)
    wider = WIDER.get(array.dtype)
    return array if wider is None else array.to(wider)


def _check_shape(array: Array, op: str, name: str) -> None:
    """Raises where training rows are neither a table nor pictures."""
    wanted = f"{op}: {name} must be (rows, F), (rows, H, W) or (rows, C, H, W), got"
    shape = tuple(array.shape)
    if len(shape) == 1:
        raise InputError(f"{wanted} {shape}; of one feature, use x.reshape(-1, 1)")
    if len(shape) not in (2, 3, 4):
        raise InputError(
            f"{wanted} {shape}; use x.reshape(len(x), -1)" if shape else f"{wanted} ()"
        )
    if 0 in shape[1:]:
        raise InputError(f"{wanted} {shape}")
    if len(shape) == 4:
        C, H, W = shape[1:]
        if W <= MOST_CHANNELS < C and not (H == W != C):
            raise InputError(
                f"{wanted} {shape}, whose channels seem to be last; use x.transpose(0, 3, 1, 2), "
                "of a tensor x.permute(0, 3, 1, 2)"
            )


def _without_one_channel(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _remedy(array: Array, inputs: InputFormat) -> str:
    """A shape that does not fit, with the remedy where it is plain."""
    shape = tuple(array.shape)
    if shape == inputs.shape:
        return f"{shape}; of one row, use x[None]"
    if inputs.image is not None and shape[1:] == (*inputs.image[1:], inputs.image[0]):
        return f"{shape}; channels come first: use x.transpose(0, 3, 1, 2)"
    return str(shape)
