"""The tables of a call and their options, and the caller's tensors by the table's names."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..calls import BackwardCall, Gather, Rule, Slices, TrainCall
from .buffers import Buffer, Kind
from .stages import Table
from .tables import TableOptions, backward_table, forward_table
from .tiles import Tiles


def options_of(call: TrainCall, tiles: Tiles, check: bool) -> TableOptions:
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
    return TableOptions(
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


def layers_table(
    slices: Slices, tiles: Tiles, n: int, B: int, *, training: bool = False, save: bool = False
) -> Table:
    """The table of the layers, with a workspace for n slices."""
    plan = slices.plan
    options = TableOptions(
        tiles=tiles, n=n, B=B, M=plan.widths[plan.output], D=plan.widths["z"],
        precision=slices.precision, training=training, statistics="now" if training else "",
        outside=frozenset({Kind.RESULT(plan.output)}),
    )  # fmt: skip
    return forward_table(plan, options, save)


def backward_tables(
    call: BackwardCall, tiles: Tiles, n: int, training: bool, outside: Iterable[Buffer]
) -> Iterator[tuple[Table, Rule | None]]:
    """The tables of a backward call that have stages, and the rule of each.

    Gradients and an update take one table each, the second without the inputs' gradients.
    """
    slices, plan = call.slices, call.slices.plan
    _, B, M = call.d_logits.shape
    options = TableOptions(
        tiles=tiles, n=n, B=B, M=M, D=plan.widths["z"], precision=slices.precision,
        training=training, wanted=frozenset(call.d_inputs), update=False,
        outside=frozenset(outside),
    )  # fmt: skip
    parts: list[tuple[TableOptions, Rule | None]] = []
    if call.rule is None or call.grads is not None:
        parts.append((options, None))
    if call.rule is not None:
        wanted = frozenset() if parts else options.wanted
        parts.append((dataclasses.replace(options, update=True, wanted=wanted), call.rule))
    for options, rule in parts:
        table = backward_table(plan, options, rule is not None or call.grads is not None)
        if table.stages:
            yield table, rule


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


def of_backward(call: BackwardCall) -> dict[Buffer, Tensor]:
    """The caller's tensors of a backward call, without the gradients of parameters."""
    named = {Kind.GRADIENT(name): value for name, value in call.d_inputs.items()}
    named |= {Kind.GRADIENT(call.slices.plan.output): call.d_logits}
    if call.applied is not None:
        named[Kind.APPLIED()] = call.applied.view(torch.uint8)
    return named


def of_inputs(inputs: Mapping[str, Tensor | Gather]) -> dict[Buffer, Tensor]:
    """The caller's inputs that are tensors."""
    return {Kind.RESULT(k): value for k, value in inputs.items() if isinstance(value, Tensor)}
