"""A table in a .csv file that grows by rows, and whose end can give way to other rows."""

import csv
import io
from pathlib import Path
from typing import Any

from .errors import InputError
from .files import atomic_file

Row = dict[str, Any]


class Table:
    """A .csv file with a column of whole numbers that never fall, its key.

    Args:
        path: it need not exist.
        key: the name of the column.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.columns: list[str] = []

    def rewind(self, first: int) -> None:
        """Drops the rows from the key `first` on, and a last line that a crash has cut.

        Raises:
            InputError: the file is no such table.
        """
        if not self.path.is_file():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        rows = [*csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))]
        try:
            kept = [row for row in rows if int(row[self.key]) < first]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path} has no column {self.key!r} of whole numbers") from error
        self._write([*(rows[0] if rows else ())], kept)

    def add(self, rows: list[Row]) -> None:
        """Appends rows, alike in their columns; where these are more than the file's, it gets them.

        None and NaN are empty cells.
        """
        if not rows:
            return
        if missing := [name for name in rows[0] if name not in self.columns]:
            old: list[Row] = []
            if self.columns:
                with open(self.path, encoding="utf-8", newline="") as file:
                    old = [*csv.DictReader(file)]
            self._write(self.columns + missing, old)
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerows(map(cells, rows))

    def _write(self, columns: list[str], rows: list[Row]) -> None:
        """Replaces the file by one of these columns and rows."""
        text = io.StringIO(newline="")
        if columns:
            writer = csv.DictWriter(text, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        with atomic_file(self.path) as file:
            file.write(text.getvalue().encode())
        self.columns = columns


def cells(row: Row) -> Row:
    """A row with empty cells for what is no number."""
    return {name: "" if it is None or it != it else it for name, it in row.items()}
