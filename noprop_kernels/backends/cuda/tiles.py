"""Tiles of each stage, from the constants of the compiled kernels."""

from functools import lru_cache
from types import MappingProxyType
from typing import Any

from ...plan import Plan
from ..gpu.layers import update_parts
from ..gpu.tiles import Tiles, cdiv
from . import extension


@lru_cache(maxsize=2)
def constants_of(module: Any) -> MappingProxyType[str, int]:
    return MappingProxyType(dict(module.constants()))


def constant(name: str) -> int:
    """A constant of csrc/cuda/program.h."""
    return constants_of(extension.module)[name]


def product_tile(B: int, columns: int) -> int:
    """Rows and columns of a tile of a product with B rows."""
    return extension.module.product_tile(B, columns)


def product_tiles(B: int, columns: int, precision: str = "") -> tuple[int, int]:
    side = product_tile(B, columns)
    return cdiv(B, side), cdiv(columns, side)


def row_tiles(B: int) -> int:
    return cdiv(B, constant("kRows"))


def vector_tiles(width: int) -> int:
    return cdiv(width, constant("kColumns"))


def weight_tiles(H: int, F: int) -> int:
    return cdiv(H, constant("kTileH")) * cdiv(F, constant("kTileF"))


def weight_tile_entries() -> int:
    return constant("kTileH") * constant("kTileF")


def update_tiles(plan: Plan, training: bool, moving: bool) -> int:
    """Tiles of all stages into which the table's update is split."""
    parts = update_parts(plan, training, moving)
    weights = sum(weight_tiles(part.H, part.F) for part in parts.weights)
    return weights + sum(vector_tiles(part.H) for part in (*parts.vectors, *parts.statistics))


def of_stages() -> Tiles:
    return Tiles(
        rows=constant("kRows"),
        embedding=constant("kEmbedding"),
        product=product_tiles,
        vector=vector_tiles,
        update=update_tiles,
    )
