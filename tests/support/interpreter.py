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
    """Gives Triton's interpreter, where it is asked for and installed, this product.

    It also replaces the functions of triton.language once a launch, no more at each call of a
    device function, which is a quarter of its time.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        operands = (operand.data.astype(d.data.dtype) for operand in (a, b))
        return TensorHandle(in_order(*operands, d.data), d.dtype.scalar)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)

    replaced: set[int] = set()  # the modules, in this launch
    launch, replace = GridExecutor.__call__, interpreter._patch_lang

    def launch_once(self: Any, *args: Any, **kwargs: Any) -> None:
        replaced.clear()
        try:
            launch(self, *args, **kwargs)
        finally:
            replaced.clear()

    def replace_once(function: Any) -> Any:
        seen = {
            id(value) for value in function.__globals__.values() if value is tl or value is tl.core
        }
        if seen <= replaced:
            return interpreter._LangPatchScope()
        replaced.update(seen)
        return replace(function)

    patch.setattr(GridExecutor, "__call__", launch_once)
    patch.setattr(interpreter, "_patch_lang", replace_once)
