"""A call's stages as one table that the launcher walks: barriers, and memory that buffers share.

A stage names its kernel, the buffers that it reads and writes, and its programs. A barrier
separates stages that share a buffer, and waits for the programs of all stages since the last one.
Buffers of the workspace that are never live at the same time share memory.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from .buffers import Buffer

ALIGNMENT = 64  # floats

Shape = tuple[tuple[int, ...], torch.dtype]


def floats(shape: Shape) -> int:
    """Memory of a buffer, in units of a float."""
    return math.prod(shape[0]) * shape[1].itemsize // 4


@dataclass(frozen=True)
class Stage:
    """One launch.

    Args:
        kind: its kernel.
        name: the layer, input or result that it is for.
        reads, writes: buffers.
        grid: its programs.
        expects: programs that the barrier after it waits for; 0: no barrier.
    """

    kind: str
    name: str
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    grid: tuple[int, ...]
    expects: int = 0

    @property
    def tiles(self) -> int:
        return math.prod(self.grid)


@dataclass(frozen=True)
class Table:
    """The stages of a call, in order.

    Args:
        stages: as above.
        shapes: shape and dtype of each buffer of the workspace.
        offsets: the offset of each of them.
        given: buffers that are written before the first stage.
        kept: buffers of the workspace that are read after the last stage.
    """

    stages: tuple[Stage, ...]
    shapes: dict[Buffer, Shape]
    offsets: dict[Buffer, int]
    given: frozenset[Buffer]
    kept: frozenset[Buffer] = frozenset()

    @property
    def floats(self) -> int:
        ends = (self.offsets[name] + floats(shape) for name, shape in self.shapes.items())
        return max(ends, default=0)


def conflict(first: Stage, second: Stage) -> bool:
    """Whether the order of two stages matters."""
    return bool(
        set(first.writes) & {*second.reads, *second.writes} or set(first.reads) & set(second.writes)
    )


def with_barriers(stages: list[Stage]) -> tuple[Stage, ...]:
    """Sets as few barriers as the conflicts allow, and one at the end."""
    done: list[Stage] = []
    phase: list[Stage] = []
    for stage in stages:
        if any(conflict(other, stage) for other in phase):
            done[-1] = replace(done[-1], expects=sum(other.tiles for other in phase))
            phase = []
        phase.append(stage)
        done.append(stage)
    done[-1] = replace(done[-1], expects=sum(other.tiles for other in phase))
    return tuple(done)


def lifetimes(
    stages: tuple[Stage, ...], names: Iterable[Buffer], kept: frozenset[Buffer]
) -> dict[Buffer, tuple[int, int]]:
    """The first and last phase in which each buffer is live."""
    phase, spans = 0, {}
    for stage in stages:
        for name in (*stage.writes, *stage.reads):
            spans[name] = (spans.get(name, (phase,))[0], phase)
        phase += stage.expects > 0
    return {name: (spans[name][0], phase if name in kept else spans[name][1]) for name in names}


def share_memory(
    stages: tuple[Stage, ...], sizes: dict[Buffer, int], kept: frozenset[Buffer]
) -> dict[Buffer, int]:
    """The lowest free offset for each buffer, largest first; live buffers do not overlap."""
    spans, offsets = lifetimes(stages, sizes, kept), {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], str(name))):
        start, stop = spans[name]
        taken = sorted(
            (offsets[other], offsets[other] + sizes[other])
            for other in offsets
            if spans[other][0] <= stop and start <= spans[other][1]
        )
        at = 0
        for low, high in taken:
            if at + sizes[name] <= low:
                break
            at = max(at, -(-high // ALIGNMENT) * ALIGNMENT)
        offsets[name] = at
    return offsets
