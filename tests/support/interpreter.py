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

    It also takes two thirds of the interpreter's time away (`quicken`).
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, *precision: Any) -> Any:
        operands = (operand.data.astype(d.data.dtype) for operand in (a, b))
        return TensorHandle(in_order(*operands, d.data), d.dtype.scalar)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    quicken(patch)


def quicken(patch: pytest.MonkeyPatch) -> None:
    """The same operations on the same numbers, with less of Python's time around them."""
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterOptions

    # it computes whether integers overflow, and reports it only with `debug`
    options = InterpreterOptions(sanitize_overflow=False)
    assert not options.debug
    patch.setattr(interpreter.interpreter_builder, "options", options)

    numpy_s, find = {}, interpreter._get_np_dtype

    def numpy_type(kind: Any) -> Any:
        name = kind.scalar.name
        if name not in numpy_s:
            numpy_s[name] = find(kind)
        return numpy_s[name]

    patch.setattr(interpreter, "_get_np_dtype", numpy_type)

    # attributes that a type and its tensors derive from its name and shape are computed once
    types: dict[tuple, dict] = {}
    make_type, make_tensor = tl.core.block_type.__init__, tl.core.tensor.__init__

    def new_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
        if key not in types:
            make_type(self, element_ty, shape)
            types[key] = self.__dict__
        self.__dict__ = types[key]

    def new_tensor(self: Any, handle: Any, type: Any) -> None:
        known = type.__dict__.get("of_tensors")
        if known is None:
            make_tensor(self, handle, type)
            known = {key: value for key, value in self.__dict__.items() if key != "handle"}
            type.__dict__["of_tensors"] = known
        self.__dict__.update(known, handle=handle)

    patch.setattr(tl.core.block_type, "__init__", new_type)
    patch.setattr(tl.core.tensor, "__init__", new_tensor)

    # functions of triton.language stay replaced, not only for a launch
    replaced: set[int] = set()  # the names of a module that a function was seen with
    replace = interpreter._patch_lang

    def replace_once(function: Any) -> Any:
        if id(function.__globals__) not in replaced:
            replaced.add(id(function.__globals__))
            replace(function)
        return interpreter._LangPatchScope()  # which restores nothing

    patch.setattr(interpreter, "_patch_lang", replace_once)
