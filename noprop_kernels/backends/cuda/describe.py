"""The line of `explain` on the CUDA kernels: an object's thread blocks and its place in memory."""

import math
from typing import TYPE_CHECKING

from ..gpu.buffers import Kind
from ..gpu.checks import contents_are_checked
from ..gpu.layers import update_parts
from ..gpu.tables import TableOptions, train_table
from . import extension, placement, tiles
from .context import Fields
from .placement import Placement
from .program import device_index, properties_of, room_for_groups, room_for_state

if TYPE_CHECKING:
    from ...stack.module import Stack


def options_of_steps(what: "Stack", batch: int) -> TableOptions:
    """The options of a slice's table for train_steps on rows of a data set."""
    plan = what.plan
    return TableOptions(
        tiles=tiles.of_stages(),
        n=1,
        B=batch,
        M=what.M,
        D=what.D,
        precision=what.precision,
        gathered=tuple(name for name in plan.inputs if name != "z"),
        eps=what.layout.goal.flow != 0,
        embedded=what.layout.goal.head != "cross_entropy",
        statistics="later" if plan.has_norm() else "",
        check=not contents_are_checked(what.device),
        outside=frozenset((Kind.LOSS(), Kind.APPLIED())),
    )


def weight_stages(what: "Stack") -> list[Fields]:
    """The stages that may keep moments in shared memory, in a program's order."""
    return [
        {"kind": "update_weight", "tiles": tiles.weight_tiles(part.H, part.F)}
        for part in update_parts(what.plan, True, False).weights
    ]


def slice_bytes(what: "Stack") -> int:
    """Bytes of a slice's weights, moments and running statistics."""
    assert what.optimizer is not None
    weights = sum(map(math.prod, what.plan.parameters().values()))
    statistics = sum(map(math.prod, what.plan.statistics().values()))
    return 4 * (weights * (1 + len(what.optimizer.moments)) + statistics)


def placement_of(what: "Stack", batch: int) -> Placement:
    """The placement of train_steps' state for K > 1; `what` must have an optimizer."""
    assert what.optimizer is not None
    module, device = extension.module, device_index(what.device)
    table = train_table(what.plan, options_of_steps(what, batch))
    total, clusters = room_for_groups(what.device, what.precision)
    at_once = getattr(what, "blocks_per_launch", None)
    return placement.place(
        len(what) if at_once is None else min(len(what), at_once),
        placement.phases_of(table),
        total,
        weight_stages(what),
        len(what.optimizer.moments) * tiles.weight_tile_entries(),
        room_for_state(module, device, what.precision),
        slice_bytes(what) + 4 * table.floats,
        properties_of(module, device)["l2_bytes"],
        clusters,
    )


def count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def describe(what: "Stack", batch: int) -> str:
    """A line on train_steps with `batch` rows a step, or the reason why the runtime cannot say."""
    assert what.optimizer is not None
    try:
        place = placement_of(what, batch)
    except RuntimeError as error:
        return f"where state lies is not known: {error}"
    groups, blocks = place.layout.groups, place.layout.blocks
    parts = [f"{count(groups, 'group')} of {count(blocks, 'thread block')}"]
    parts[0] += ", each a cluster" if place.layout.cluster else ""
    if what.optimizer.moments:
        parts.append(
            f"moments of {place.kept} of a slice's {count(place.tiles, 'weight tile')} in shared "
            "memory"
        )
    else:
        parts.append("no moments, so no state in shared memory")
    # L2 cannot be allocated: data in repeated use stays there where it fits
    fits = "which fits L2" if place.fits_l2 else "more than L2"
    parts.append(
        f"up to {place.working / 1e6:.1f} MB of state and activations at work in global memory, "
        f"{fits} ({place.l2 / 1e6:.1f} MB)"
    )
    return f"train_steps at {count(batch, 'row')} a step: {'; '.join(parts)}"
