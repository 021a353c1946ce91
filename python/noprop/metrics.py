"""metrics.jsonl in a run's folder: one JSON object a line, one line an epoch, of several
seeds one of each; where units are trained apart, one of each share, with its "units"."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import strict_json
from .files import atomic_file
from .units import Units

NAME = "metrics.jsonl"


def append(folder: Path, values: dict[str, Any]) -> None:
    """Adds a line; `values` must have the "epoch" (from 1)."""
    with open(folder / NAME, "a", encoding="utf-8") as file:
        file.write(strict_json.dumps(values) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All complete lines, in order; a crash may have cut the last one short."""
    path = folder / NAME
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(values, dict) or not isinstance(values.get("epoch"), int):
            break
        lines.append(values)
    return lines


def write(folder: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Replaces all lines; after a crash the old ones or the new ones are there."""
    with atomic_file(folder / NAME) as file:
        file.write("".join(strict_json.dumps(line) + "\n" for line in lines).encode())


def rewind(folder: Path, epochs: int, units: Units | None = None) -> None:
    """Drops the lines after the first `epochs` epochs, which a resumed run writes again; of some
    units their own alone.
    """

    def stays(line: dict[str, Any]) -> bool:
        own = line.get("units")
        others = units is not None and not (isinstance(own, list) and {*own} & {*units})
        return line["epoch"] <= epochs or others

    if (folder / NAME).is_file():
        kept = filter(stays, read(folder))
        write(folder, kept)
