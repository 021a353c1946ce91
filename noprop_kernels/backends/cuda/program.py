"""Programs: the stages of a `LaunchContext`, their thread blocks, their groups' workspace, and the
launch."""

from collections.abc import Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch

from ..gpu.optimizer import formula_of, hyper_of
from ..gpu.stages import Table
from . import buffers, clocks, clusters, extension, placement, tiles
from .context import Fields, LaunchContext
from .placement import Layout
from .stages import of_table


@lru_cache(maxsize=16)
def properties_of(module: Any, device: int) -> MappingProxyType[str, Any]:
    return MappingProxyType(module.device(device))


@lru_cache(maxsize=64)
def thread_blocks(module: Any, device: int, precision: str, floats: int) -> int:
    """Thread blocks that the device runs at the same time, one on each multiprocessor."""
    held = module.resident_blocks(device, precision, floats)
    return min(held, properties_of(module, device)["multiprocessors"])


@lru_cache(maxsize=64)
def room_for_state(module: Any, device: int, precision: str) -> int:
    """Floats of a thread block's shared memory that the kernel leaves free."""
    return (properties_of(module, device)["shared_bytes"] - module.scratch_bytes(precision)) // 4


def device_index(device: torch.device) -> int:
    if extension.on_host():
        return 0
    return torch.cuda.current_device() if device.index is None else device.index


def layout_of(ctx: LaunchContext, phases: tuple[int, ...]) -> Layout:
    return placement.layout(ctx.n, phases, *room_for_groups(ctx.device, ctx.slices.precision))


def room_for_groups(device: torch.device, precision: str) -> tuple[int, tuple[int, ...]]:
    """Thread blocks that run at the same time, and clusters of them where groups are clusters."""
    which = extension.module, device_index(device), precision
    return thread_blocks(*which, 0), clusters.held(*which, room_for_state(*which))


def run_table(
    ctx: LaunchContext, table: Table, before: Sequence[Fields] = (), behind: Sequence[Fields] = ()
) -> None:
    """Runs a table with a workspace for each group, between stages of the caller's own."""
    phases = placement.phases(before) + placement.phases_of(table) + placement.phases(behind)
    layout = layout_of(ctx, phases)
    views, whole = buffers.workspace(table, layout.groups, ctx.device, by_group=True)
    ctx.hold(whole)
    ctx.at = views | ctx.at
    ctx.table = table
    launch(ctx, [*before, *of_table(ctx), *behind], layout)


def launch(ctx: LaunchContext, stages: list[Fields], layout: Layout) -> None:
    """Puts a program on the current stream of its device.

    Raises:
        RuntimeError: the device's runtime reports an error.
    """
    device, precision = device_index(ctx.device), ctx.slices.precision
    first = 0
    for stage in stages:  # tiles between two barriers are dealt round-robin to thread blocks
        stage["first"] = first
        first = 0 if stage["barrier"] else first + stage["tiles"]
    resident = 0
    if ctx.K > 1:
        moments = ctx.rule.optimizer.moments if ctx.rule else ()
        tile = len(moments) * tiles.weight_tile_entries()
        room = room_for_state(extension.module, device, precision)
        resident = placement.keep_moments(stages, layout.blocks, tile, room)
    barriers = ctx.hold(torch.empty(layout.groups, dtype=torch.int32, device=ctx.device))
    program = {
        "index": ctx.index.data_ptr(),
        "index_stride": ctx.index.stride(0) if ctx.index.ndim == 2 else 0,
        "barriers": barriers.data_ptr(),
        "n": ctx.n,
        "K": ctx.K,
        "B": ctx.B,
        "groups": layout.groups,
        "blocks": layout.blocks,
        "cluster": int(layout.cluster),
        "precision": precision,
        "hyper": {"rule": formula_of(ctx.rule), **hyper_of(ctx.rule)._asdict()},
        "resident_floats": resident,
        "clocks": clocks.counters(stages, ctx.device),
        "stages": stages,
    }
    host = extension.on_host()
    stream = 0 if host else torch.cuda.current_stream(ctx.device).cuda_stream
    extension.module.launch(program, device, stream)
