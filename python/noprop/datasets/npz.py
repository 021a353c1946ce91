"""Your own data: FILE.npz with x and y, and x_test and y_test where the split is yours."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import InputFormat
from .dataset import Dataset
from .split import hold_out

TEST_FRACTION = 0.2


def read(path: Path) -> Dataset:
    """The data set of an .npz file.

    x is (rows, F), (rows, H, W) or (rows, C, H, W), uint8 or floating point; y is (rows,),
    integers from 0. Images are normalised per channel, uint8 rows as one channel, floating-point
    rows per feature. Without x_test and y_test a fifth of the rows, always the same ones, are the
    test.

    Raises:
        InputError: it cannot be read, or an array is missing or does not fit.
    """
    try:
        with open(path, "rb") as raw:  # numpy itself leaves a broken file open
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise InputError(f"{path} is no .npz file")
            wanted = ("x", "y", "x_test", "y_test")
            arrays = {name: np.asarray(file[name]) for name in wanted if name in file}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not {"x", "y"} <= arrays.keys() or ("x_test" in arrays) != ("y_test" in arrays):
        raise InputError(
            f"{path} must hold x and y, and x_test with y_test or neither, got {sorted(arrays)}"
        )
    x, y = _rows(path, "x", arrays["x"]), _labels(path, "y", arrays["y"])
    if len(x) != len(y):
        raise InputError(f"{path}: {len(x)} rows with {len(y)} labels")
    if "x_test" in arrays:
        x_test = _rows(path, "x_test", arrays["x_test"])
        y_test = _labels(path, "y_test", arrays["y_test"])
    else:
        if len(x) < 2:
            raise InputError(f"{path}: a split needs at least 2 rows, got {len(x)}")
        train, test = hold_out(len(x), TEST_FRACTION)
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
    if len(y) == 0 or len(y_test) == 0:
        raise InputError(f"{path} holds no rows")
    return Dataset(
        name=path.stem,
        x=x,
        y=y,
        x_test=x_test,
        y_test=y_test,
        classes=max(2, int(y.max()) + 1, int(y_test.max()) + 1),
        inputs=InputFormat.of(arrays["x"]),
    )


def _rows(path: Path, name: str, array: np.ndarray) -> Tensor:
    if array.ndim not in (2, 3, 4) or 0 in array.shape[1:]:
        raise InputError(
            f"{path}: {name} must be (rows, F), (rows, H, W) or (rows, C, H, W), got {array.shape}"
        )
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"{path}: {name} must be uint8 or floating point, got {array.dtype}")
    kind = np.uint8 if array.dtype == np.uint8 else np.float32
    return torch.from_numpy(np.ascontiguousarray(array, kind)).flatten(1)


def _labels(path: Path, name: str, array: np.ndarray) -> Tensor:
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{path}: {name} must be (rows,) integers, got {array.shape} {array.dtype}"
        )
    return torch.from_numpy(array.astype(np.int64))
