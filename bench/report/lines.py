"""Reads, groups and compares result lines. Of several runs of the same thing the latest counts."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..problem.sizes import (
    CONTINUOUS_SHAPES,
    GPU_SHAPES,
    INFERENCE_SHAPES,
    PAPER_SHAPES,
    SAMPLER_SHAPES,
    SCALING_SHAPES,
)

SHAPES = (
    *(GPU_SHAPES, PAPER_SHAPES, CONTINUOUS_SHAPES, SAMPLER_SHAPES, INFERENCE_SHAPES),
    SCALING_SHAPES,
)
ORDER = list(dict.fromkeys(name for shapes in SHAPES for name in shapes))

Line = dict[str, Any]
Group = tuple[str, int, int]  # shape, threads, K


def read(paths: Iterable[Path]) -> list[Line]:
    """The latest line of each contender, shape, threads, K, kind, precision and machine.

    A folder's files are of one machine, whose name it has: clouds give different ones one name.
    """
    latest: dict[tuple, Line] = {}
    for path in paths:
        for text in path.read_text().splitlines():
            line = json.loads(text) | {"folder": path.resolve().parent.name}
            names = ("contender", "maths", "shape", "threads", "K", "kind", "precision")
            key = (*(line.get(name) for name in names), machine_of(line))
            if key not in latest or latest[key]["date"] <= line["date"]:
                latest[key] = line
    return list(latest.values())


def machine_of(line: Line) -> tuple[str | None, ...]:
    """Folder, processor, the GPU that the line is about, and the kernels' instruction set; or
    None."""
    machine, versions = line["machine"], line.get("versions", {})
    return line.get("folder"), machine["cpu"], machine.get("gpu"), versions.get("isa")


def timed(lines: Iterable[Line], kind: str | None = None) -> list[Line]:
    """The lines of one kind whose contenders ran; None: those of `bench run` and `bench infer`."""
    return [line for line in lines if "error" not in line and line.get("kind") == kind]


def groups(lines: Iterable[Line], kind: str | None = None) -> dict[Group, list[Line]]:
    """Timed lines by shape, threads and K, in the order of the shapes."""
    found: dict[Group, list[Line]] = {}
    for line in timed(lines, kind):
        found.setdefault((line["shape"], line["threads"], line["K"]), []).append(line)
    place = {name: i for i, name in enumerate(ORDER)}
    return dict(
        sorted(found.items(), key=lambda item: (place.get(item[0][0], len(place)), item[0][1:]))
    )


def is_ours(contender: str) -> bool:
    """Whether a line is ours: the names of our ways of calling begin with `ours`, no rival's
    does."""
    return contender == "ours" or contender.startswith("ours_")


def best_rival(group: Sequence[Line], maths: str) -> Line | None:
    """The fastest rival with the same maths."""
    same = [line for line in group if line["maths"] == maths]
    rivals = [line for line in same if not is_ours(line["contender"])]
    return min(rivals, key=lambda line: line["ms_per_step"], default=None)


def our_lines(group: Sequence[Line], maths: str) -> list[Line]:
    """Ours in each way of calling it."""
    return [line for line in group if line["maths"] == maths and is_ours(line["contender"])]


Peak = tuple[int, str]  # threads, and a GPU's precision


def peak_of(line: Line) -> Peak:
    """The key of a peak: a number of threads, and on a GPU a precision of products."""
    return line["threads"], line["precision"] if line["machine"].get("gpu") else ""


def highest_peaks(lines: Iterable[Line]) -> dict[Peak, float]:
    """The machine's multiply-add peaks: other work can only have lowered them."""
    peaks: dict[Peak, float] = {}
    for line in lines:
        peaks[peak_of(line)] = max(line["peak_gflops"], peaks.get(peak_of(line), 0.0))
    return peaks


def rescaled(line: Line, peaks: dict[Peak, float]) -> Line:
    """The line with the highest peak for its key, and its share of that peak."""
    if "peak_gflops" not in line:
        return line
    peak = peaks[peak_of(line)]
    share = line.get("share_of_peak")
    more = {} if share is None else {"share_of_peak": share * line["peak_gflops"] / peak}
    return line | {"peak_gflops": peak} | more


def traffic(line: Line) -> int:
    """Bytes of weights and optimizer that a training step at K = 1 reads and writes, each once."""
    return 2 * (line["memory_bytes"]["weights"] + line["memory_bytes"]["optimizer"])


def floor_ms(line: Line) -> float:
    """The floor under a training step, in milliseconds: flop / peak + bytes / copy rate.

    The time of a step whose products run at the measured multiply-add peak, and whose update then
    reads and writes every weight and moment once (24 bytes a parameter with AdamW), as fast as a
    copy between arrays that are together as large as that state: at a cache's rate where it fits
    into a cache, at memory's where it does not. A step can be faster only if it does both at the
    same time, or keeps the state in a nearer cache from step to step.
    """
    products = line["flop_per_step"] / (line["peak_gflops"] * 1e6)
    return products + traffic(line) / (line["state_gb_s"] * 1e6)


def floor_share(line: Line) -> float:
    """The share of peak of a step that takes floor_ms."""
    return line["flop_per_step"] / (line["peak_gflops"] * 1e6) / floor_ms(line)
