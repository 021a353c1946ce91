"""flex_gemm: `step_compiled` with the update as the epilogue of each weight gradient's product.

It uses PyTorch's own interface for that, of torch 2.14 and later.
"""

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ...problem.problem import Problem, Weights
from .step_compiled import Activations, State, StepCompiled, adamw, factors

MODULE = "torch._higher_order_ops.flex_gemm"
flex_gemm = None
if importlib.util.find_spec(MODULE):
    flex_gemm = importlib.import_module(MODULE).flex_gemm


class FlexGemm(StepCompiled):
    """
    Raises:
        ImportError: this torch does not have it.
    """

    def __init__(self, problem: Problem, threads: int, **how: Any) -> None:
        if flex_gemm is None:
            raise ImportError(f"flex_gemm: needs torch 2.14 or later, found {torch.__version__}")
        super().__init__(problem, threads, **how)

    @staticmethod
    def updated(state: State, p: Weights, saved: Activations, d_logits: Tensor, *now: Any) -> State:
        assert flex_gemm is not None  # or __init__ would have raised
        now = tuple(number.clone() for number in now)  # operands must not share memory
        products, biases = factors(p, saved, d_logits)
        new = adamw(state, biases, *now)
        for name, pair in products.items():
            w, m, v = (part[name] for part in state)

            def epilogue(g: Tensor, w: Tensor = w, m: Tensor = m, v: Tensor = v) -> Any:
                own = adamw(({"": w}, {"": m}, {"": v}), {"": g.float()}, *now)
                return tuple(part[""] for part in own)

            for part, value in zip(new, flex_gemm(torch.bmm, pair, epilogue), strict=True):
                part[name] = value
        return new
