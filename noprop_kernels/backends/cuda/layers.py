"""Stages of layers: products, norms, their gradients, and the update of parameters."""

from torch import Tensor

from ..gpu.buffers import Kind
from ..gpu.layers import (
    End,
    StatisticPart,
    VectorPart,
    WeightPart,
    behind_end,
    consumers,
    end_of,
    update_parts,
)
from ..gpu.stages import Stage
from ..gpu.tiles import cdiv
from . import buffers, tiles
from .buffers import address
from .context import Fields, LaunchContext, stage


def code(activation: str | None) -> str:
    """An activation by the kernels' name for it."""
    return activation or "none"


def tiles_of_product(B: int, columns: int) -> int:
    along_B, along_columns = tiles.product_tiles(B, columns)
    return along_B * along_columns


def dense(ctx: LaunchContext, item: Stage) -> list[Fields]:
    plan, params, at, name = ctx.slices.plan, ctx.slices.params, ctx.at, item.name
    layer = plan.dense[name]
    plain = layer.norm is None  # else the norm has the activation and `add`
    return [
        stage(
            "dense",
            tiles_of_product(ctx.B, layer.features),
            out=at[Kind.RESULT(name) if plain else Kind.PRODUCT(name)],
            kept=at.get(Kind.KEPT(name)) if plain else None,
            sources=[at[Kind.RESULT(source)] for source in layer.sources],
            add=at[Kind.RESULT(layer.add)] if plain and layer.add else None,
            weight=address(params[f"{name}.weight"]),
            bias=address(params[f"{name}.bias"]),
            widths=[plan.widths[source] for source in layer.sources],
            num_sources=len(layer.sources),
            H=layer.features,
            in_width=plan.in_widths[name],
            activation=code(layer.activation if plain else None),
            tile=tiles.product_tile(ctx.B, layer.features),
        )
    ]


def norm(ctx: LaunchContext, item: Stage) -> list[Fields]:
    slices, at, name = ctx.slices, ctx.at, item.name
    layer = slices.plan.dense[name]
    assert layer.norm is not None
    key = f"{name}.norm."
    mean, var = key + "running_mean", key + "running_var"
    return [
        stage(
            "norm",
            tiles.vector_tiles(layer.features),
            out=at[Kind.RESULT(name)],
            kept=at.get(Kind.KEPT(name)),
            mean=at[Kind.MEAN(name)],
            rstd=at[Kind.RSTD(name)],
            batch_mean=at.get(Kind.BATCH(mean)),
            batch_var=at.get(Kind.BATCH(var)),
            y=at[Kind.PRODUCT(name)],
            add=at[Kind.RESULT(layer.add)] if layer.add else None,
            weight=address(slices.params[key + "weight"]),
            bias=address(slices.params[key + "bias"]),
            running_mean=address(slices.stats[mean]),
            running_var=address(slices.stats[var]),
            eps=layer.norm.eps,
            momentum=layer.norm.momentum,
            H=layer.features,
            activation=code(layer.activation),
            training=int(ctx.training),
            move=int(Kind.STATE(mean) in item.writes),
        )
    ]


def result_gradient(ctx: LaunchContext, item: Stage) -> list[Fields]:
    plan, params, at, name = ctx.slices.plan, ctx.slices.params, ctx.at, item.name
    end, F = end_of(plan, name), plan.widths[name]
    read = []
    for part in consumers(plan, name):
        weight = address(params[part.weight]) if part.weight else None
        read.append((at[part.d_y], weight, part.height, part.in_width, part.column))
    d_result = at[Kind.GRADIENT(name)] if Kind.GRADIENT(name) in item.writes else None
    made, most = [], tiles.constant("kMaxSources")
    while len(read) > most:  # the sum so far is passed on as an `add` would be
        partial = at[end.d_y] if d_result is None and end else d_result
        made.append(gradient_stage(ctx, F, read[:most], partial, None))
        made[-1]["barrier"] = 1
        read = [(partial, None, F, 0, 0), *read[most:]]
    return [*made, gradient_stage(ctx, F, read, d_result, end)]


def gradient_stage(
    ctx: LaunchContext, F: int, read: list[tuple], d_result: buffers.Address | None, end: End | None
) -> Fields:
    return stage(
        "result_gradient",
        tiles_of_product(ctx.B, F),
        d_result=d_result,
        d_y=ctx.at[end.d_y] if end else None,
        kept=ctx.at[end.kept] if end else None,
        consumers=read,
        num_consumers=len(read),
        F=F,
        activation=code(end.activation if end else None),
        tile=tiles.product_tile(ctx.B, F),
    )


def norm_gradient(ctx: LaunchContext, item: Stage) -> list[Fields]:
    plan, at, name, key = ctx.slices.plan, ctx.at, item.name, f"{item.name}.norm."
    H = plan.widths[name]
    return [
        stage(
            "norm_gradient",
            tiles.vector_tiles(H),
            d_y=at[Kind.PRODUCT_GRADIENT(name)],
            d_weight=at[Kind.NORM_SUM(key + "weight")],
            d_bias=at[Kind.NORM_SUM(key + "bias")],
            d_out=at[behind_end(plan, name)],
            y=at[Kind.PRODUCT(name)],
            mean=at[Kind.MEAN(name)],
            rstd=at[Kind.RSTD(name)],
            weight=address(ctx.slices.params[key + "weight"]),
            H=H,
            training=int(ctx.training),
        )
    ]


def update(ctx: LaunchContext, item: Stage) -> list[Fields]:
    """The update's stages: weights first, source by source, then vectors, then statistics."""
    slices = ctx.slices
    moving = any(Kind.STATE(name) in item.writes for name in slices.stats)
    parts = update_parts(slices.plan, ctx.training, moving)
    return [
        *(weight_stage(ctx, part) for part in parts.weights),
        *(vector_stage(ctx, part) for part in parts.vectors),
        *(statistic_stage(ctx, part) for part in parts.statistics),
    ]


def weight_stage(ctx: LaunchContext, part: WeightPart) -> Fields:
    return stage(
        "update_weight",
        tiles.weight_tiles(part.H, part.F),
        param=ctx.parameter(part.name),
        d_y=ctx.at[part.d_y],
        x=ctx.at[Kind.RESULT(part.x)],
        rates=ctx.at.get(Kind.RATES()),
        H=part.H,
        F=part.F,
        in_width=part.in_width,
        column=part.column,
        resident=0,
        resident_tiles=0,
    )


def vector_stage(ctx: LaunchContext, part: VectorPart) -> Fields:
    return stage(
        "update_vector",
        tiles.vector_tiles(part.H),
        param=ctx.parameter(part.name),
        gradient=ctx.at[part.gradient],
        rates=ctx.at.get(Kind.RATES()),
        sum=part.sum.name.lower(),
        H=part.H,
    )


def statistic_stage(ctx: LaunchContext, part: StatisticPart) -> Fields:
    return stage(
        "update_statistic",
        tiles.vector_tiles(part.H),
        running=address(ctx.slices.stats[part.name]),
        batch=ctx.at[Kind.BATCH(part.name)],
        rates=ctx.at[Kind.RATES()],
        momentum=part.momentum,
        H=part.H,
    )


def apply_stage(ctx: LaunchContext, name: str, gradient: Tensor) -> Fields:
    return stage(
        "apply",
        cdiv(gradient[0].numel(), tiles.constant("kApplied")),
        param=ctx.parameter(name),
        gradient=buffers.of_slices(gradient),
        rates=ctx.at[Kind.RATES()],
    )
