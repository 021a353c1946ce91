"""Times steps over T, B and H: `python -m bench scaling [--quick] [--shape small_T1 ...]`.

`small` with another number of blocks (T), rows (B) or hidden units (H), as `bench run` times it, on
all cores: ours, the best of the rivals (step_compiled), and stacked_shared. Beside each, the floor:
the products at the machine's measured multiply-add peak, and then the update's traffic, 24 bytes a
parameter, at the rate of a copy as large as the state of all blocks (bench.report.lines.floor_ms).
"""

from collections.abc import Sequence
from functools import partial

from ..problem.sizes import SCALING_SHAPES
from ..report.cells import aligned
from ..report.lines import Line
from ..report.suite_rows import scaling_rows
from ..report.tables import plain_table
from .check import check_steps
from .rounds import measure_rounds
from .run import TRAINING, run
from .suite import Suite

NAMES = ("ours", "step_compiled", "stacked_shared")


def table(lines: Sequence[Line]) -> str:
    return plain_table(lines) + "\n\n" + aligned(scaling_rows(lines))


SUITE = Suite(
    prog="scaling",
    about=__doc__,
    quick="four shapes",
    entries=[entry for entry in TRAINING.entries if entry.name in NAMES],
    shapes=SCALING_SHAPES,
    quick_shapes=("small_T1", "small_B8", "small_H64", "small"),
    Ks=(20,),
    check=check_steps,
    measure=measure_rounds,
    table=table,
    kind="scaling",
    all_threads=True,
)
main = partial(run, SUITE)
