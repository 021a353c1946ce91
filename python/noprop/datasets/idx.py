"""IDX files, MNIST's format: two zero bytes, a type, the number of dimensions, these, the data."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError

UINT8 = 8  # the type code of unsigned bytes, the only one that is published


def find(folder: Path, name: str) -> Path | None:
    """The file `name`, unpacked or as `name`.gz, or None."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read(path: Path, dims: int) -> Tensor:
    """The array of an IDX file of unsigned bytes, plain or gzipped.

    Args:
        path: the file; gzipped where its name ends in .gz.
        dims: the number of dimensions that it must have.

    Returns:
        uint8 tensor.

    Raises:
        InputError: it cannot be read, or its header, its type or its length is wrong.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    start = 4 + 4 * dims
    if len(content) < start or content[:4] != bytes((0, 0, UINT8, dims)):
        raise InputError(f"{path} is no IDX file of unsigned bytes in {dims} dimensions")
    shape = struct.unpack(f">{dims}I", content[4:start])
    if math.prod(shape) != len(content) - start:
        raise InputError(
            f"{path} must hold {math.prod(shape)} bytes for its shape {shape}, "
            f"got {len(content) - start}"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def read_split(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Images (rows, H, W) uint8 and labels (rows,) int64 of a split, named train or t10k."""
    images, labels = (
        find(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
    )
    if images is None or labels is None:
        raise InputError(f"{folder} lacks the images or the labels of {prefix}")
    return read(images, 3), read(labels, 1).long()
