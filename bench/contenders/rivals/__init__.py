"""The rivals: plain PyTorch without our library, each written as its own experts would."""

import importlib.util
from functools import partial
from typing import Any

from ...machine.host import cores
from ...problem.problem import Problem
from ..contender import PRECISIONS, Contender, Entry
from .baddbmm_sgd import BaddbmmSGD
from .block_major import BlockMajor
from .compiled import Compiled
from .end_to_end import EndToEnd
from .processes import Processes
from .sequential import Sequential
from .stacked import Stacked
from .step_compiled import StepCompiled


def step_compiled(name: str, slow: bool = False, **how: Any) -> Entry:
    make = partial(StepCompiled, **how)
    return Entry(name, make, compiles=True, slow=slow, precisions=PRECISIONS)


def jax_step(problem: Problem, threads: int) -> Contender:
    """Imports jax late: it starts its threads on import."""
    from .jax_step import JaxStep

    return JaxStep(problem, threads)


JAX = ()
if importlib.util.find_spec("jax"):
    JAX = (Entry("jax_step", jax_step, compiles=True, slow=True, min_threads=cores()),)

SHARED = partial(Stacked, shared=True)
EXPANDED = partial(Stacked, shared=False)

RIVALS = (
    Entry("sequential", Sequential, precisions=PRECISIONS),
    Entry("block_major", BlockMajor, slow=True),
    Entry("processes", Processes, min_threads=2),
    Entry("stacked_shared", SHARED, precisions=PRECISIONS),
    Entry("stacked_expanded", EXPANDED, slow=True),
    Entry("compiled", Compiled, compiles=True, slow=True, precisions=PRECISIONS),
    step_compiled("step_compiled", in_place=True),
    step_compiled("step_compiled_functional", in_place=False, slow=True),
    step_compiled("step_compiled_tuned", in_place=True, tuned=True, slow=True),
    step_compiled("step_compiled_functional_tuned", in_place=False, tuned=True, slow=True),
    *JAX,
    Entry("baddbmm_sgd", BaddbmmSGD, slow=True, precisions=("float32", "tf32")),
    Entry("end_to_end", EndToEnd, slow=True),
    Entry("end_to_end_checkpointed", partial(EndToEnd, checkpointed=True), slow=True),
    Entry("end_to_end_accumulated", partial(EndToEnd, parts=4), slow=True),
    Entry("end_to_end_in_backward", partial(EndToEnd, in_backward=True), slow=True),
)
