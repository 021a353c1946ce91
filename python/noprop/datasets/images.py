"""Pictures, read by Pillow: a folder with a folder for each class, or pictures without classes."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, extra, reading
from .memory import check_fits

KINDS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# names of the folders of a split, in upper or lower case, the first that is there
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")
GREY = ("1", "L", "LA")
COLOUR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX")


def split_folders(folder: Path) -> tuple[Path, Path | None]:
    """The folders of the training and of the test pictures, or the folder itself and None where no
    folder of one of the names TRAIN has folders."""
    own = {path.name.lower(): path for path in _folders(folder)}
    train = next((own[name] for name in TRAIN if name in own and _folders(own[name])), None)
    if train is None:
        return folder, None
    return train, next((own[name] for name in TEST if name in own), None)


def by_class(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures of a folder and the folders of their classes, each in sorted order.

    Raises:
        InputError: there are no class folders, or no pictures in one of them.
    """
    files, names = [], []
    classes = _folders(folder)
    if not classes:
        raise InputError(f"{folder} must have a folder of pictures for each class, got no folder")
    for path in classes:
        if not (own := pictures(path)):
            raise InputError(f"{path} holds no picture ({', '.join(KINDS)})")
        files += own
        names += [path.name] * len(own)
    return files, names


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, without those that archives and file servers add."""
    found = (path for path in folder.iterdir() if path.is_dir())
    return sorted(path for path in found if not path.name.startswith((".", "__MACOSX", "@eaDir")))


def pictures(folder: Path) -> list[Path]:
    """All pictures in a folder and those within it."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in KINDS and p.is_file())
    return sorted(p for p in found if not p.name.startswith("."))


def read(files: list[Path], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Pictures of one size.

    Args:
        files: at least one file.
        shape: the shape to require, (H, W) for grey or (3, H, W) for colour; None: the size of the
            first picture, and colour where any picture has it.

    Returns:
        (rows, H, W) or (rows, 3, H, W) uint8.

    Raises:
        InputError: a file is no picture, or of another size or kind.
        ImportError: Pillow is not installed.
    """
    sizes, grey = [], True
    for path in files:
        with reading(path), _opened(path) as picture:
            if picture.mode not in GREY + COLOUR:
                raise InputError(f"{path} must have 8 bits for each colour, got {picture.mode}")
            grey = grey and picture.mode in GREY
            sizes.append(picture.size)
    size = sizes[0] if shape is None else (shape[-1], shape[-2])
    for path, own in zip(files, sizes, strict=True):
        if own != size:
            like = files[0].name if shape is None else "those of the training"
            raise InputError(
                f"{path} must have {size[0]} x {size[1]} pixels, as {like}, got {own[0]} x {own[1]}"
            )
    if shape is None:
        shape = (size[1], size[0]) if grey else (3, size[1], size[0])
    check_fits(files[0].parent, len(files) * int(np.prod(shape)), f"{len(files):,} pictures")
    rows = np.empty((len(files), *shape), np.uint8)
    for row, path in zip(rows, files, strict=True):
        with reading(path), _opened(path) as picture:
            pixels = np.asarray(picture.convert("L" if len(shape) == 2 else "RGB"))
        row[:] = pixels if len(shape) == 2 else pixels.transpose(2, 0, 1)
    return rows


def _opened(path: Path) -> Any:
    """Opens a picture without reading its pixels."""
    with extra("data"):
        from PIL import Image
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # about odd metadata
        return Image.open(path)
