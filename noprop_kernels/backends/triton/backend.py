"""The Triton backend: the seven functions of calls.py; each launches the stages of a table.

The tests run the kernels on CPU tensors in Triton's interpreter.
"""

import dataclasses
from functools import lru_cache

import torch
from torch import Tensor

from ..calls import (
    AddNoiseCall,
    BackwardCall,
    Embedding,
    ForwardCall,
    Gather,
    HeadCall,
    TrainCall,
    UpdateCall,
)
from ..chain_calls import PredictCall
from ..contents import check_rows, where_finite
from ..gpu import checks, errors, options
from ..gpu.buffers import Kind
from ..gpu.checks import check_train, owner_of
from ..gpu.guard import entry, where
from ..gpu.index import index_of
from ..gpu.memory import Workspace, allocate, as_bytes
from ..gpu.optimizer import formula_of
from ..gpu.options import of_inputs, options_of, outputs_of
from ..gpu.tables import train_table
from ..gpu.tiles import cdiv
from . import graph
from .configs import ROWS, TILES
from .context import Device, LaunchContext, logs_of, numbers_of, per_row, rates_of
from .kernels import head as head_kernels
from .kernels import noise
from .kernels import update as update_kernels
from .launch import head_blocks, launch_add_noise, launch_head, noise_blocks, run


@lru_cache(maxsize=8)
def device_of(device: torch.device) -> Device:
    if device.type == "cpu":
        return Device(interpreted=True, pdl=False)
    hopper = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (9, 0)
    return Device(interpreted=False, pdl=hopper)


def rows_tiles(B: int) -> int:
    return cdiv(B, ROWS)


@entry
def add_noise(call: AddNoiseCall) -> None:
    _, n, B = call.y.shape
    bad = checks.check_add_noise(call, rows_tiles(B))
    if n * B == 0:
        return
    launch_add_noise(
        device_of(call.y.device), (rows_tiles(B), n), call.z, call.eps, None, bad, call, 0,
    )  # fmt: skip
    checks.report_add_noise(call, bad)


@entry
def forward(call: ForwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    (n, B, _), device = call.inputs["z"].shape, call.inputs["z"].device
    if call.check:
        look_at("forward", call.inputs, owner_of(call.owner, device))
    if call.training:
        check_rows("forward", plan, B)
    table = options.layers_table(slices, TILES, n, B, training=call.training, save=call.save)
    at, inputs = allocate(table, device) | of_inputs(call.inputs), dict(call.inputs)
    if call.logits is not None:
        # a view of the logits: saving them would make a reference cycle with their own graph
        at[Kind.RESULT(plan.output)] = call.logits.detach()
        ctx = LaunchContext(slices, index_of(slices), B, device_of(device), table, at)
        ctx.training, ctx.inputs = call.training, {**inputs}
        run(ctx)
    call.saved = (at, inputs, call.training) if call.save else None


@entry
def backward(call: BackwardCall) -> None:
    slices, B = call.slices, call.d_logits.shape[1]
    saved, inputs, training = call.saved
    outside = options.of_backward(call)
    outside |= {Kind.PARAMETER_GRADIENT(name): value for name, value in (call.grads or {}).items()}
    for table, rule in options.backward_tables(call, TILES, len(slices.index), training, outside):
        at = {**saved, **allocate(table, call.d_logits.device), **outside}
        ctx = LaunchContext(slices, index_of(slices), B, device_of(call.d_logits.device), table, at)
        ctx.training, ctx.rule, ctx.inputs = training, rule, inputs
        run(ctx)


@entry
def head(call: HeadCall) -> None:
    objective, embedding, y = call.objective, call.embedding, checks.check_head(call)
    n, B, _ = call.logits.shape
    device = device_of(y.device)
    if n * B == 0:
        return
    scratch = call.logits.new_empty(n, B, 1 + embedding.D)
    error = scratch.view(-1)[: n * B].view(n, B) if call.error is None else call.error
    d_u_hat = scratch.view(-1)[n * B :].view(n, B, embedding.D)
    grid = (rows_tiles(B), n)
    outputs = (call.loss, call.error, call.d_logits)
    if any(value is not None for value in outputs):
        launch_head(
            device, grid, error, call.d_logits, d_u_hat, None, call.logits, y, call.eps, call, 0,
        )  # fmt: skip
    if call.loss is not None:
        applied = torch.empty(n, dtype=torch.uint8, device=y.device)
        device.launch(
            update_kernels.loss_kernel, (n,), call.loss, applied, None, None, None, None, error,
            per_row(objective.weight), (), None, None, None, float(objective.rows), 0, B,
            rows_tiles(B), FLAGS=0, RULE="none", **logs_of(None),
        )  # fmt: skip
    if call.u_hat is not None:
        launch_u_hat(device, call.u_hat, call.logits, embedding, objective.head)


def launch_u_hat(
    device: Device, u_hat: Tensor, logits: Tensor, embedding: Embedding, name: str
) -> None:
    n, B, M = logits.shape
    D = embedding.D
    device.launch(
        head_kernels.u_hat_kernel, (rows_tiles(B), n), u_hat, logits, embedding.W_embed, B, M=M,
        D=D, LINEAR=name == "linear", **head_blocks(M, D),
    )  # fmt: skip


@entry
def update(call: UpdateCall) -> None:
    slices, rule = call.slices, call.rule
    index = index_of(slices)
    n, device = len(index), device_of(where(slices))
    rates = torch.empty(n, 4, dtype=torch.float32, device=where(slices))
    lr, decay = rates_of(rule)
    apply = as_bytes(where_finite(call))
    device.launch(
        update_kernels.rates_kernel, (n,), rates, apply, slices.updates, None,
        lr, decay, index, 0, 0, RULE=formula_of(rule), **logs_of(rule),
    )  # fmt: skip
    for name, param in slices.params.items():
        size = param[0].numel()
        device.launch(
            update_kernels.apply_kernel, (cdiv(size, 1024), n),
            (param, slices.m.get(name), slices.v.get(name), None), call.grads[name], rates,
            numbers_of(rule), index, size, RULE=formula_of(rule), BLOCK=1024,
        )  # fmt: skip


def look_at(op: str, inputs: dict[str, Tensor], owner: Tensor) -> None:
    """Requires finite inputs: checked here, or flagged by a kernel and raised by the next call."""
    bit = errors.INPUTS << errors.shift_of(op)
    for x in checks.look_at(op, inputs, owner):
        if x.numel():
            device_of(owner.device).launch(
                noise.look_kernel, (cdiv(x.numel(), 4096),), errors.flags_of(owner),
                x.contiguous(), x.numel(), BIT=bit, BLOCK=4096,
            )  # fmt: skip
    errors.send(owner)


def context_of(call: TrainCall, workspace: Workspace) -> LaunchContext:
    """All that the steps of a training call need, the workspace included."""
    slices, device = call.slices, where(call.slices)
    caught = checks.training_flags(slices)
    table = train_table(slices.plan, options_of(call, TILES, caught is not None))
    return LaunchContext(
        device=device_of(device),
        table=table,
        slices=slices,
        index=index_of(slices),
        B=call.B,
        at={**allocate(table, device, workspace), **outputs_of(call)},
        places={
            name: value.replica for name, value in call.inputs.items() if isinstance(value, Gather)
        },
        inputs=call.inputs,
        call=call,
        rule=None if call.out.grads is not None else call.rule,
        errors=caught,
    )


@entry
def train(call: TrainCall) -> None:
    if call.K == 0:
        return
    errors.raise_found(call.slices.updates)
    check_train(call)
    graph.train(call, context_of)
    errors.send(call.slices.updates)


@entry
def predict(call: PredictCall) -> None:
    slices, plan = call.slices, call.slices.plan
    R, B = len(call.seeds), call.z.shape[3]
    L, S, D = len(call.chain.a), call.z.shape[1], call.embedding.D
    if B == 0:
        return
    look_at("predict", call.inputs, owner_of(call.owner, call.z.device))
    chain = slices.index.reshape(R, L)
    device = device_of(call.z.device)
    table = options.layers_table(slices, TILES, R, B)
    buffers = allocate(table, call.z.device)
    grid = (rows_tiles(B), R)
    seeds = call.seeds.to(call.z.device)
    shape = {"D": D, **noise_blocks(D)}

    for sample in range(S):
        z = call.z.new_zeros(R, B, D)
        if call.add_noise:
            device.launch(
                noise.chain_kernel, grid, z, None, None, None, None, None, seeds, sample, 0, B,
                call.first_row, **shape,
            )  # fmt: skip
        for i in range(L):
            at = i if len(call.z) == L else 0
            logits, u_hat = call.logits[at, sample], call.u_hat[at, sample]
            step = dataclasses.replace(slices, index=chain[:, i].contiguous())
            given = of_inputs(call.inputs) | {Kind.RESULT("z"): z, Kind.RESULT(plan.output): logits}
            ctx = LaunchContext(step, index_of(step), B, device, table, buffers | given)
            ctx.training, ctx.inputs = False, dict(call.inputs)
            run(ctx)
            launch_u_hat(device, u_hat, logits, call.embedding, call.head)
            device.launch(
                noise.chain_kernel, grid, call.z[at, sample], z, u_hat, call.chain.a, call.chain.b,
                call.chain.sqrt_c if call.add_noise else None, seeds, sample, i, B, call.first_row,
                **shape,
            )  # fmt: skip
            z = call.z[at, sample]
