"""Times steps between a user's torch operations: `python -m bench interleaved [--quick]`.

One step a call, in loops whose other operations are PyTorch's, on its threads: rows gathered by
indexing (`indexed`), and an encoder, tanh(Linear(x)), with its backward and AdamW (`encoded`).
`ours` is train_steps with K = 1, which gathers by itself: what the same step costs without torch in
between. As in `bench run`, a contender's steps must be a float64 twin's before it is timed, and
contenders take turns. A ratio compares contenders of the same maths.
"""

from functools import partial

import torch
from torch import Tensor

from ..contenders.contender import Entry
from ..contenders.encoded import OursEncoded, StackedEncoded
from ..contenders.ours import Ours
from ..contenders.rivals import SHARED
from ..contenders.rivals.sequential import Sequential
from ..problem.sizes import SHAPES, Shape
from .check import check_steps
from .rounds import measure_rounds
from .run import run
from .suite import Suite

ODD = Shape("odd", B=97, F=333, H=131, D=10, M=10, T=6)  # no size a multiple of a vector


class OursIndexed(Ours):
    """One train_step a step, on rows that PyTorch gathers on its threads."""

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        self.refuse(eps)
        steps = (self.blocks.train_step(self.X[rows], self.Y[rows]) for rows in indices)
        return torch.stack([step.loss for step in steps])


SUITE = Suite(
    prog="interleaved",
    about=__doc__,
    quick="odd and tiny alone",
    entries=(
        Entry("ours", Ours),
        Entry("ours_indexed", OursIndexed),
        Entry("stacked_shared", SHARED),
        Entry("sequential", Sequential),
        Entry("ours_encoded", OursEncoded),
        Entry("stacked_encoded", partial(StackedEncoded, shared=True)),
    ),
    shapes={ODD.name: ODD, **SHAPES},
    quick_shapes=("odd", "tiny"),
    Ks=(1,),
    check=check_steps,
    measure=measure_rounds,
    kind="interleaved",
    all_threads=True,
)
main = partial(run, SUITE)
