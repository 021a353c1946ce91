"""The rivals on a GPU, strongest first, since a shape's time may end before the last one.

A contender in a graph follows its plain form, so that its code is in the compiler's cache. An
option that this torch's compiler does not know is reported as the contender's error.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..contender import PRECISIONS, Contender, Entry
from .baddbmm_sgd import BaddbmmSGD
from .compiled import Compiled
from .end_to_end import EndToEnd
from .flex_gemm import FlexGemm
from .graphed import Graphed
from .sequential import Sequential
from .stacked import Stacked
from .step_compiled import StepCompiled

Make = Callable[..., Contender]

# early launch (PDL), several kernels in one launch, products in Triton alone
PDL = {"triton.enable_pdl": True}
OPTIONS = {
    "pdl": PDL,
    "triton": PDL | {"max_autotune_gemm": True, "max_autotune_gemm_backends": "TRITON"},
    "combo": PDL | {"combo_kernels": True},
}
ROUNDED = ("float32", "tf32")  # a setting of the process rounds all of PyTorch's products


def both(name: str, make: Make, **how: Any) -> tuple[Entry, Entry]:
    """A contender, and K steps of it in one CUDA graph."""
    how = {"precisions": PRECISIONS} | how
    graph = partial(Graphed, make=make)
    return Entry(name, make, **how), Entry(f"{name}_graphed", graph, **how)


def compiled_step(name: str, slow: bool = False, **how: Any) -> tuple[Entry, Entry]:
    make = partial(StepCompiled, in_place=True, **how)
    return both(name, make, compiles=True, slow=slow)


FUNCTIONAL = partial(StepCompiled, in_place=False)
END_TO_END = {
    "end_to_end": EndToEnd,
    "end_to_end_checkpointed": partial(EndToEnd, checkpointed=True),
    "end_to_end_accumulated": partial(EndToEnd, parts=4),
    "end_to_end_in_backward": partial(EndToEnd, in_backward=True),
}

GPU_RIVALS = (
    *both("stacked_shared", partial(Stacked, shared=True)),
    *compiled_step("step_compiled"),
    *(
        entry
        for name, options in OPTIONS.items()
        for entry in compiled_step(f"step_compiled_{name}", slow=True, options=options)
    ),
    *both("baddbmm_sgd", BaddbmmSGD, precisions=ROUNDED),
    Entry("flex_gemm", partial(FlexGemm, in_place=False), compiles=True, precisions=PRECISIONS),
    Entry("step_compiled_functional", FUNCTIONAL, compiles=True, slow=True, precisions=PRECISIONS),
    *both("sequential", Sequential, slow=True),
    *both("stacked_expanded", partial(Stacked, shared=False), slow=True),
    *both("compiled", Compiled, compiles=True, slow=True),
    *(Entry(name, make, slow=True) for name, make in END_TO_END.items()),
)
