"""Launches the stages of a table: the kernel of each stage and its arguments."""

from collections.abc import Callable

from torch import Tensor

from ..calls import AddNoiseCall, Gather, HeadCall, TrainCall
from ..gpu.buffers import Kind
from ..gpu.layers import behind_end, consumers, end_of, update_parts
from ..gpu.memory import differs
from ..gpu.optimizer import formula_of
from ..gpu.stages import Stage
from ..gpu.tables import flags_of
from ..gpu.tiles import cdiv
from .configs import (
    EMBEDDING,
    ROWS,
    dense_blocks,
    power_of_2,
    update_blocks,
    update_tiles,
    vector_block,
)
from .context import Device, LaunchContext, logs_of, numbers_of, per_row, rates_of
from .kernels import dense, head, noise, norm, step_gradients, update


def run(ctx: LaunchContext, k: int = 0) -> None:
    """Every stage of step k, in order."""
    for stage in ctx.table.stages:
        LAUNCHES[stage.kind](ctx, stage, k)


def gather(ctx: LaunchContext, stage: Stage, k: int) -> None:
    name = stage.name
    value, F = ctx.training_call.inputs[name], ctx.slices.plan.widths[name]
    if isinstance(value, Gather):
        data, indices, rows = (value.data,), value.indices, len(value.data)
        mean, scale, out = value.mean, value.scale, ctx.at[Kind.RESULT(name)]
    else:
        tensor = ctx.at[Kind.RESULT(name)]
        data = (tensor, int(differs(tensor, 0)))
        indices, rows, mean, scale, out = None, 0, None, None, None
    ctx.launch(
        noise.gather_kernel, stage, out, ctx.at.get(Kind.BAD(name)), data, indices, rows, mean,
        scale, k, ctx.B, F=F, ROWS=ROWS, BLOCK_F=power_of_2(F, 16, 256),
    )  # fmt: skip


def add_noise(ctx: LaunchContext, stage: Stage, k: int) -> None:
    at = ctx.at
    z = at[Kind.RESULT("z")] if Kind.RESULT("z") in stage.writes else None
    launch_add_noise(
        ctx.device, stage.grid, z, at.get(Kind.EPS()), at[Kind.LABELS()],
        at.get(Kind.BAD_LABELS()), ctx.training_call, k,
    )  # fmt: skip


def launch_add_noise(
    device: Device, grid: tuple[int, ...], z: Tensor | None, eps: Tensor | None,
    labels: Tensor | None, bad: Tensor | None, call: TrainCall | AddNoiseCall, k: int,
) -> None:  # fmt: skip
    drawn, noising, embedding, y = call.noise, call.noising, call.embedding, call.y
    if isinstance(y, Gather):
        read, indices, R, rows = (y.data,), (y.indices, y.replica), y.indices.shape[1], len(y.data)
    else:
        read, indices, R, rows = per_row(y), None, 0, 0
    device.launch(
        noise.add_noise_kernel, grid, z, eps, labels, bad, read, indices, R, rows,
        embedding.W_embed, drawn.seeds,
        per_row(drawn.draw), per_row(drawn.block), per_row(noising.signal), per_row(noising.noise),
        float(noising.sigma), k, noising.signal.shape[2], drawn.first_row,
        M=embedding.M, D=embedding.D, STREAM=drawn.stream, SECOND=noising.sigma != 0,
        **noise_blocks(embedding.D),
    )  # fmt: skip


def noise_blocks(D: int) -> dict[str, int]:
    return {"ROWS": ROWS, "GROUPS": power_of_2(cdiv(D, 4), 4, 32)}


def dense_forward(ctx: LaunchContext, stage: Stage, k: int) -> None:
    plan, slices, name = ctx.slices.plan, ctx.slices, stage.name
    layer = plan.dense[name]
    plain = layer.norm is None
    widths = tuple(plan.widths[source] for source in layer.sources)
    blocks = dense_blocks(layer.features, slices.precision)
    ctx.launch(
        dense.dense_kernel, stage,
        ctx.at[Kind.RESULT(name) if plain else Kind.PRODUCT(name)],
        ctx.at.get(Kind.KEPT(name)) if plain else None,
        tuple(ctx.source(source) for source in layer.sources),
        ctx.source(layer.add) if plain and layer.add else None,
        slices.params[f"{name}.weight"], slices.params[f"{name}.bias"], ctx.index, ctx.B,
        H=layer.features, WIDTHS=widths, IN_WIDTH=sum(widths),
        ADDS=plain and layer.add is not None, ACTIVATION=layer.activation if plain else None,
        PRECISION=ctx.device.precision(slices.precision),
        BLOCK_B=blocks.rows, BLOCK_H=blocks.columns, BLOCK_K=blocks.depths(widths),
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip


def norm_forward(ctx: LaunchContext, stage: Stage, k: int) -> None:
    slices, name = ctx.slices, stage.name
    layer = slices.plan.dense[name]
    assert layer.norm is not None
    key = f"{name}.norm."
    statistics = tuple(slices.stats[key + part] for part in ("running_mean", "running_var"))
    batch = tuple(ctx.at.get(Kind.BATCH(key + part)) for part in ("running_mean", "running_var"))
    ctx.launch(
        norm.norm_kernel, stage, ctx.at[Kind.RESULT(name)], ctx.at.get(Kind.KEPT(name)),
        ctx.at[Kind.MEAN(name)], ctx.at[Kind.RSTD(name)], None if batch[0] is None else batch,
        ctx.at[Kind.PRODUCT(name)],
        ctx.source(layer.add) if layer.add else None, slices.params[key + "weight"],
        slices.params[key + "bias"], statistics, ctx.index, layer.norm.eps, layer.norm.momentum,
        ctx.B, H=layer.features, TRAINING=ctx.training,
        MOVE=Kind.STATE(key + "running_mean") in stage.writes, ADDS=layer.add is not None,
        ACTIVATION=layer.activation, BLOCK_H=vector_block(layer.features),
    )  # fmt: skip


def head_blocks(M: int, D: int) -> dict[str, int]:
    return {"ROWS": ROWS, "BLOCK_M": power_of_2(M, 16, 64), "BLOCK_D": power_of_2(D, 16, 64)}


def head_gradient(ctx: LaunchContext, stage: Stage, k: int) -> None:
    plan, at = ctx.slices.plan, ctx.at
    launch_head(
        ctx.device, stage.grid, at[Kind.ERROR()], at[Kind.GRADIENT(plan.output)],
        at.get(Kind.D_U_HAT()), at.get(Kind.P()), at[Kind.RESULT(plan.output)], at[Kind.LABELS()],
        at.get(Kind.EPS()), ctx.training_call, k,
    )  # fmt: skip


def launch_head(
    device: Device, grid: tuple[int, ...], error: Tensor | None, d_logits: Tensor | None,
    d_u_hat: Tensor | None, p: Tensor | None, logits: Tensor, y: Tensor, eps: Tensor | None,
    call: TrainCall | HeadCall, k: int,
) -> None:  # fmt: skip
    objective, embedding = call.objective, call.embedding
    _, B, M = logits.shape
    device.launch(
        head.head_kernel, grid, error, d_logits, d_u_hat, p, logits, y,
        eps if objective.flow != 0 else None, embedding.W_embed, per_row(objective.weight),
        float(objective.flow), float(objective.rows), k, B, M=M, D=embedding.D, HEAD=objective.head,
        **head_blocks(M, embedding.D),
    )  # fmt: skip


def loss(ctx: LaunchContext, stage: Stage, k: int) -> None:
    objective, rule, at, slices = ctx.training_call.objective, ctx.rule, ctx.at, ctx.slices
    flags = flags_of(stage) if ctx.errors is not None else []
    bad = tuple((at[each], ctx.places.get(each.name)) for each in flags)
    lr, decay = rates_of(rule)
    ctx.launch(
        update.loss_kernel, stage, at[Kind.LOSS()][k], at[Kind.APPLIED()][k], at.get(Kind.RATES()),
        slices.draws, slices.updates, ctx.errors, at[Kind.ERROR()], per_row(objective.weight), bad,
        lr, decay, ctx.index, float(objective.rows), k, ctx.B, cdiv(ctx.B, ROWS), FLAGS=len(bad),
        RULE=formula_of(rule), **logs_of(rule),
    )  # fmt: skip


def rates(ctx: LaunchContext, stage: Stage, k: int) -> None:
    d_logits = ctx.at.get(Kind.GRADIENT(ctx.slices.plan.output))
    lr, decay = rates_of(ctx.rule)
    ctx.launch(
        update.rates_kernel, stage, ctx.at[Kind.RATES()], ctx.at.get(Kind.APPLIED()),
        ctx.slices.updates, d_logits, lr, decay, ctx.index, k,
        0 if d_logits is None else d_logits[0].numel(),
        RULE=formula_of(ctx.rule), **logs_of(ctx.rule),
    )  # fmt: skip


def result_gradient(ctx: LaunchContext, stage: Stage, k: int) -> None:
    plan, slices, at, name = ctx.slices.plan, ctx.slices, ctx.at, stage.name
    end, parts, F = end_of(plan, name), consumers(plan, name), plan.widths[name]
    weights = [slices.params[part.weight] if part.weight else None for part in parts]
    heights = tuple(part.height for part in parts)
    blocks = dense_blocks(F, slices.precision)
    ctx.launch(
        dense.result_gradient_kernel, stage,
        at[Kind.GRADIENT(name)] if Kind.GRADIENT(name) in stage.writes else None,
        at[end.d_y] if end else None, at[end.kept] if end else None,
        tuple((at[part.d_y], weight) for part, weight in zip(parts, weights, strict=True)),
        ctx.index, ctx.B, F=F, HEIGHTS=heights, IN_WIDTHS=tuple(part.in_width for part in parts),
        COLUMNS=tuple(part.column for part in parts), ACTIVATION=end.activation if end else None,
        PRECISION=ctx.device.precision(slices.precision),
        BLOCK_B=blocks.rows, BLOCK_F=blocks.columns, BLOCK_K=blocks.depths(heights),
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip


def norm_gradient(ctx: LaunchContext, stage: Stage, k: int) -> None:
    at, name, key = ctx.at, stage.name, f"{stage.name}.norm."
    plan = ctx.slices.plan
    ctx.launch(
        norm.norm_gradient_kernel, stage, at[Kind.PRODUCT_GRADIENT(name)],
        at[Kind.NORM_SUM(key + "weight")], at[Kind.NORM_SUM(key + "bias")],
        at[behind_end(plan, name)], at[Kind.PRODUCT(name)],
        at[Kind.MEAN(name)], at[Kind.RSTD(name)], ctx.slices.params[key + "weight"], ctx.index,
        ctx.B, H=plan.widths[name], TRAINING=ctx.training,
        BLOCK_H=vector_block(plan.widths[name]),
    )  # fmt: skip


def levels_gradient(ctx: LaunchContext, stage: Stage, k: int) -> None:
    at, embedding = ctx.at, ctx.training_call.embedding
    ctx.launch(
        step_gradients.levels_gradient_kernel, stage, at[Kind.D_SIGNAL()], at[Kind.D_NOISE()],
        at[Kind.GRADIENT("z")], at[Kind.EPS()], at[Kind.LABELS()], embedding.W_embed, ctx.B,
        D=embedding.D, ROWS=ROWS, BLOCK_D=power_of_2(embedding.D, 16, 64),
    )  # fmt: skip


def embedding_gradient(ctx: LaunchContext, stage: Stage, k: int) -> None:
    at, call = ctx.at, ctx.training_call
    d_u_hat, d_z = (
        at[each] if each in stage.reads else None for each in (Kind.D_U_HAT(), Kind.GRADIENT("z"))
    )
    ctx.launch(
        step_gradients.embedding_gradient_kernel, stage, at[Kind.D_W_EMBED()], at.get(Kind.P()),
        d_u_hat, d_z, at[Kind.LABELS()], per_row(call.noising.signal), k, ctx.B,
        M=at[Kind.D_W_EMBED()].shape[1], D=call.embedding.D, BLOCK_M=EMBEDDING,
        BLOCK_D=EMBEDDING, BLOCK_B=32,
    )  # fmt: skip


def update_all(ctx: LaunchContext, stage: Stage, k: int) -> None:
    plan, at, slices = ctx.slices.plan, ctx.at, ctx.slices
    moving = any(Kind.STATE(name) in stage.writes for name in slices.stats)
    parts = update_parts(plan, ctx.training, moving)
    tiles = update_tiles(plan, ctx.training, moving)
    weights = [(ctx.parameter(one.name), at[one.d_y], ctx.source(one.x)) for one in parts.weights]
    vectors = [(ctx.parameter(one.name), at[one.gradient]) for one in parts.vectors]
    statistics = [
        (slices.stats[name], at[Kind.BATCH(name)], momentum)
        for name, momentum, _ in parts.statistics
    ]
    blocks = update_blocks()
    ctx.launch(
        update.update_kernel, stage, tuple(weights), tuple(vectors), tuple(statistics),
        at.get(Kind.RATES()), numbers_of(ctx.rule), ctx.index, ctx.B, WEIGHTS=tiles.weights,
        VECTORS=tiles.vectors, STATISTICS=tiles.statistics, RULE=formula_of(ctx.rule),
        PRECISION=ctx.device.precision(slices.precision), BLOCK_H=blocks.rows,
        BLOCK_B=blocks.depth, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip


LAUNCHES: dict[str, Callable[[LaunchContext, Stage, int], None]] = {
    "gather": gather,
    "add_noise": add_noise,
    "dense": dense_forward,
    "norm": norm_forward,
    "head": head_gradient,
    "loss": loss,
    "rates": rates,
    "result_gradient": result_gradient,
    "norm_gradient": norm_gradient,
    "step_gradients": levels_gradient,
    "d_W_embed": embedding_gradient,
    "update": update_all,
}
