"""Placement of a launch's state: groups of thread blocks, and moments in shared memory.

No bit depends on these decisions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..gpu.stages import Table
from ..gpu.tiles import cdiv


@dataclass(frozen=True)
class Layout:
    """Thread blocks of a launch.

    Args:
        groups: number of groups; group g takes the slices g, g + groups, ...
        blocks: thread blocks per group.
        cluster: whether a group is a thread-block cluster.
    """

    groups: int
    blocks: int
    cluster: bool = False


@dataclass(frozen=True)
class Placement:
    """Placement of the state of a call of many steps.

    Args:
        layout: its thread blocks.
        kept, tiles: a slice's weight tiles with moments in shared memory, and all of them.
        working: bytes in global memory of the slices at work: all their state and workspace.
        l2: bytes of the device's L2 cache.
    """

    layout: Layout
    kept: int
    tiles: int
    working: int
    l2: int

    @property
    def fits_l2(self) -> bool:
        return self.working <= self.l2


def phases(stages: Iterable[dict[str, Any]]) -> tuple[int, ...]:
    """Tiles between two barriers."""
    found, tiles = [], 0
    for stage in stages:
        tiles += stage["tiles"]
        if stage["barrier"]:
            found.append(tiles)
            tiles = 0
    return tuple(found)


def phases_of(table: Table) -> tuple[int, ...]:
    """The same of a table for one slice."""
    return tuple(item.expects for item in table.stages if item.expects)


@lru_cache(maxsize=256)
def layout(n: int, tiles: tuple[int, ...], total: int, clusters: tuple[int, ...] = ()) -> Layout:
    """Divides `total` thread blocks that run at the same time among n slices.

    A group's step costs the most tiles of any of its thread blocks in each phase, and a barrier
    after it; a group runs cdiv(n, groups) slices one after another. The cheapest layout is chosen,
    among equals the one with the fewest groups, whose workspace is the smallest.

    Args:
        n: slices.
        tiles: tiles of a slice, by phase.
        total: thread blocks that run at the same time.
        clusters: number of clusters of 1, 2, ... thread blocks that run at the same time, where
            groups are clusters.
    """

    def cost(groups: int) -> int:
        blocks = blocks_of(groups)
        turns = sum(cdiv(phase, blocks) for phase in tiles)
        return cdiv(n, groups) * (turns + (len(tiles) if blocks > 1 else 0))

    def blocks_of(groups: int) -> int:
        if clusters:
            fits = (b for b, held in enumerate(clusters, 1) if held >= groups and b <= max(tiles))
            return max(fits, default=1)
        return max(1, min(total // groups, max(tiles)))

    groups = min(range(1, max(1, min(n, total)) + 1), key=cost)
    blocks = blocks_of(groups)
    return Layout(groups, blocks, bool(clusters) and blocks > 1)


def keep_moments(
    stages: Iterable[dict[str, Any]], blocks: int, floats_of_tile: int, room: int
) -> int:
    """Chooses the tiles whose moments stay in shared memory, in stage order; returns the floats
    used.

    Args:
        stages: stages of a program, with `first` set.
        blocks: thread blocks of a group, all with the same layout of their shared memory.
        floats_of_tile: floats of the rule's moments of a tile; 0: it has none.
        room: free floats of shared memory."""
    used = 0
    for stage in stages:
        if stage["kind"] != "update_weight":
            continue
        own = cdiv(stage["tiles"], blocks)
        kept = min(own, (room - used) // floats_of_tile) if floats_of_tile else 0
        stage["resident"], stage["resident_tiles"] = used, kept
        used += kept * floats_of_tile
    return used


def place(
    n: int,
    phases: tuple[int, ...],
    total: int,
    stages: list[dict[str, Any]],
    floats_of_tile: int,
    room: int,
    slice_bytes: int,
    l2: int,
    clusters: tuple[int, ...] = (),
) -> Placement:
    """The placement of all state; sets what `keep_moments` sets.

    Args:
        n, phases, total, clusters: as for `layout`.
        stages, floats_of_tile, room: as for `keep_moments`.
        slice_bytes: weights, moments, statistics and workspace of a slice.
        l2: bytes of the device's L2 cache.
    """
    found = layout(n, phases, total, clusters)
    keep_moments(stages, found.blocks, floats_of_tile, room)
    updates = [stage for stage in stages if stage["kind"] == "update_weight"]
    kept = sum(min(stage["tiles"], stage["resident_tiles"] * found.blocks) for stage in updates)
    tiles = sum(stage["tiles"] for stage in updates)
    return Placement(found, kept, tiles, min(n, found.groups) * slice_bytes, l2)
