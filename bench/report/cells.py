"""How tables are written: fixed-width text for a terminal, markdown for a page, and their cells."""

from collections.abc import Iterable, Sequence

from .lines import Line

Rows = list[tuple[str, ...]]


def aligned(rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Fixed-width columns, the first `left` of them to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def text(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(cells)
        )

    return "\n".join(text(row).rstrip() for row in rows)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def mebibytes(line: Line) -> str:
    step = line["memory_bytes"]["step"]
    return "" if step is None else f"{step / 2**20:.1f}"


def milliseconds(value: float) -> str:
    """A number with at least three significant digits."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def spread(line: Line) -> str:
    return (
        f"{milliseconds(line['ms_per_step'])} "
        f"({milliseconds(line['ms_q20'])} to {milliseconds(line['ms_q80'])})"
    )


def ranged(line: Line, name: str) -> str:
    """A number of the line, with its range where the line has one; "" without the number."""
    ends = [f"{line[end]:.2f}" for end in (f"{name}_q20", f"{name}_q80") if end in line]
    text = f"{line[name]:.2f}" if name in line else ""
    return f"{text} ({' to '.join(ends)})" if ends else text


def share(line: Line, name: str) -> str:
    return "" if line.get(name) is None else f"{line[name]:.0%}"
