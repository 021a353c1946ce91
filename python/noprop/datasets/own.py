"""The user's own data: .npz, .npy, a table or a folder of pictures; also rows to be predicted.

Where the file has no test rows, a fixed fifth of its rows is held out.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import labels
from ..errors import InputError, reading
from ..inputs import InputFormat
from . import arrays, images, table
from .dataset import Dataset
from .split import hold_out_classes

KINDS = (".npz", ".npy", *table.KINDS)
TEST_FRACTION = 0.2
HELD_OUT = "held out here, a fifth of the rows"
# accepted names of the arrays in an .npz file, in upper or lower case
NAMES = {
    "x": ("x", "x_train", "train_x", "data", "features", "images", "train_images", "train_data"),
    "y": ("y", "y_train", "train_y", "label", "labels", "target", "targets", "train_labels"),
    "x_test": ("x_test", "test_x", "test_images", "test_data"),
    "y_test": ("y_test", "test_y", "test_labels"),
}
FEW_CLASSES = 20  # up to so many distinct labels are classes, never numbers to predict
Say = Callable[[str], None]


def is_own(name: str) -> bool:
    """Whether the name of a data set is a path."""
    return Path(name).suffix.lower() in KINDS or os.sep in name or Path(name).expanduser().is_dir()


def load(path: Path, label: str | None = None, labels_file: Path | None = None) -> Dataset:
    """The data set in a file or a folder.

    Args:
        path: .npz with x and y, and x_test and y_test where the split is yours; .npy of rows, with
            `labels_file`; .csv, .tsv or .parquet, with a column of labels or `labels_file`; or a
            folder with a folder of pictures for each class, or such ones in train and test.
        label: the column of the labels, by name or number, or their array in .npz.
        labels_file: .npy, or a table of one column.

    Raises:
        InputError: it cannot be read, or what it holds does not fit.
        ImportError: a package that reads it is not installed.
    """
    if not path.exists():
        raise InputError(f"{path} cannot be read: No such file or directory")
    suffix = path.suffix.lower()
    if label is not None and (labels_file is not None or suffix not in (".npz", *table.KINDS)):
        raise InputError(f"--label names a column of a table or an array of .npz, got {path}")
    if labels_file is not None and suffix not in (".npy", *table.KINDS):
        raise InputError(f"--labels is for .npy and tables, got {path}")
    if path.is_dir():
        return _from_pictures(path)
    if suffix == ".npz":
        return _from_npz(path, label)
    if suffix == ".npy":
        if labels_file is None:
            raise InputError(f"{path} holds rows alone: name the file of their labels by --labels")
        x = arrays.read_npy(path)
        return _made(path, x, _labels_in(labels_file, len(x)))
    if suffix in table.KINDS:
        return _from_table(path, label, labels_file)
    raise InputError(f"{path} must be a folder, or end in {', '.join(KINDS)}")


def read_rows(path: Path, inputs: InputFormat, say: Say = lambda line: None) -> torch.Tensor:
    """Rows to be predicted, in any format that `load` reads; labels are not needed and ignored.

    Args:
        path: the file; also a picture, or a folder of pictures.
        inputs: the model's input format.
        say: called with a line on what is left out.

    Returns:
        (rows, F), as `InputFormat.rows`.

    Raises:
        InputError: it cannot be read, or its rows do not fit; the text names line and column.
        ImportError: a package that reads it is not installed.
    """
    path, suffix = path.expanduser(), path.suffix.lower()
    if not path.exists():
        raise InputError(f"{path} cannot be read: No such file or directory")
    if path.is_dir() or suffix in images.KINDS:
        files = images.pictures(path) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path} holds no picture ({', '.join(images.KINDS)})")
        if inputs.kind != "bytes" or len(inputs.shape) == 1:
            raise InputError(
                f"{path}: the model was trained on {inputs.features} numbers, no pictures"
            )
        shape = inputs.shape
        grey = len(shape) == 2 or shape[0] == 1
        return inputs.rows(images.read(files, shape[-2:] if grey else shape), str(path))
    if suffix == ".npz":
        names = arrays.names_of(path)
        found = [n for n in names if n.lower() in NAMES["x"]] or names
        if len(found) != 1:
            raise InputError(f"{path} must hold x, or one array alone, got {names}")
        return inputs.rows(arrays.read_npz(path, found[0]), str(path))
    if suffix == ".npy":
        return inputs.rows(arrays.read_npy(path), str(path))
    if suffix in table.KINDS:
        return _table_rows(table.read(path), inputs, say)
    raise InputError(f"{path} must be a folder or a picture, or end in {', '.join(KINDS)}")


def _table_rows(content: table.Table, inputs: InputFormat, say: Say) -> torch.Tensor:
    path, names = content.path, list(content.frame.columns)
    wanted = inputs.columns if inputs.columns is not None and content.named else None
    label = inputs.label if inputs.columns is None or content.named else None
    if label in names and len(names) > inputs.features:
        say(f"{path}: the column {label!r}, which held the labels in training, is left out")
        names.remove(label)
    if wanted is None:
        if len(names) != inputs.features:
            raise InputError(f"{path} must have {inputs.features} columns, got {len(names)}")
        return inputs.rows(content.numbers(names), str(path))
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"{path} must have the column {missing[0]!r}, as in training, got {names}")
    if more := [name for name in names if name not in wanted]:
        raise InputError(f"{path} has a column {more[0]!r} that training had not: take it out")
    return inputs.rows(content.numbers(wanted), str(path))


def _from_npz(path: Path, label: str | None) -> Dataset:
    names = arrays.names_of(path)
    found = {}
    for role, known in NAMES.items():
        wanted = [n for n in names if n == label] if role == "y" else []
        if role == "y" and label is not None and not wanted:
            raise InputError(f"{path} has no array {label!r}, its arrays are {sorted(names)}")
        own = wanted or [n for n in names if n.lower() in known]
        if len(own) > 1:
            raise InputError(f"{path}: {role} may be any of {own}; keep one, or name y by --label")
        found |= {role: own[0]} if own else {}
    if not {"x", "y"} <= found.keys() or ("x_test" in found) != ("y_test" in found):
        raise InputError(
            f"{path} must hold x and y (or X_train and y_train, data and labels, ...), and x_test "
            f"with y_test or neither, got {sorted(names)}"
        )
    content = {role: arrays.read_npz(path, name) for role, name in found.items()}
    return _made(path, **content)


def _from_table(path: Path, label: str | None, labels_file: Path | None) -> Dataset:
    content = table.read(path)
    columns = list(content.frame.columns)
    own = None
    if labels_file is None:
        own = content.label_of(label)
        columns.remove(own)
        y = content.labels(own)
    else:
        y = _labels_in(labels_file, len(content.frame))
    if not columns:
        raise InputError(
            f"{path} has no column beside {own!r}; columns are separated by commas, semicolons or "
            "tabs"
        )
    x = content.numbers(columns)
    inputs = InputFormat((len(columns),), "numbers", tuple(columns) if content.named else None, own)
    return _made(path, x, y, inputs=inputs)


def _from_pictures(path: Path) -> Dataset:
    with reading(path):
        train, test = images.split_folders(path)
        files, y = images.by_class(train)
        x = images.read(files)
        if test is None:
            return _made(path, x, y)
        files, y_test = images.by_class(test)
        return _made(path, x, y, images.read(files, x.shape[1:]), y_test)


def _labels_in(path: Path, rows: int) -> Any:
    path = path.expanduser()
    if not path.exists():
        raise InputError(f"{path} cannot be read: No such file or directory")
    if path.suffix.lower() == ".npy":
        return arrays.read_npy(path)
    content = table.read(path)
    names = list(content.frame.columns)
    if len(names) != 1:
        raise InputError(f"{path} must have one column, of labels, got {len(names)}: {names[:9]}")
    found = content.labels(names[0])
    if content.named and len(found) == rows - 1:
        return [names[0], *found]  # among texts, the first looks like a column's name
    return found


def _made(
    path: Path, x: Any, y: Any, x_test: Any = None, y_test: Any = None, inputs: Any = None
) -> Dataset:
    """A data set from arrays, split where there are no test rows."""
    where = str(path)
    inputs = inputs or InputFormat.of(x, where)
    if len(x) == 0:
        raise InputError(f"{where} holds no rows")
    index, names = labels.encode(y, None, where)
    if len(index) != len(x):
        raise InputError(f"{where}: {len(x)} rows with {len(index)} labels")
    if len(names) == 1:
        raise InputError(f"{where}: all labels are {names[0]!r}; there must be 2 classes at least")
    if len(names) > max(FEW_CLASSES, len(index) / 2):
        raise InputError(
            f"{where}: {len(index):,} rows have {len(names):,} different labels "
            f"({labels.shown(names)}), too few rows for each: are these numbers to be predicted, "
            "or identifiers?"
        )
    rows = inputs.rows(x, where)
    made: dict[str, Any] = {"classes": len(names), "inputs": inputs, "class_names": names}
    if x_test is None:
        train, test = hold_out_classes(index, TEST_FRACTION, where)
        return Dataset(
            path.stem, rows[train], index[train], rows[test], index[test], test=HELD_OUT, **made
        )
    unused = torch.bincount(index, minlength=len(names)) == 0  # one-hot labels
    if unused.any():
        raise InputError(f"{where}: no row is of the class {names[int(unused.nonzero()[0])]!r}")
    index_test, _ = labels.encode(y_test, names, where, "y_test")
    rows_test = inputs.rows(x_test, where, "x_test")
    return Dataset(path.stem, rows, index, rows_test, index_test, test="of your own", **made)
