"""metrics.jsonl in a run's folder: one JSON object a line, one line an epoch."""

import json
from pathlib import Path
from typing import Any

from .files import atomic_file

NAME = "metrics.jsonl"


def append(folder: Path, values: dict[str, Any]) -> None:
    """Adds a line; `values` must have the "epoch" (from 1)."""
    with open(folder / NAME, "a") as file:
        file.write(json.dumps(values) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    """All whole lines, in order; the last one may have been cut short by a crash."""
    path = folder / NAME
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def rewind(folder: Path, epochs: int) -> None:
    """Drops the lines after the first `epochs` epochs: a resumed run writes them again."""
    lines = read(folder)
    kept = [line for line in lines if line.get("epoch", 0) <= epochs]
    if (folder / NAME).is_file():
        with atomic_file(folder / NAME) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
