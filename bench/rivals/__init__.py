"""The rivals: plain PyTorch, none knows our library, each written as its own experts would."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

from ..contender import PRECISIONS, Contender, Entry
from ..machine import cores
from ..problem import Problem
from .baddbmm_sgd import BaddbmmSGD
from .block_major import BlockMajor
from .compiled import Compiled
from .end_to_end import EndToEnd
from .flex_gemm import FlexGemm
from .graphed import Graphed
from .processes import Processes
from .sequential import Sequential
from .stacked import Stacked
from .step_compiled import StepCompiled

BOTH = ("cpu", "cuda")


def step_compiled(
    name: str, slow: bool = False, where: tuple[str, ...] = BOTH, **how: Any
) -> Entry:
    make = partial(StepCompiled, **how)
    return Entry(name, make, compiles=True, slow=slow, precisions=PRECISIONS, where=where)


def graphed(name: str, make: Callable[..., Contender], **more: Any) -> Entry:
    made = partial(Graphed, make=make)
    more.setdefault("precisions", PRECISIONS)
    return Entry(f"{name}_graphed", made, where=("cuda",), **more)


def jax_step(problem: Problem, threads: int) -> Contender:
    """Imported here, since jax takes its threads when it is."""
    from .jax_step import JaxStep

    return JaxStep(problem, threads)


JAX = ()
if importlib.util.find_spec("jax"):
    JAX = (Entry("jax_step", jax_step, compiles=True, slow=True, min_threads=cores()),)

SHARED = partial(Stacked, shared=True)
EXPANDED = partial(Stacked, shared=False)

RIVALS = (
    Entry("sequential", Sequential, precisions=PRECISIONS, where=BOTH),
    Entry("block_major", BlockMajor, slow=True),
    Entry("processes", Processes, min_threads=2),
    Entry("stacked_shared", SHARED, precisions=PRECISIONS, where=BOTH),
    Entry("stacked_expanded", EXPANDED, slow=True, where=BOTH),
    Entry("compiled", Compiled, compiles=True, slow=True, precisions=PRECISIONS, where=BOTH),
    step_compiled("step_compiled", in_place=True),
    step_compiled("step_compiled_functional", in_place=False, slow=True),
    step_compiled("step_compiled_tuned", in_place=True, tuned=True, slow=True, where=("cpu",)),
    step_compiled(
        "step_compiled_functional_tuned", in_place=False, tuned=True, slow=True, where=("cpu",)
    ),
    *JAX,
    Entry("baddbmm_sgd", BaddbmmSGD, slow=True, precisions=("float32", "tf32"), where=BOTH),
    Entry("end_to_end", EndToEnd, slow=True, where=BOTH),
    Entry("end_to_end_checkpointed", partial(EndToEnd, checkpointed=True), slow=True, where=BOTH),
    Entry("end_to_end_accumulated", partial(EndToEnd, parts=4), slow=True, where=BOTH),
    Entry("end_to_end_in_backward", partial(EndToEnd, in_backward=True), slow=True, where=BOTH),
)

# options of torch.compile for a GPU: early launch (PDL), several kernels in one launch, products in
# Triton alone; an option that this torch does not know is told as the contender's error
PDL = {"triton.enable_pdl": True}
COMBO = PDL | {"combo_kernels": True}
TRITON = PDL | {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"}
OPTIONS = {"pdl": PDL, "combo": COMBO, "triton": TRITON}
IN_PLACE = partial(StepCompiled, in_place=True)

# after the contenders that they capture, whose compiled code is then in the compiler's cache
GPU_RIVALS = (
    graphed("sequential", Sequential, slow=True),
    graphed("stacked_shared", SHARED),
    graphed("stacked_expanded", EXPANDED, slow=True),
    graphed("compiled", Compiled, compiles=True, slow=True),
    graphed("step_compiled", IN_PLACE, compiles=True),
    *(
        step_compiled(f"step_compiled_{name}", True, ("cuda",), in_place=True, options=options)
        for name, options in OPTIONS.items()
    ),
    *(
        graphed(f"step_compiled_{name}", partial(IN_PLACE, options=options), compiles=True)
        for name, options in OPTIONS.items()
    ),
    graphed("baddbmm_sgd", BaddbmmSGD, precisions=("float32", "tf32")),
    Entry(
        "flex_gemm",
        partial(FlexGemm, in_place=False),
        compiles=True,
        precisions=PRECISIONS,
        where=("cuda",),
    ),
)
