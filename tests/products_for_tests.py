"""Products whose sums have one order, for tests that compare bits.

Triton's interpreter multiplies by numpy.matmul. Its sums belong to the host's BLAS: their order may
change with the processor, the number of rows and the place of an operand in memory. A GPU's do not,
so the tests give the interpreter a product with the order that kernels promise.
"""

import importlib.util
import os
from typing import Any

import numpy as np
import pytest


def in_order(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """total + a @ b: one accumulator, ascending over the summed index, each operation rounded."""
    for k in range(a.shape[-1]):
        total = total + a[..., k, None] * b[..., k, None, :]
    return total


def mend_interpreter(patch: pytest.MonkeyPatch) -> None:
    """Gives Triton's interpreter, where it is asked for and installed, this product."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        operands = (operand.data.astype(d.data.dtype) for operand in (a, b))
        return TensorHandle(in_order(*operands, d.data), d.dtype.scalar)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
