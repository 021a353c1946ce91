"""Times a training step of CT and FM: `python -m bench continuous [--quick] [--out FILE]`.

One block of NoProp-CT (the paper's weight) or NoProp-FM, or ten replicas of it with other seeds and
the same rows, under Adam with an L2 penalty: the MLP with a third stem for t, and the paper's block
at MNIST's shape. A shape's name ends in the replicas. Each row of a step has a t of its own; rivals
draw t and noise by torch in the timed step, and crop their images to what results depend on.

As in `bench run`, a contender's steps must be a float64 twin's before it is timed, here with t,
noise and dropout given, and contenders take turns. Only contenders of the same maths, ct or fm, are
compared. The paper's block is timed at K = 1 alone.

One block is also timed with its output head and a learned gamma (maths "coupled"), 64 wide, at the
paper's block 1,024: ours by Coupled.step, the rivals by one loss and one Adam. The maths "apart" is
our block and head with a fixed gamma, which have nothing in common.
"""

from collections.abc import Sequence
from functools import partial

from ..contenders.contender import Entry
from ..contenders.coupled import OursCoupled
from ..contenders.ours import Ours, OursTrainStep
from ..contenders.rivals.continuous import CONTINUOUS_RIVALS, both, single
from ..problem.sizes import CONTINUOUS_SHAPES
from ..report.cells import aligned
from ..report.lines import Line
from ..report.suite_rows import continuous_rows, coupling_rows
from ..report.tables import plain_table
from .check import check_steps
from .rounds import measure_rounds
from .run import run
from .suite import Lineup, Suite


def measure(lineup: Lineup, suite: Suite, rounds: int, end: float) -> list[Line]:
    """The rounds' lines; a step of convolutions is long enough for one a call."""
    for turn in lineup.checked:
        if lineup.problem.shape.image is not None:
            turn.samples = {K: samples for K, samples in turn.samples.items() if K == 1}
    return measure_rounds(lineup, suite, rounds, end)


def table(lines: Sequence[Line]) -> str:
    shown = [plain_table(lines), aligned(continuous_rows(lines))]
    if len(rows := coupling_rows(lines)) > 1:
        shown.append(aligned(rows))
    return "\n\n".join(shown)


SUITE = Suite(
    prog="continuous",
    about=__doc__,
    quick="ten replicas, without the slow contenders",
    entries=(
        *both("ours", Ours),
        *both("ours_train_step", OursTrainStep, single=True),
        Entry("ours_step", partial(OursCoupled, maths="coupled"), single=True, fits=single),
        Entry("ours_step", partial(OursCoupled, maths="apart"), single=True, fits=single),
        *CONTINUOUS_RIVALS,
    ),
    shapes=CONTINUOUS_SHAPES,
    quick_shapes=("small_R10", "paper-mnist_R10"),
    Ks=(1, 50),
    check=check_steps,
    measure=measure,
    table=table,
    kind="continuous",
)
main = partial(run, SUITE)
