"""Stages around the layers: data, noise, head, loss, rates, embeddings, and the chain's z."""

from torch import Tensor

from ..calls import AddNoiseCall, Embedding, Gather, HeadCall, TrainCall
from ..chain_calls import PredictCall
from ..gpu.buffers import Kind
from ..gpu.stages import Stage
from ..gpu.tables import flags_of
from ..gpu.tiles import cdiv
from . import buffers, tiles
from .buffers import TYPES, address, per_row, per_slice
from .context import Fields, LaunchContext, stage


def gather(ctx: LaunchContext, item: Stage) -> list[Fields]:
    name, value = item.name, ctx.training_call.inputs[item.name]
    fields: Fields = {"bad": ctx.at.get(Kind.BAD(name)), "F": ctx.slices.plan.widths[name]}
    if isinstance(value, Gather):
        fields |= {
            "out": ctx.at[Kind.RESULT(name)],
            "data": (value.data.data_ptr(), 0, 0, 0),
            "rows": buffers.rows_of(value),
            "mean": address(value.mean),
            "scale": address(value.scale),
            "type": TYPES[value.data.dtype],
        }
    else:
        nothing = dict.fromkeys(("out", "rows", "mean", "scale"))
        fields |= {"data": ctx.at[Kind.RESULT(name)], "type": TYPES[value.dtype], **nothing}
    return [stage("gather", tiles.row_tiles(ctx.B), **fields)]


def add_noise(ctx: LaunchContext, item: Stage) -> list[Fields]:
    at = ctx.at
    return [
        noise_stage(
            ctx,
            ctx.training_call,
            z=at[Kind.RESULT("z")] if Kind.RESULT("z") in item.writes else None,
            eps=at.get(Kind.EPS()),
            labels=at[Kind.LABELS()],
            bad=at.get(Kind.BAD_LABELS()),
        )
    ]


def noise_stage(
    ctx: LaunchContext, call: TrainCall | AddNoiseCall, **outputs: buffers.Address | None
) -> Fields:
    drawn, noising, embedding, y = call.noise, call.noising, call.embedding, call.y
    gathered = isinstance(y, Gather)
    return stage(
        "noise",
        tiles.row_tiles(ctx.B),
        **outputs,
        y=(y.data.data_ptr(), 0, 0, 0) if gathered else per_row(y),
        rows=buffers.rows_of(y) if gathered else None,
        W_embed=address(embedding.W_embed),
        seeds=address(ctx.hold(drawn.seeds.contiguous())),
        draw=per_row(drawn.draw),
        block=per_row(drawn.block),
        signal=per_row(noising.signal),
        noise=per_row(noising.noise),
        first_row=drawn.first_row,
        sigma=noising.sigma,
        stream=drawn.stream,
        M=embedding.M,
        D=embedding.D,
    )


def head(ctx: LaunchContext, item: Stage) -> list[Fields]:
    at, output = ctx.at, ctx.slices.plan.output
    logits, labels = at[Kind.RESULT(output)], at[Kind.LABELS()]
    outputs = {"error": at[Kind.ERROR()], "d_logits": at[Kind.GRADIENT(output)]}
    outputs |= {"d_u_hat": at.get(Kind.D_U_HAT()), "p": at.get(Kind.P())}
    M = ctx.slices.plan.widths[output]
    return [head_stage(ctx, ctx.training_call, M, logits, labels, at.get(Kind.EPS()), **outputs)]


def head_stage(
    ctx: LaunchContext,
    call: TrainCall | HeadCall,
    M: int,
    logits: buffers.Address,
    labels: buffers.Address,
    eps: buffers.Address | None,
    **outputs: buffers.Address | None,
) -> Fields:
    objective, embedding = call.objective, call.embedding
    return stage(
        "head",
        tiles.row_tiles(ctx.B),
        **outputs,
        logits=logits,
        labels=labels,
        eps=eps if objective.flow != 0 else None,
        W_embed=address(embedding.W_embed),
        weight=per_row(objective.weight),
        flow=objective.flow,
        rows=float(objective.rows),
        head=objective.head,
        M=M,
        D=embedding.D,
    )


def loss(ctx: LaunchContext, item: Stage) -> list[Fields]:
    at = ctx.at
    flags = [at[each] for each in flags_of(item)] if ctx.errors is not None else []
    outputs = {"loss": at[Kind.LOSS()], "applied": at[Kind.APPLIED()]}
    outputs |= {"rates": at.get(Kind.RATES())}
    counts = Kind.DRAWS() in item.writes
    return [loss_stage(ctx, ctx.training_call, at[Kind.ERROR()], flags, counts=counts, **outputs)]


def loss_stage(
    ctx: LaunchContext,
    call: TrainCall | HeadCall,
    error: buffers.Address,
    flags: list,
    *,
    counts: bool,
    **outputs: buffers.Address | None,
) -> Fields:
    objective, rule = call.objective, ctx.rule
    draws, updates = ctx.counters() if counts else (None, None)
    return stage(
        "loss",
        1,
        **outputs,
        error=error,
        flags=flags,
        num_flags=len(flags),
        draws=draws,
        updates=updates,
        errors=address(ctx.errors),
        weight=per_row(objective.weight),
        lr=per_slice(rule.lr if rule else None),
        weight_decay=per_slice(rule.weight_decay if rule else None),
        rows=float(objective.rows),
    )


def rates(ctx: LaunchContext, item: Stage) -> list[Fields]:
    plan, at = ctx.slices.plan, ctx.at
    size, d_logits = ctx.B * plan.widths[plan.output], at[Kind.GRADIENT(plan.output)]
    return [rates_stage(ctx, at[Kind.RATES()], at.get(Kind.APPLIED()), d_logits, size)]


def rates_stage(
    ctx: LaunchContext,
    rates: buffers.Address,
    applied: buffers.Address | None,
    d_logits: buffers.Address | None,
    size: int,
) -> Fields:
    rule = ctx.rule
    assert rule is not None
    return stage(
        "rates",
        1,
        rates=rates,
        applied=applied,
        d_logits=d_logits,
        updates=ctx.counters()[1],
        lr=per_slice(rule.lr),
        weight_decay=per_slice(rule.weight_decay),
        size=size,
    )


def step_gradients(ctx: LaunchContext, item: Stage) -> list[Fields]:
    at, embedding = ctx.at, ctx.training_call.embedding
    return [
        stage(
            "step_gradients",
            tiles.row_tiles(ctx.B),
            d_signal=at[Kind.D_SIGNAL()],
            d_noise=at[Kind.D_NOISE()],
            d_z=at[Kind.GRADIENT("z")],
            eps=at[Kind.EPS()],
            labels=at[Kind.LABELS()],
            W_embed=address(embedding.W_embed),
            D=embedding.D,
        )
    ]


def embedding(ctx: LaunchContext, item: Stage) -> list[Fields]:
    at, call = ctx.at, ctx.training_call
    M, D, side = call.embedding.M, call.embedding.D, tiles.constant("kEmbedding")
    return [
        stage(
            "embedding",
            cdiv(M, side) * cdiv(D, side),
            d_W=at[Kind.D_W_EMBED()],
            p=at.get(Kind.P()),
            d_u_hat=at[Kind.D_U_HAT()] if Kind.D_U_HAT() in item.reads else None,
            d_z=at[Kind.GRADIENT("z")] if Kind.GRADIENT("z") in item.reads else None,
            labels=at[Kind.LABELS()],
            signal=per_row(call.noising.signal),
            M=M,
            D=D,
        )
    ]


def u_hat_stage(
    ctx: LaunchContext,
    u_hat: buffers.Address,
    logits: buffers.Address,
    M: int,
    embedding: Embedding,
    name: str,
) -> Fields:
    return stage(
        "u_hat",
        tiles.row_tiles(ctx.B),
        u_hat=u_hat,
        logits=logits,
        W_embed=address(embedding.W_embed),
        M=M,
        D=embedding.D,
        linear=int(name == "linear"),
    )


def chain_stage(
    ctx: LaunchContext,
    call: PredictCall,
    seeds: Tensor,
    sample: int,
    z: buffers.Address,
    before: buffers.Address | None,
    u_hat: buffers.Address | None,
) -> Fields:
    return stage(
        "chain",
        tiles.row_tiles(ctx.B),
        z=z,
        before=before,
        u_hat=u_hat,
        a=address(call.chain.a),
        b=address(call.chain.b),
        sqrt_c=address(call.chain.sqrt_c) if call.add_noise else None,
        seeds=address(seeds),
        sample=sample,
        first_row=call.first_row,
        D=call.embedding.D,
    )
