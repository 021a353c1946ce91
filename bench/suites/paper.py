"""Times a training step of the paper's blocks: `python -m bench paper [--quick] [--out FILE]`.

The DT block of arXiv:2503.24322v2 with its convolutions, batch norm and dropout, at MNIST's and
CIFAR-10's shape. As in `bench run`, a contender's steps must be a float64 twin's before it is
timed, here with dropout given, and contenders take turns, at K = 1.

Pixels that a pool drops need not be computed: rivals crop their images (`eager_whole` does not),
and the share of peak counts operations on live pixels. Beside it stands the share on all, nominal.
"""

from collections.abc import Sequence
from functools import partial

from ..contenders.contender import Entry
from ..contenders.ours import Ours, OursTrainStep
from ..contenders.rivals.paper import PAPER_RIVALS
from ..problem.sizes import PAPER_SHAPES
from ..report.cells import aligned
from ..report.lines import Line
from ..report.suite_rows import paper_rows
from .check import check_steps
from .rounds import measure_rounds
from .run import run
from .suite import Lineup, Suite


def measure(lineup: Lineup, suite: Suite, rounds: int, end: float) -> list[Line]:
    """The rounds' lines, with the operations of a step on all pixels."""
    nominal = {"nominal_flop_per_step": lineup.problem.shape.nominal_flop}
    return [line | nominal for line in measure_rounds(lineup, suite, rounds, end)]


def table(lines: Sequence[Line]) -> str:
    return aligned(paper_rows(lines))


SUITE = Suite(
    prog="paper",
    about=__doc__,
    quick="paper-mnist, without the slow contenders",
    entries=(Entry("ours", Ours), Entry("ours_train_step", OursTrainStep), *PAPER_RIVALS),
    shapes=PAPER_SHAPES,
    quick_shapes=("paper-mnist",),
    Ks=(1,),
    check=check_steps,
    measure=measure,
    table=table,
    kind="paper",
)
main = partial(run, SUITE)
