"""compiled: `stacked` with noise, loss and backward compiled; Dynamo does not trace fused AdamW."""

import torch

from ...problem.problem import Problem
from .stacked import Stacked


class Compiled(Stacked):
    def __init__(self, problem: Problem, threads: int, *, backend: str = "inductor") -> None:
        super().__init__(problem, threads, shared=True)
        self.losses = torch.compile(  # type: ignore[method-assign]
            self.losses, fullgraph=True, dynamic=False, backend=backend
        )
