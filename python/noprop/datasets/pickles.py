"""Reads pickles as data: containers, text, numbers and numpy arrays. Whatever calls code is
refused.

CIFAR is published as pickles of Python 2. A file may not even call numpy's own reconstruction: an
array is read as a shape, a type code and bytes, and built here from the checked values.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, reading
from .memory import check_fits

GROWTH = 4  # of text that is stored as bytes
TYPE_CODES = frozenset("biuf")  # bool, signed, unsigned, float: types without references


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

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        self.encode = encode

    def __setstate__(self, state: tuple) -> None:
        _, shape, type_, fortran, data = state
        if not isinstance(type_, _Type):
            raise ValueError("an array without a type")
        raw = self.encode(data) if isinstance(data, str) else bytes(data)
        if min(shape, default=0) < 0 or math.prod(shape) * type_.dtype.itemsize != len(raw):
            raise ValueError(f"an array of shape {shape} with {len(raw)} bytes")
        flat = np.frombuffer(raw, type_.dtype)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _Unpickler(pickle.Unpickler):
    """Reads a file of `size` bytes; its arrays and texts together may be no larger."""

    def __init__(self, file: io.BytesIO, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self.left = GROWTH * size
        self.admitted = {
            ("numpy.core.multiarray", "_reconstruct"): self._array,
            ("numpy._core.multiarray", "_reconstruct"): self._array,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Type,
            ("_codecs", "encode"): self._latin1,  # how Python 3 writes bytes for Python 2
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain data")
        return self.admitted[module, name]

    def _array(self, *_: Any) -> _Array:
        return _Array(self._latin1)

    def _latin1(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise ValueError(f"text in {encoding!r}")
        self.left -= len(text)  # the memo may name one text many times
        if self.left < 0:
            raise pickle.UnpicklingError("it makes more of its text than the file is long")
        return text.encode("latin1")


def _check_opcodes(raw: bytes) -> None:
    """Refuses opcodes that make the unpickler allocate more memory than the file fills."""
    for opcode, argument, _ in pickletools.genops(raw):
        if "PUT" in opcode.name and argument is not None and int(argument) > len(raw):
            raise pickle.UnpicklingError(f"it numbers {argument} objects in {len(raw)} bytes")


def read_dict(path: Path) -> dict[str, Any]:
    """Reads the dictionary in a pickle file; arrays become numpy arrays, Python 2 text is latin-1.

    Args:
        path: the file; its top level must be a dictionary with text keys.

    Raises:
        InputError: it is missing, cut short, corrupt, no dictionary, or asks for more than plain
            data.
    """
    with reading(path, "is no usable pickle file"):
        check_fits(path, path.stat().st_size)
        raw = path.read_bytes()
        _check_opcodes(raw)
        content = _Unpickler(io.BytesIO(raw), len(raw)).load()
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a dictionary, got {type(content).__name__}")
    return {
        str(key): value.value if isinstance(value, _Array) else value
        for key, value in content.items()
    }
