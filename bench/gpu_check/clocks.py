"""The time of a step in the persistent CUDA kernel by stage: `python -m bench clocks --shape tiny`.

It needs an extension that counts: `CMAKE_ARGS=-DNOPROP_CUDA_CLOCKS=ON pip install .`. Thread block
0 reads its multiprocessor's clock after every stage and every barrier: `work` is its own tiles,
`wait` the barrier, which the slowest thread block of its group ends. Shares are of their sum, which
leaves out the moments fetched when a launch begins and written when it ends. Reading the clock
costs time, so `bench run` measures a step's time. Exit status 77: nothing can be counted; the last
line says why.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..contenders.contender import PRECISIONS, Missing
from ..contenders.ours import OursOnCUDA
from ..machine import gpu, host
from ..problem.problem import make_problem
from ..problem.sizes import GPU_SHAPES, REHEARSAL
from ..report.cells import markdown
from ..suites import command
from .sanitize import SKIPPED

SHAPES = GPU_SHAPES | {REHEARSAL.name: REHEARSAL}


def measure(shape: str, precision: str, K: int, device: str) -> list[dict[str, Any]]:
    """A row for each stage of a step, in order.

    Raises:
        Missing: the CUDA backend cannot run, or counts no cycles.
    """
    from noprop_kernels.backends.cuda import clocks

    problem = make_problem(SHAPES[shape], device=device, precision=precision)
    contender = OursOnCUDA(problem, 1)
    if reason := clocks.gap():
        raise Missing(f"the CUDA backend: {reason}")
    contender.steps(problem.indices(K, seed=1))  # warms up
    with clocks.count() as launches:
        contender.steps(problem.indices(K, seed=2))
    gpu.synchronize(problem.device)
    cycles = torch.stack([launch.cycles for launch in launches]).sum(0).tolist()
    return rows_of(launches[0].kinds, launches[0].tiles, cycles)


def rows_of(
    kinds: Sequence[str], tiles: Sequence[int], cycles: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """The shares; stages of a kind are numbered."""
    total = sum(map(sum, cycles))
    seen: Counter[str] = Counter()
    rows = []
    for kind, count, (work, wait) in zip(kinds, tiles, cycles, strict=True):
        seen[kind] += 1
        row = {"stage": f"{kind} {seen[kind]}", "tiles": count, "work": work, "wait": wait}
        rows.append(row | {"share": (work + wait) / total})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    total = sum(row["work"] + row["wait"] for row in rows)
    parts = ("work", "wait")
    cells = [
        (row["stage"], str(row["tiles"]), *(f"{row[part] / total:.1%}" for part in parts))
        for row in rows
    ]
    sums = (sum(row[part] for row in rows) / total for part in parts)
    cells.append(("all", "", *(f"{value:.1%}" for value in sums)))
    return markdown(("stage", "tiles of a slice", *parts), cells)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench clocks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", default="tiny", choices=SHAPES)
    parser.add_argument("--precision", default="tf32", choices=PRECISIONS)
    parser.add_argument("--K", type=int, default=50, help="steps")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, where no time counts")
    parser.add_argument("--out", type=Path, help="append a JSON line to this file")
    options = parser.parse_args(arguments)
    command.check_least(parser, options, K=1)
    device = "cpu" if options.rehearse else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU that PyTorch can use")
    try:
        rows = measure(options.shape, options.precision, options.K, device)
    except Missing as error:
        print(error)
        return SKIPPED
    print(table(rows))
    line = host.circumstances(options.shape, 1, options.precision)
    line |= {"contender": "ours_cuda", "maths": OursOnCUDA.maths, "K": options.K, "stages": rows}
    line["kind"] = "rehearsal" if options.rehearse else "clocks"
    if device == "cuda":
        line["machine"] |= gpu.describe(torch.device(device))
    command.append(options.out, [line])
    return 0
