"""Stages around the layers: data, noise, head, loss, rates, embeddings, and the chain's z."""

from torch import Tensor

from ..calls import Embedding, Gather, PredictCall
from ..gpu.stages import Stage
from ..gpu.tiles import cdiv
from . import buffers, shapes
from .buffers import TYPES, address, number, real
from .context import Fields, Walk, stage


def gather(walk: Walk, item: Stage) -> list[Fields]:
    name, value = item.name, walk.inputs[item.name]
    fields: Fields = {"bad": walk.at.get(f"bad:{name}"), "F": walk.slices.plan.widths[name]}
    if isinstance(value, Gather):
        fields |= {
            "out": walk.at[name],
            "data": (value.data.data_ptr(), 0, 0, 0),
            "rows": buffers.rows_of(value),
            "mean": address(value.mean),
            "scale": address(value.scale),
            "type": TYPES[value.data.dtype],
        }
    else:
        nothing = dict.fromkeys(("out", "rows", "mean", "scale"))
        fields |= {"data": walk.at[name], "type": TYPES[value.dtype], **nothing}
    return [stage("gather", shapes.row_tiles(walk.B), **fields)]


def add_noise(walk: Walk, item: Stage) -> list[Fields]:
    at = walk.at
    return [
        noise_stage(
            walk,
            z=at["z"] if "z" in item.writes else None,
            eps=at.get(":eps"),
            labels=at[":y"],
            bad=at.get("bad::y"),
        )
    ]


def noise_stage(walk: Walk, **outputs: buffers.Buffer | None) -> Fields:
    drawn, noising, embedding, y = walk.noise, walk.noising, walk.embedding, walk.y
    assert drawn is not None and noising is not None and embedding is not None and y is not None
    gathered = isinstance(y, Gather)
    return stage(
        "noise",
        shapes.row_tiles(walk.B),
        **outputs,
        y=(y.data.data_ptr(), 0, 0, 0) if gathered else number(y),
        rows=buffers.rows_of(y) if gathered else None,
        W_embed=address(embedding.W_embed),
        seeds=address(walk.hold(drawn.seeds.contiguous())),
        draw=number(drawn.draw),
        block=number(drawn.block),
        signal=number(noising.signal),
        noise=number(noising.noise),
        first_row=drawn.first_row,
        sigma=noising.sigma,
        stream=drawn.stream,
        M=embedding.M,
        D=embedding.D,
    )


def head(walk: Walk, item: Stage) -> list[Fields]:
    at, output = walk.at, walk.slices.plan.output
    outputs = {"error": at[":error"], "d_logits": at[f"d:{output}"]}
    outputs |= {"d_u_hat": at.get(":d_u_hat"), "p": at.get(":p")}
    M = walk.slices.plan.widths[output]
    return [head_stage(walk, M, at[output], at[":y"], at.get(":eps"), **outputs)]


def head_stage(
    walk: Walk,
    M: int,
    logits: buffers.Buffer,
    labels: buffers.Buffer,
    eps: buffers.Buffer | None,
    **outputs: buffers.Buffer | None,
) -> Fields:
    objective, embedding = walk.objective, walk.embedding
    assert objective is not None and embedding is not None
    return stage(
        "head",
        shapes.row_tiles(walk.B),
        **outputs,
        logits=logits,
        labels=labels,
        eps=eps if objective.flow != 0 else None,
        W_embed=address(embedding.W_embed),
        weight=number(objective.weight),
        flow=objective.flow,
        rows=float(objective.rows),
        head=objective.head,
        M=M,
        D=embedding.D,
    )


def loss(walk: Walk, item: Stage) -> list[Fields]:
    at = walk.at
    names = [name for name in item.reads if name.startswith("bad:")]
    flags = [at[name] for name in names] if walk.errors is not None else []
    outputs = {"loss": at[":loss"], "applied": at[":applied"], "rates": at.get(":rates")}
    return [loss_stage(walk, at[":error"], flags, counts=":draws" in item.writes, **outputs)]


def loss_stage(
    walk: Walk,
    error: buffers.Buffer,
    flags: list,
    *,
    counts: bool,
    **outputs: buffers.Buffer | None,
) -> Fields:
    objective, rule = walk.objective, walk.rule
    assert objective is not None
    draws, updates = walk.counters() if counts else (None, None)
    return stage(
        "loss",
        1,
        **outputs,
        error=error,
        flags=flags,
        num_flags=len(flags),
        draws=draws,
        updates=updates,
        errors=address(walk.errors),
        weight=number(objective.weight),
        lr=real(rule.lr if rule else None),
        weight_decay=real(rule.weight_decay if rule else None),
        rows=float(objective.rows),
    )


def rates(walk: Walk, item: Stage) -> list[Fields]:
    plan, at = walk.slices.plan, walk.at
    size = walk.B * plan.widths[plan.output]
    return [rates_stage(walk, at[":rates"], at.get(":applied"), at[f"d:{plan.output}"], size)]


def rates_stage(
    walk: Walk,
    rates: buffers.Buffer,
    applied: buffers.Buffer | None,
    d_logits: buffers.Buffer | None,
    size: int,
) -> Fields:
    rule = walk.rule
    assert rule is not None
    return stage(
        "rates",
        1,
        rates=rates,
        applied=applied,
        d_logits=d_logits,
        updates=walk.counters()[1],
        lr=real(rule.lr),
        weight_decay=real(rule.weight_decay),
        size=size,
    )


def numbers(walk: Walk, item: Stage) -> list[Fields]:
    at, embedding = walk.at, walk.embedding
    assert embedding is not None
    return [
        stage(
            "numbers",
            shapes.row_tiles(walk.B),
            d_signal=at[":d_signal"],
            d_noise=at[":d_noise"],
            d_z=at["d:z"],
            eps=at[":eps"],
            labels=at[":y"],
            W_embed=address(embedding.W_embed),
            D=embedding.D,
        )
    ]


def embedding(walk: Walk, item: Stage) -> list[Fields]:
    at, noising, embedding = walk.at, walk.noising, walk.embedding
    assert noising is not None and embedding is not None
    M, D, side = embedding.M, embedding.D, shapes.constant("kEmbedding")
    return [
        stage(
            "embedding",
            cdiv(M, side) * cdiv(D, side),
            d_W=at[":d_W_embed"],
            p=at.get(":p"),
            d_u_hat=at[":d_u_hat"] if ":d_u_hat" in item.reads else None,
            d_z=at["d:z"] if "d:z" in item.reads else None,
            labels=at[":y"],
            signal=number(noising.signal),
            M=M,
            D=D,
        )
    ]


def u_hat_stage(
    walk: Walk,
    u_hat: buffers.Buffer,
    logits: buffers.Buffer,
    M: int,
    embedding: Embedding,
    name: str,
) -> Fields:
    return stage(
        "u_hat",
        shapes.row_tiles(walk.B),
        u_hat=u_hat,
        logits=logits,
        W_embed=address(embedding.W_embed),
        M=M,
        D=embedding.D,
        linear=int(name == "linear"),
    )


def chain_stage(
    walk: Walk,
    call: PredictCall,
    seeds: Tensor,
    sample: int,
    z: buffers.Buffer,
    before: buffers.Buffer | None,
    u_hat: buffers.Buffer | None,
) -> Fields:
    return stage(
        "chain",
        shapes.row_tiles(walk.B),
        z=z,
        before=before,
        u_hat=u_hat,
        a=address(call.a),
        b=address(call.b),
        sqrt_c=address(call.sqrt_c) if call.add_noise else None,
        seeds=address(seeds),
        sample=sample,
        first_row=call.first_row,
        D=call.embedding.D,
    )
