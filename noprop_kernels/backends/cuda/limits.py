"""Limits of the CUDA kernels: plans that do not fit into a program."""

from functools import lru_cache
from typing import Any

from ...plan import Plan
from ..gpu.layers import consumers, update_parts
from ..gpu.tables import TableOptions, train_table
from ..gpu.tiles import cdiv
from . import extension, tiles

INSTEAD = 'backend="triton" runs it'


def stages_of(plan: Plan) -> int:
    """Stages of a training step with every result requested."""
    inputs = tuple(name for name in plan.inputs if name != "z")
    M = plan.widths[plan.output]
    options = TableOptions(
        tiles=tiles.of_stages(), n=1, B=2, M=M, D=M, looked_at=inputs, check=True, eps=True,
        wanted=frozenset(plan.inputs), numbers=True, d_W_embed=True,
        statistics="later" if plan.has_norm() else "",
    )  # fmt: skip
    # the update is a stage for each of its parts
    count = len(train_table(plan, options).stages) - 1
    most = tiles.constant("kMaxSources")
    for name in plan.widths:  # a gradient with many readers is summed in several stages
        count += cdiv(max(0, len(consumers(plan, name)) - most), most - 1)
    return count + sum(map(len, update_parts(plan, True, True)))


def plan_gap(plan: Plan) -> str | None:
    """The reason why the kernels cannot run `plan`, with a backend that can, or None."""
    return gap_of(extension.module, plan)


@lru_cache(maxsize=256)
def gap_of(module: Any, plan: Plan) -> str | None:
    sources, flags = tiles.constant("kMaxSources"), tiles.constant("kMaxFlags")
    inputs = len(plan.inputs) - 1
    if inputs > flags - 1:
        return f"a plan may have {flags - 1} inputs beside z, got {inputs}; {INSTEAD}"
    for name, layer in plan.layers.items():
        if len(layer.sources) > sources:
            found = len(layer.sources)
            return f"a layer may have {sources} inputs, {name!r} has {found}; {INSTEAD}"
    most, found = tiles.constant("kMaxStages"), stages_of(plan)
    if found > most:
        return f"a step may have {most} stages, this plan's has up to {found}; {INSTEAD}"
    return None
