"""Pickles as data: containers, text, numbers and numpy arrays; what calls code is refused.

CIFAR is published as pickles of Python 2. Not even numpy's own reconstruction runs on a file's
say-so: an array is read as a shape, a type code and bytes, and is made here, from checked values.
"""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError

TYPE_CODES = frozenset("biuf")  # bool, signed, unsigned, float: nothing that holds references


class _Type:
    """Stands for numpy.dtype: REDUCE gives the code, BUILD the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in TYPE_CODES:
            raise ValueError(f"an array of type {code!r}")

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for an array between numpy's _reconstruct (empty) and BUILD (shape, type, bytes)."""

    value: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, type_, fortran, data = state
        if not isinstance(type_, _Type):
            raise ValueError("an array without a type")
        raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
        if min(shape, default=0) < 0 or math.prod(shape) * type_.dtype.itemsize != len(raw):
            raise ValueError(f"an array of shape {shape} with {len(raw)} bytes")
        flat = np.frombuffer(raw, type_.dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise ValueError(f"text in {encoding!r}")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes for Python 2
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain data")
        return _ADMITTED[module, name]


def read_dict(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle file; its arrays as numpy arrays, its Python 2 text as latin-1.

    Args:
        path: the file; its top level must be a dictionary with text keys.

    Raises:
        InputError: it is missing, cut short, corrupt, no dictionary, or asks for more than plain
            data.
    """
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (
        Exception
    ) as error:  # corrupt bytes raise nearly anything; nothing but our own code has run
        raise InputError(
            f"{path} is no usable pickle file: {error or type(error).__name__}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a dictionary, got {type(content).__name__}")
    return {
        str(key): value.value if isinstance(value, _Array) else value
        for key, value in content.items()
    }
