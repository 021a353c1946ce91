"""The number of tiles of each stage: a table asks for it, a backend provides it."""

from collections.abc import Callable
from dataclasses import dataclass

from ...plan import Plan


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Tiles:
    """Tiles of a slice, by the kind of stage.

    Args:
        rows: of a tile of the head, the noise and a gather.
        embedding: rows and columns of a tile of d_W_embed.
        product: tiles along B and along the columns of (B, K) @ (K, columns), by (B, columns,
            precision).
        vector: tiles of what sums over the rows of (B, H), by H.
        update: tiles of all that a step moves, by (plan, training, whether statistics move too).
    """

    rows: int
    embedding: int
    product: Callable[[int, int, str], tuple[int, int]]
    vector: Callable[[int], int]
    update: Callable[[Plan, bool, bool], int]
