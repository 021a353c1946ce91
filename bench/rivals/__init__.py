"""The rivals: plain PyTorch, none knows our library, each written as its own experts would."""

from functools import partial

from ..contender import Entry
from .baddbmm_sgd import BaddbmmSGD
from .block_major import BlockMajor
from .compiled import Compiled
from .end_to_end import EndToEnd
from .processes import Processes
from .sequential import Sequential
from .stacked import Stacked
from .step_compiled import StepCompiled

RIVALS = (
    Entry("sequential", Sequential),
    Entry("block_major", BlockMajor, slow=True),
    Entry("processes", Processes, min_threads=2),
    Entry("stacked_shared", partial(Stacked, shared=True)),
    Entry("stacked_expanded", partial(Stacked, shared=False), slow=True),
    Entry("compiled", Compiled, compiles=True, slow=True),
    Entry("step_compiled", partial(StepCompiled, in_place=True), compiles=True),
    Entry(
        "step_compiled_functional", partial(StepCompiled, in_place=False), compiles=True, slow=True
    ),
    Entry(
        "step_compiled_tuned",
        partial(StepCompiled, in_place=True, tuned=True),
        compiles=True,
        slow=True,
    ),
    Entry(
        "step_compiled_functional_tuned",
        partial(StepCompiled, in_place=False, tuned=True),
        compiles=True,
        slow=True,
    ),
    Entry("baddbmm_sgd", BaddbmmSGD, slow=True),
    Entry("end_to_end", EndToEnd, slow=True),
    Entry("end_to_end_checkpointed", partial(EndToEnd, checkpointed=True), slow=True),
    Entry("end_to_end_accumulated", partial(EndToEnd, parts=4), slow=True),
    Entry("end_to_end_in_backward", partial(EndToEnd, in_backward=True), slow=True),
)
