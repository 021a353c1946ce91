"""The options of a call's table, and the caller's tensors by the table's names."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..calls import Gather, TrainCall
from .buffers import Buffer, Kind
from .tables import Ask
from .tiles import Tiles


def ask_of(call: TrainCall, tiles: Tiles, check: bool) -> Ask:
    """The options of the table of a training call."""
    plan, out, objective = call.slices.plan, call.out, call.objective
    drawn, updates = call.z is None, out.grads is None
    numbers = out.d_signal is not None or out.d_noise is not None
    wanted = set(out.d_inputs)
    if drawn and (numbers or out.d_W_embed is not None):
        wanted.add("z")
    gathered = tuple(name for name, value in call.inputs.items() if isinstance(value, Gather))
    replicas = [
        value.indices.shape[1] for value in call.inputs.values() if isinstance(value, Gather)
    ]
    return Ask(
        tiles=tiles,
        n=len(call.slices.index),
        B=call.B,
        M=plan.widths[plan.output],
        D=call.embedding.D,
        R=max(replicas, default=1),
        precision=call.slices.precision,
        gathered=gathered,
        looked_at=tuple(name for name in call.inputs if name not in gathered) if check else (),
        drawn=drawn,
        eps=objective.flow != 0 or numbers,
        wanted=frozenset(wanted),
        numbers=drawn and numbers,
        d_W_embed=out.d_W_embed is not None,
        embedded=objective.head != "cross_entropy",
        update=updates,
        statistics="later" if updates and plan.has_norm() else "",
        check=check,
        outside=frozenset(outputs_of(call)),
    )


def outputs_of(call: TrainCall) -> dict[Buffer, Tensor]:
    """The caller's tensors by the table's names, without the inputs that change from step to
    step."""
    out = call.out
    named = {Kind.ERROR(): out.error, Kind.D_SIGNAL(): out.d_signal, Kind.D_NOISE(): out.d_noise}
    named |= {Kind.D_W_EMBED(): out.d_W_embed, Kind.RESULT("z"): call.z}
    named |= {Kind.GRADIENT(name): value for name, value in out.d_inputs.items()}
    named |= {Kind.PARAMETER_GRADIENT(name): value for name, value in (out.grads or {}).items()}
    if out.grads is not None:
        named |= {Kind.BATCH(name): value for name, value in (out.stats or {}).items()}
    named |= {Kind.LOSS(): out.loss, Kind.APPLIED(): out.applied.view(torch.uint8)}
    return {buffer: value for buffer, value in named.items() if value is not None}


def of_inputs(inputs: Mapping[str, Tensor | Gather]) -> dict[Buffer, Tensor]:
    """The caller's inputs that are tensors."""
    return {Kind.RESULT(k): value for k, value in inputs.items() if isinstance(value, Tensor)}
