"""The stages of a table as the stages of a program, each kind's fields by the table's names."""

from collections.abc import Callable

from ..gpu.stages import Stage
from . import layers, step_stages
from .context import Fields, LaunchContext

STAGES: dict[str, Callable[[LaunchContext, Stage], list[Fields]]] = {
    "gather": step_stages.gather,
    "add_noise": step_stages.add_noise,
    "dense": layers.dense,
    "norm": layers.norm,
    "head": step_stages.head,
    "loss": step_stages.loss,
    "rates": step_stages.rates,
    "result_gradient": layers.result_gradient,
    "norm_gradient": layers.norm_gradient,
    "step_gradients": step_stages.step_gradients,
    "d_W_embed": step_stages.embedding,
    "update": layers.update,
}


def of_table(ctx: LaunchContext) -> list[Fields]:
    """Appends every stage of the table, in order, with its barriers."""
    assert ctx.table is not None
    made: list[Fields] = []
    for item in ctx.table.stages:
        made += STAGES[item.kind](ctx, item)
        made[-1]["barrier"] = int(item.expects > 0)
    return made
