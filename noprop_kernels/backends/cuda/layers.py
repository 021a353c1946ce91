"""Stages of layers: products, norms, their gradients, and the update of parameters."""

from torch import Tensor

from ..gpu.buffers import Kind
from ..gpu.stages import Stage
from ..gpu.tables import behind_activation, consumers, kept, product_gradient
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
    layer, F = plan.dense.get(name), plan.widths[name]
    read = []
    for reader, column in consumers(plan, name) if name != plan.output else [(name, None)]:
        height = plan.widths[reader]
        if column is None:
            read.append((at[Kind.GRADIENT(reader)], None, height, 0, 0))
        else:
            weight = address(params[f"{reader}.weight"])
            d_y = at[product_gradient(plan, reader)]
            read.append((d_y, weight, height, plan.in_widths[reader], column))
    activation = None if layer is None else layer.activation
    d_result = at[Kind.GRADIENT(name)] if Kind.GRADIENT(name) in item.writes else None
    d_y = at[behind_activation(plan, name)] if activation else None
    made, most = [], tiles.constant("kMaxSources")
    while len(read) > most:  # the sum so far is passed on as an `add` would be
        partial = d_y if d_result is None else d_result
        made.append(gradient_stage(ctx.B, F, read[:most], d_result=partial))
        made[-1]["barrier"] = 1
        read = [(partial, None, F, 0, 0), *read[most:]]
    ends = {"d_y": d_y, "kept": at[kept(plan, name)] if activation else None}
    made.append(gradient_stage(ctx.B, F, read, d_result=d_result, activation=activation, **ends))
    return made


def gradient_stage(
    B: int,
    F: int,
    consumers: list[tuple],
    *,
    d_result: buffers.Address | None,
    activation: str | None = None,
    d_y: buffers.Address | None = None,
    kept: buffers.Address | None = None,
) -> Fields:
    return stage(
        "result_gradient",
        tiles_of_product(B, F),
        d_result=d_result,
        d_y=d_y,
        kept=kept,
        consumers=consumers,
        num_consumers=len(consumers),
        F=F,
        activation=code(activation),
        tile=tiles.product_tile(B, F),
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
            d_out=at[behind_activation(plan, name)],
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
    plan, at, slices = ctx.slices.plan, ctx.at, ctx.slices
    weights, vectors, statistics = [], [], []
    for name, layer in plan.dense.items():
        H, d_y, column = layer.features, at[product_gradient(plan, name)], 0
        for source in layer.sources:
            weights.append(weight_stage(ctx, name, source, column))
            column += plan.widths[source]
        frozen = layer.norm is not None and ctx.training
        kind = "zero" if frozen else "rows"
        vectors.append(vector_stage(ctx, f"{name}.bias", d_y, kind, H))
        if layer.norm is None:
            continue
        key = f"{name}.norm."
        for part in (key + "weight", key + "bias"):
            vectors.append(vector_stage(ctx, part, at[Kind.NORM_SUM(part)], "done", H))
        for part in (key + "running_mean", key + "running_var"):
            if Kind.STATE(part) in item.writes:
                fields = {"running": address(slices.stats[part]), "batch": at[Kind.BATCH(part)]}
                fields |= {"rates": at[Kind.RATES()], "momentum": layer.norm.momentum, "H": H}
                statistics.append(stage("update_statistic", tiles.vector_tiles(H), **fields))
    return [*weights, *vectors, *statistics]


def weight_stage(ctx: LaunchContext, name: str, source: str, column: int) -> Fields:
    plan = ctx.slices.plan
    H, F = plan.widths[name], plan.widths[source]
    return stage(
        "update_weight",
        tiles.weight_tiles(H, F),
        param=ctx.parameter(f"{name}.weight"),
        d_y=ctx.at[product_gradient(plan, name)],
        x=ctx.at[Kind.RESULT(source)],
        rates=ctx.at.get(Kind.RATES()),
        H=H,
        F=F,
        in_width=plan.in_widths[name],
        column=column,
        resident=0,
        resident_tiles=0,
    )


def vector_stage(
    ctx: LaunchContext, name: str, gradient: buffers.Address, kind: str, H: int
) -> Fields:
    return stage(
        "update_vector",
        tiles.vector_tiles(H),
        param=ctx.parameter(name),
        gradient=gradient,
        rates=ctx.at.get(Kind.RATES()),
        sum=kind,
        H=H,
    )


def apply_stage(ctx: LaunchContext, name: str, gradient: Tensor) -> Fields:
    return stage(
        "apply",
        cdiv(gradient[0].numel(), tiles.constant("kApplied")),
        param=ctx.parameter(name),
        gradient=buffers.of_slices(gradient),
        rates=ctx.at[Kind.RATES()],
    )
