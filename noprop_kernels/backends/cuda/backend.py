"""The CUDA backend: the seven functions of calls.py, each a launch of the persistent kernel.

A launch runs all steps of all slices of a call. On CPU tensors the same kernel runs that was built
for the host, for the tests.
"""

import dataclasses

import torch
from torch import Tensor

from ...plan import Dense, Plan
from ..calls import AddNoiseCall, BackwardCall, ForwardCall, HeadCall, Slices, TrainCall, UpdateCall
from ..chain_calls import PredictCall
from ..contents import check_rows, where_finite
from ..gpu import checks, errors, options
from ..gpu.buffers import Kind
from ..gpu.checks import check_train, owner_of
from ..gpu.guard import entry, where
from ..gpu.index import index_of, index_on
from ..gpu.options import of_inputs, options_of, outputs_of
from ..gpu.split import part_of
from ..gpu.stages import Table
from ..gpu.tables import train_table
from . import buffers, placement, tiles
from .context import Fields, LaunchContext
from .layers import apply_stage
from .program import launch, layout_of, run_table
from .stages import of_table
from .step_stages import chain_stage, head_stage, loss_stage, noise_stage, rates_stage, u_hat_stage

STEPS = 128  # per launch; more take several launches, since no bit depends on K


def no_slices(n: int, device: torch.device) -> Slices:
    """Stands in for the slices of calls without an object."""
    plan = Plan({"z": (1,)}, {"logits": Dense("z", 1)})
    empty = torch.empty(0, dtype=torch.int64, device=device)
    return Slices(
        plan, {}, {}, {}, {}, empty, empty, empty, torch.arange(n, dtype=torch.int64, device="cpu")
    )


def run_stages(ctx: LaunchContext, stages: list[Fields]) -> None:
    """A program of stages without a workspace; the group meets at least after the last one."""
    stages[-1]["barrier"] = 1
    launch(ctx, stages, layout_of(ctx, placement.phases(stages)))


@entry
def add_noise(call: AddNoiseCall) -> None:
    _, n, B = call.y.shape
    device, bad = call.y.device, checks.check_add_noise(call, tiles.row_tiles(B))
    if n * B == 0:
        return
    slices = no_slices(n, device)
    ctx = LaunchContext(slices, index_on(slices.index, device), B, device)
    outputs = {"z": call.z, "eps": call.eps, "labels": None, "bad": bad}
    run_stages(ctx, [noise_stage(ctx, call, **maybe(outputs))])
    checks.report_add_noise(call, bad)


def maybe(tensors: dict[str, Tensor | None]) -> dict[str, buffers.Address | None]:
    """(n, ...) each, or missing."""
    return {k: None if v is None else buffers.of_slices(v) for k, v in tensors.items()}


def look_at(op: str, inputs: dict[str, Tensor], owner: Tensor) -> None:
    """Requires finite inputs: checked here, or flagged on the device and raised by the next
    call."""
    for x in checks.look_at(op, inputs, owner):
        errors.report(owner, op, x.isfinite().all().logical_not() * errors.INPUTS)


@entry
def head(call: HeadCall) -> None:
    objective, embedding, y = call.objective, call.embedding, checks.check_head(call)
    n, B, M = call.logits.shape
    if n * B == 0:
        return
    slices = no_slices(n, y.device)
    ctx, made = LaunchContext(slices, index_on(slices.index, y.device), B, y.device), []
    error = ctx.hold(call.logits.new_empty(n, B)) if call.error is None else call.error
    logits, labels = buffers.of_slices(call.logits), buffers.of_slices(y)
    if any(value is not None for value in (call.loss, call.error, call.d_logits)):
        outputs = {"error": error, "d_logits": call.d_logits, "d_u_hat": None, "p": None}
        if call.d_logits is not None and objective.head != "cross_entropy":
            outputs["d_u_hat"] = ctx.hold(call.logits.new_empty(n, B, embedding.D))
        eps = maybe({"eps": call.eps})["eps"]
        made.append(head_stage(ctx, call, M, logits, labels, eps, **maybe(outputs)))
    if call.loss is not None:
        made[-1]["barrier"] = 1
        outputs = {"loss": call.loss, "applied": None, "rates": None}
        read = buffers.of_slices(error)
        made.append(loss_stage(ctx, call, read, [], counts=False, **maybe(outputs)))
    if call.u_hat is not None:
        made.append(
            u_hat_stage(ctx, buffers.of_slices(call.u_hat), logits, M, embedding, objective.head)
        )
    if made:
        run_stages(ctx, made)


@entry
def forward(call: ForwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    (n, B, _), device = call.inputs["z"].shape, call.inputs["z"].device
    if call.check:
        look_at("forward", call.inputs, owner_of(call.owner, device))
    if call.training:
        check_rows("forward", plan, B)
    table = options.layers_table(
        slices, tiles.of_stages(), 1, B, training=call.training, save=call.save
    )
    given = {k: buffers.of_slices(value) for k, value in of_inputs(call.inputs).items()}
    # a view of the logits: saving them would make a reference cycle with their own graph
    logits = None if call.logits is None else call.logits.detach()
    if logits is not None:
        given[Kind.RESULT(plan.output)] = buffers.of_slices(logits)
    ctx = LaunchContext(slices, index_of(slices), B, device, at=given, training=call.training)
    call.saved = None
    if not call.save:
        run_table(ctx, table)
        return
    views, whole = buffers.workspace(table, n, device, by_group=False)
    ctx.at |= views
    ctx.table = table
    if logits is not None:
        launch(ctx, of_table(ctx), layout_of(ctx, placement.phases_of(table)))
    call.saved = (ctx.at, [whole, logits, *call.inputs.values()], call.training)


@entry
def backward(call: BackwardCall) -> None:
    slices, B = call.slices, call.d_logits.shape[1]
    saved, _, training = call.saved
    given = {k: buffers.of_slices(value) for k, value in options.of_backward(call).items()}
    for table, rule in options.backward_tables(call, tiles.of_stages(), 1, training, given):
        ctx = LaunchContext(slices, index_of(slices), B, call.d_logits.device, at=saved | given)
        ctx.training, ctx.rule = training, rule
        ctx.out_grads = (call.grads or {}) if rule is None else {}
        run_table(ctx, table)


@entry
def update(call: UpdateCall) -> None:
    slices, device = call.slices, where(call.slices)
    n = len(slices.index)
    ctx = LaunchContext(slices, index_of(slices), 1, device, rule=call.rule)
    ctx.at[Kind.RATES()] = buffers.of_slices(
        ctx.hold(torch.empty(n, 4, dtype=torch.float32, device=device))
    )
    first = rates_stage(ctx, ctx.at[Kind.RATES()], buffers.of_slices(where_finite(call)), None, 0)
    first["barrier"] = 1
    run_stages(ctx, [first, *(apply_stage(ctx, k, call.grads[k]) for k in slices.params)])


def context_of(call: TrainCall) -> tuple[LaunchContext, Table]:
    """All that the steps of a training call need, except the workspace."""
    slices, device = call.slices, where(call.slices)
    caught = checks.training_flags(slices)
    chosen = dataclasses.replace(options_of(call, tiles.of_stages(), caught is not None), n=1, R=1)
    outputs = outputs_of(call)
    steps = {k: outputs.pop(k) for k in (Kind.LOSS(), Kind.APPLIED())}
    steps |= of_inputs(call.inputs)
    at = {k: buffers.of_slices(value) for k, value in outputs.items()}
    at |= {k: buffers.of_steps(value) for k, value in steps.items()}
    ctx = LaunchContext(
        device=device,
        slices=slices,
        index=index_of(slices),
        B=call.B,
        K=call.K,
        at=at,
        out_grads=call.out.grads or {},
        call=call,
        rule=None if call.out.grads is not None else call.rule,
        errors=caught,
    )
    return ctx, train_table(slices.plan, chosen)


@entry
def train(call: TrainCall) -> None:
    if call.K == 0:
        return
    owner, n = call.slices.updates, len(call.slices.index)
    errors.raise_found(owner)
    check_train(call)
    group = n if call.blocks_per_launch is None else call.blocks_per_launch
    for first in range(0, n, group):
        for start in range(0, call.K, STEPS):
            steps, slices = slice(start, start + STEPS), slice(first, first + group)
            run_table(*context_of(part_of(call, steps, slices)))
    errors.send(owner)


@entry
def predict(call: PredictCall) -> None:
    slices, plan = call.slices, call.slices.plan
    R, B = len(call.seeds), call.z.shape[3]
    L, S, M = len(call.chain.a), call.z.shape[1], call.logits.shape[-1]
    if B == 0:
        return
    device = call.z.device
    look_at("predict", call.inputs, owner_of(call.owner, device))
    table = options.layers_table(slices, tiles.of_stages(), 1, B)
    index = index_of(slices).view(R, L).T.contiguous()
    seeds = call.seeds.to(device)
    chain = call.z.new_empty(L + 1, R, B, call.embedding.D)  # z_0, and z after every block
    for sample in range(S):
        # a launch is the whole chain, a step is a block
        ctx = LaunchContext(slices, index, B, device, K=L, training=False)
        ctx.at = {k: buffers.of_slices(value) for k, value in of_inputs(call.inputs).items()}
        logits, u_hat = (of_chain(value[:, sample], L) for value in (call.logits, call.u_hat))
        before, after = buffers.of_steps(chain), buffers.of_steps(chain[1:])
        ctx.at |= {Kind.RESULT("z"): before, Kind.RESULT(plan.output): logits}
        drawn = []
        if call.add_noise:
            begin = chain_stage(ctx, call, seeds, sample, before, None, None)
            drawn.append(begin | {"once": 0, "barrier": 1})
        else:
            chain[0] = 0
        predicted = u_hat_stage(ctx, u_hat, logits, M, call.embedding, call.head)
        predicted["barrier"] = 1
        mixed = chain_stage(ctx, call, seeds, sample, after, before, u_hat)
        mixed["barrier"] = 1
        run_table(ctx, table, before=drawn, behind=[predicted, mixed])
        call.z[:, sample] = chain[1:] if len(call.z) == L else chain[L:]


def of_chain(value: Tensor, L: int) -> buffers.Address:
    """(L or 1, R, ...): an entry for each block, or one that every block overwrites."""
    return buffers.of_steps(value if len(value) == L else value.expand(L, *value.shape[1:]))
