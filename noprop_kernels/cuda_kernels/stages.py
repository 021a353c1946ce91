"""The stages of a table as the stages of a program, each kind's fields by the table's names."""

from collections.abc import Callable

from ..gpu.stages import Stage
from . import ends, layers
from .walk import Fields, Walk

STAGES: dict[str, Callable[[Walk, Stage], list[Fields]]] = {
    "gather": ends.gather,
    "add_noise": ends.add_noise,
    "dense": layers.dense,
    "norm": layers.norm,
    "head": ends.head,
    "loss": ends.loss,
    "rates": ends.rates,
    "result_gradient": layers.result_gradient,
    "norm_gradient": layers.norm_gradient,
    "numbers": ends.numbers,
    "d_W_embed": ends.embedding,
    "update": layers.update,
}


def of_table(walk: Walk) -> list[Fields]:
    """Every stage of the walk's table, in order, with its barriers."""
    assert walk.table is not None
    made: list[Fields] = []
    for item in walk.table.stages:
        made += STAGES[item.kind](walk, item)
        made[-1]["barrier"] = int(item.expects > 0)
    return made
