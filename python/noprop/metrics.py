"""metrics.jsonl in a run's folder: one JSON object a line, one line an epoch, of several
seeds one of each."""

import json
from pathlib import Path
from typing import Any

from . import strict_json
from .files import atomic_file

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


def rewind(folder: Path, epochs: int) -> None:
    """Drops the lines after the first `epochs` epochs, which a resumed run writes again."""
    if (folder / NAME).is_file():
        kept = [line for line in read(folder) if line["epoch"] <= epochs]
        with atomic_file(folder / NAME) as file:
            file.write("".join(strict_json.dumps(line) + "\n" for line in kept).encode())
