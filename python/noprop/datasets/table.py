"""Tables: .csv, .tsv and .parquet, read by pandas; every error names the line and the column."""

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, extra, reading
from .memory import check_fits

KINDS = (".csv", ".tsv", ".parquet")
MOST_COLUMNS = 100_000
LONGEST_LINE = 1 << 24
LABELS = ("label", "labels", "class", "target", "y")
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


@dataclass
class Table:
    """Columns of a file.

    Attributes:
        frame: a DataFrame of pandas; columns are numbered where the file does not name them.
        named: whether the file names its columns.
        first_line: the line of row 0 in a text file; else None.
        separator: between the cells of a text file.
        names: the file's own columns, in its order.
    """

    path: Path
    frame: Any
    named: bool
    first_line: int | None
    separator: str = ""
    names: Sequence[str] = ()

    def place(self, row: int, column: str) -> str:
        where = f"row {row}" if self.first_line is None else f"line {self.first_line + row}"
        return f"{self.path}: {where}, column {column!r}"

    def numbers(self, columns: Sequence[str]) -> np.ndarray:
        """The values, (rows, columns) float64, or float32 or int64 where all columns are.

        Raises:
            InputError: a cell is no finite number.
        """
        for name in columns:
            values = self.frame[name]
            if values.dtype.kind not in "biuf":
                self._refuse_text(name)
            missing = np.asarray(values.isna())
            if missing.any():
                raise InputError(f"{self.place(int(missing.argmax()), name)}: there is no number")
            if values.dtype.kind == "f" and not np.isfinite(values.to_numpy(float)).all():
                row = int((~np.isfinite(values.to_numpy(float))).argmax())
                raise InputError(f"{self.place(row, name)}: {values[row]} is not finite")
        frame = self.frame[list(columns)]
        kinds = {str(kind) for kind in frame.dtypes}
        one = kinds.pop() if len(kinds) == 1 else ""
        return frame.to_numpy(one if one in ("float32", "int64") else np.float64)

    def labels(self, name: str) -> Any:
        """A column of labels, after checking that none is missing."""
        missing = np.asarray(self.frame[name].isna())
        if missing.any():
            raise InputError(f"{self.place(int(missing.argmax()), name)}: there is no label")
        values = self.frame[name]
        if values.dtype.kind in "iu" and self.separator:
            written = self._written(name)
            return written if any(re.match("[+-]?0[0-9]", text) for text in written) else values
        if values.dtype.kind in "biuf":
            return values
        texts = [v.strip() if isinstance(v, str) else v for v in values]
        numbers = [_is_number(str(text)) for text in texts]
        if not self.named and numbers[0] and len(numbers) > 1 and not any(numbers[1:]):
            raise InputError(
                f"{self.place(0, name)}: {texts[0]} is a number, the labels below are texts; name "
                "the columns in the first line, not all by numbers"
            )
        return texts

    def _written(self, name: str) -> list[str]:
        """The cells of a column as a text file has them: 007 is no 7."""
        at = self.names.index(name)
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, delimiter=self.separator, skipinitialspace=True)
            cells = [row[at].strip() for row in rows if row]
        return cells[self.named :][: len(self.frame)]

    def label_of(self, wanted: str | None) -> str:
        """The column of the labels: the given name or number, else the only candidate.

        Raises:
            InputError: there is no such column, or more than one candidate.
        """
        names = list(self.frame.columns)
        if wanted is not None:
            if wanted in names:
                return wanted
            if re.fullmatch("-?[0-9]{1,9}", wanted) and -len(names) <= int(wanted) < len(names):
                return names[int(wanted)]
            raise InputError(
                f"{self.path} has no column {wanted!r}, its columns are {_some(names)}"
            )
        found = [name for name in names if name.lower() in LABELS]
        if not found:
            found = [name for name in names if self.frame[name].dtype.kind not in "biuf"]
        if len(found) != 1:
            raise InputError(
                f"{self.path}: say which column holds the labels, by --label NAME or INDEX (-1 is "
                f"the last), or which file does, by --labels FILE; its columns are {_some(names)}"
            )
        return found[0]

    def _refuse_text(self, name: str) -> None:
        for row, value in enumerate(self.frame[name]):
            if value is None or isinstance(value, float) and value != value:
                continue
            try:
                float(value)
            except (TypeError, ValueError):
                raise InputError(
                    f"{self.place(row, name)}: {value!r} is no number; take the column out, or "
                    "code it as numbers"
                ) from None
        raise InputError(
            f"{self.place(0, name)}: a column of {self.frame[name].dtype} is no numbers"
        )


def read(path: Path) -> Table:
    """
    Raises:
        InputError: it cannot be read, or is no table.
        ImportError: pandas is not installed, or pyarrow for .parquet.
    """
    with extra("data"):
        import pandas
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("error", pandas.errors.ParserWarning)  # of cells that are left out
        table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)
    names = list(table.frame.columns)
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"{path} has the column {twice!r} twice")
    if table.frame.shape[0] == 0 or not names:
        raise InputError(f"{path} holds no rows")
    index = [name for name in names if re.fullmatch("__index_level_[0-9]+__", name)]
    if table.named and names[0].strip() in ("", "Unnamed: 0"):
        # the index that pandas writes: where rows were chosen, shuffled or joined, not 0, 1, 2
        index += names[:1] * pandas.api.types.is_integer_dtype(table.frame[names[0]])
    if len(index) == len(names):
        raise InputError(f"{path} holds no column but an index of pandas")
    table.frame = table.frame.drop(columns=index)
    return table


def _read_parquet(path: Path) -> Table:
    with extra("data"):
        from pyarrow import parquet
    with parquet.ParquetFile(path) as file:
        about = file.metadata
        if about.num_columns > MOST_COLUMNS:
            raise InputError(
                f"{path} has {about.num_columns:,} columns, more than {MOST_COLUMNS:,}"
            )
        check_fits(path, 8 * about.num_rows * about.num_columns)
        frame = file.read().to_pandas(ignore_metadata=True)
    frame.columns = [str(name) for name in frame.columns]
    return Table(path, frame, True, None)


def _read_text(path: Path) -> Table:
    import pandas

    with open(path, "rb") as file:
        begin = file.readline(LONGEST_LINE + 1)
        second = file.readline(LONGEST_LINE)
    if len(begin) > LONGEST_LINE:
        raise InputError(f"{path}: its first line is longer than {LONGEST_LINE:,} bytes")
    first, second = (line.decode("utf-8-sig").strip("\r\n") for line in (begin, second))
    if not first.strip():
        raise InputError(f"{path}: its first line is empty")
    tab = path.suffix.lower() == ".tsv" or ("\t" in first and "," not in first)
    separator = "\t" if tab else ";" if ";" in first and "," not in first else ","
    cells, below = (next(csv.reader([line], delimiter=separator), []) for line in (first, second))
    if len(cells) > MOST_COLUMNS:
        raise InputError(f"{path} has {len(cells):,} columns, over {MOST_COLUMNS:,}")
    check_fits(path, 8 * path.stat().st_size)  # a cell takes two bytes at least
    named = _is_header(cells, below)
    names = [cell.strip() for cell in cells] if named else [str(i) for i in range(len(cells))]
    try:
        frame = pandas.read_csv(
            path,
            sep=separator,
            header=None,
            skiprows=1 if named else 0,
            names=range(len(names)),  # the file's own names may occur twice
            index_col=False,
            encoding="utf-8-sig",
            skip_blank_lines=False,  # to count lines correctly
            skipinitialspace=True,
            low_memory=False,
            na_values=["?"],
            on_bad_lines="error",
        )
    except pandas.errors.ParserWarning as error:  # pandas would leave the last cells out
        raise InputError(
            f"{path}: a line has more cells than the first one, which must name every column and "
            "have no line above it"
        ) from error
    while len(frame) and frame.iloc[-1].isna().all():
        frame = frame.iloc[:-1]
    frame.columns = names
    return Table(path, frame, named, 2 if named else 1, separator, names)


def _is_header(cells: list[str], below: list[str]) -> bool:
    """Whether a first line names the columns of the lines below it."""
    numbers = [cell for cell in cells if _is_number(cell)]
    if not numbers:
        return any(cell.strip() for cell in cells) and cells != below
    if len(numbers) > 1 and numbers == [str(i) for i in range(len(numbers))]:
        return True  # pandas numbers columns without names so
    text = [not _is_number(a) and a.strip().lower() not in MISSING for a in cells]
    return any(t and _is_number(b) for t, b in zip(text, below, strict=False))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return cell.strip().lower() not in MISSING


def _some(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20:,} more" if len(names) > 20 else "")
