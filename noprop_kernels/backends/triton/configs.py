"""Static launch configurations of the kernels; none depends on B, n or the device.

The block fixes the order of sums inside a program, so it may depend on the plan and the precision
alone.
"""

from dataclasses import dataclass
from functools import lru_cache

from ...plan import Plan
from ..gpu.layers import update_parts
from ..gpu.tiles import Tiles, cdiv

ROWS = 16  # of a program of the head and of the noise
EMBEDDING = 16  # rows and columns of a program of d_W_embed


def power_of_2(size: int, least: int, most: int) -> int:
    """The smallest power of 2 that is at least `size`, within bounds."""
    return max(least, min(most, 1 << (size - 1).bit_length()))


@dataclass(frozen=True)
class Blocks:
    """A product's tile, rows x columns, and the depth of a step along the sum."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def depths(self, widths: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(power_of_2(width, 16, self.depth) for width in widths)


def dense_blocks(columns: int, precision: str) -> Blocks:
    """For (B, K) @ (K, columns)."""
    width = power_of_2(columns, 16, 64)
    if precision == "float32":  # multiply-adds, no matrix instruction
        return Blocks(32, width, 32, 4, 3)
    if columns >= 1024:
        return Blocks(128, 128, 32, 8, 3)
    return Blocks(64, width, 32, 4, 3)


def update_blocks() -> Blocks:
    """For (H, B) @ (B, F): rows x columns of a weight, depth along B."""
    return Blocks(64, 64, 32, 8, 2)  # the optimizer's tiles need the registers of 8 warps


def vector_block(width: int) -> int:
    """Columns of a program that sums over rows."""
    return power_of_2(width, 16, 32)


@dataclass(frozen=True)
class UpdateTiles:
    """Programs of the update by what they update; each entry begins with its first and last tile.

    Args:
        weights: (first, last, H, F, IN_WIDTH, COLUMN, BLOCK_F) of each source of each layer.
        vectors: (first, last, H, SUM) of each bias and norm parameter.
        statistics: (first, last, H) of each running statistic.
        total: programs of a slice.
    """

    weights: tuple[tuple[int, ...], ...]
    vectors: tuple[tuple[int, ...], ...]
    statistics: tuple[tuple[int, ...], ...]
    total: int


@lru_cache(maxsize=256)
def update_tiles(plan: Plan, training: bool, moving: bool) -> UpdateTiles:
    blocks, parts = update_blocks(), update_parts(plan, training, moving)
    first, weights, vectors, statistics = 0, [], [], []
    for _, _, _, H, F, in_width, column in parts.weights:
        block = power_of_2(F, 16, blocks.columns)
        last = first + cdiv(H, blocks.rows) * cdiv(F, block)
        weights.append((first, last, H, F, in_width, column, block))
        first = last
    for part in parts.vectors:
        last = first + cdiv(part.H, blocks.rows)
        vectors.append((first, last, part.H, int(part.sum)))
        first = last
    for part in parts.statistics:
        last = first + cdiv(part.H, blocks.rows)
        statistics.append((first, last, part.H))
        first = last
    return UpdateTiles(tuple(weights), tuple(vectors), tuple(statistics), first)


def product_tiles(B: int, columns: int, precision: str) -> tuple[int, int]:
    blocks = dense_blocks(columns, precision)
    return cdiv(B, blocks.rows), cdiv(columns, blocks.columns)


TILES = Tiles(
    rows=ROWS,
    embedding=EMBEDDING,
    product=product_tiles,
    vector=lambda width: cdiv(width, vector_block(width)),
    update=lambda plan, training, moving: update_tiles(plan, training, moving).total,
)
