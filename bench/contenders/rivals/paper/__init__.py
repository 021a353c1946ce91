"""The rivals at the paper's blocks: each form in which PyTorch's or JAX's experts would write them.

All but one read cropped images: the pixels that a pool drops are never computed.
"""

import importlib.util
from functools import partial

import torch

from ....machine.host import cores
from ....problem.problem import Problem
from ...contender import Contender, Entry, Missing
from ..processes import Processes
from .eager import Eager, EagerBlockMajor
from .grouped import Grouped
from .joined import Joined
from .unfolded import Unfolded
from .vmapped import Vmapped


def jax_step(problem: Problem, threads: int) -> Contender:
    """Imports jax late: it starts its threads on import.

    Raises:
        Missing: it is not installed.
    """
    if not importlib.util.find_spec("jax"):
        raise Missing("jax is not installed")
    from .jax_step import PaperJaxStep

    return PaperJaxStep(problem, threads)


PAPER_RIVALS = (
    Entry("eager", Eager),
    Entry("eager_whole", partial(Eager, cropped=False)),
    Entry("eager_contiguous", partial(Eager, memory_format=torch.contiguous_format), slow=True),
    Entry("processes", partial(Processes, make=EagerBlockMajor), min_threads=2),
    Entry("joined", Joined),
    Entry("grouped", Grouped),
    Entry("vmapped", Vmapped, slow=True),
    Entry("unfolded", Unfolded, slow=True),
    Entry("compiled", partial(Eager, compiled=True), compiles=True, slow=True),
    Entry("jax_step", jax_step, compiles=True, slow=True, min_threads=cores()),
)
