"""numpy's .npz and .npy files. A header's sizes are checked against the bytes of the file."""

import math
import zipfile
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy

from ..errors import InputError, reading
from .memory import check_fits

CHUNK = 1 << 20
HEADERS: dict[tuple[int, ...], Any] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def names_of(path: Path) -> list[str]:
    """The arrays in an .npz file.

    Raises:
        InputError: it is no .npz file.
    """
    with reading(path), _archive(path) as archive:
        return [info.filename.removesuffix(".npy") for info in archive.infolist()]


def read_npz(path: Path, name: str) -> np.ndarray:
    """An array of an .npz file.

    Raises:
        InputError: it is missing, damaged, holds Python objects, or does not fit into memory.
    """
    with reading(path), _archive(path) as archive:
        info = next(i for i in archive.infolist() if i.filename.removesuffix(".npy") == name)
        with archive.open(info) as member:
            shape, order, dtype = _header(path, name, member)
            count = math.prod(shape) * dtype.itemsize
            if member.tell() + count != info.file_size:
                raise InputError(f"{path}: {name} must hold {count:,} bytes for its shape {shape}")
            check_fits(path, count, name)
            content = memoryview(bytearray(count))
            at = 0
            while at < count:
                got = member.read(min(CHUNK, count - at))
                if not got:
                    raise InputError(f"{path}: {name} is cut short")
                content[at : at + len(got)] = got
                at += len(got)
            member.read(1)  # reads to the end, where zipfile checks the CRC
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file, memory-mapped copy-on-write: writes stay in memory.

    Raises:
        InputError: it cannot be read, is damaged, or holds Python objects.
    """
    with reading(path), open(path, "rb") as file:
        shape, order, dtype = _header(path, "it", file)
        start, size = file.tell(), path.stat().st_size
        if start + math.prod(shape) * dtype.itemsize != size:
            raise InputError(
                f"{path} must hold {math.prod(shape) * dtype.itemsize:,} bytes for its shape "
                f"{shape}, got {size - start:,}"
            )
        if 0 in shape or not shape:
            raise InputError(f"{path} holds no rows, its shape is {shape}")
        return np.memmap(path, dtype, mode="c", offset=start, shape=shape, order=order)


def _archive(path: Path) -> zipfile.ZipFile:
    with open(path, "rb") as file:
        if file.read(2) != b"PK":
            raise InputError(f"{path} is no .npz file: numpy.savez writes one")
    return zipfile.ZipFile(path)


Header = tuple[tuple[int, ...], Literal["C", "F"], np.dtype]


def _header(path: Path, name: str, file: IO[bytes]) -> Header:
    if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
        raise InputError(f"{path}: {name} is no array of numpy")
    version = tuple(file.read(2))
    read_header = HEADERS.get(version)
    if read_header is None:
        raise InputError(f"{path}: {name} is an array of an unknown format {version}")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise InputError(
            f"{path}: {name} holds Python objects, which are not read; save it as numbers, or as "
            "text by .astype(str)"
        )
    if dtype.names or min(shape, default=0) < 0:
        raise InputError(f"{path}: {name} must be a plain array, got {dtype} of shape {shape}")
    return shape, "F" if fortran else "C", dtype
