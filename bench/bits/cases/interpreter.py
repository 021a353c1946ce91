"""Triton's dot in the interpreter, for commits whose tests do not replace it themselves."""

from typing import Any

import numpy as np


def product(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
    """Replaces Triton's dot in the interpreter by sums in ascending order: numpy's order depends on
    the host."""
    from triton.runtime.interpreter import TensorHandle

    left, right = (operand.data.astype(d.data.dtype) for operand in (a, b))
    total = np.array(d.data)
    for k in range(left.shape[-1]):
        total = total + left[..., k, None] * right[..., k, None, :]
    return TensorHandle(total, d.dtype.scalar)
