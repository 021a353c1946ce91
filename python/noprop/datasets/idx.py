"""IDX files, MNIST's format: two zero bytes, a type, the number of dimensions, these, the data."""

import gzip
import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, reading
from .memory import check_fits

CHUNK = 1 << 20
UINT8 = 8  # the type code of unsigned bytes; published files have no other


def find(folder: Path, name: str) -> Path | None:
    """The path of the file `name`, or None. It may be unpacked or .gz, have a dot before "idx", or
    lie in a folder of its own name, as some archives unpack.
    """
    for own in (name, name.replace("-idx", ".idx")):
        for packed in (own, f"{own}.gz"):
            for path in (folder / packed, folder / packed / own, folder / packed / name):
                if path.is_file():
                    return path
    return None


def folder_of(root: Path, name: str) -> Path:
    """The folder of a data set's files. torchvision, Kaggle and others use different ones: the
    first that has images, else the one that a download makes.
    """
    known = [
        root / name / "raw",
        root / name,
        root / name.lower() / "raw",
        root / name.lower(),
        root,
    ]
    if name == "FashionMNIST":
        known[2:2] = [root / "fashion-mnist", root / "fashion_mnist", root / "fashionmnist"]
        known.pop()  # files at the top of the folder are MNIST's
    return next((p for p in known if find(p, "train-images-idx3-ubyte")), known[0])


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
    start = 4 + 4 * dims
    with reading(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        header = file.read(start)
        if len(header) < start or header[:4] != bytes((0, 0, UINT8, dims)):
            raise InputError(f"{path} is no IDX file of unsigned bytes in {dims} dimensions")
        shape = struct.unpack(f">{dims}I", header[4:])
        count = math.prod(shape)
        check_fits(path, count)
        content = bytearray()
        while len(content) <= count and (part := file.read(min(CHUNK, count + 1 - len(content)))):
            content += part
    if len(content) != count:
        got = f"{len(content)}" if len(content) < count else "more"
        raise InputError(f"{path} must hold {count} bytes for its shape {shape}, got {got}")
    return torch.from_numpy(np.frombuffer(content, np.uint8).reshape(shape))


def read_split(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Images (rows, H, W) uint8 and labels (rows,) int64 of a split, named train or t10k."""
    images, labels = (
        find(folder, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
    )
    if images is None or labels is None:
        raise InputError(f"{folder} lacks the images or the labels of {prefix}")
    return read(images, 3), read(labels, 1).long()
