"""Launches the stages of a table: the kernel of each stage and its arguments."""

from collections.abc import Callable

from torch import Tensor

from ..calls import AddNoiseCall, Gather, HeadCall, TrainCall
from ..gpu.buffers import Kind
from ..gpu.memory import differs
from ..gpu.optimizer import formula_of
from ..gpu.stages import Stage
from ..gpu.tables import behind_activation, consumers, flags_of, kept, product_gradient
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
from .context import Address, Device, Walk, logs_of, number, numbers_of, rates_of
from .kernels import dense, head, noise, norm, step_gradients, update


def run(walk: Walk, k: int = 0) -> None:
    """Every stage of step k, in order."""
    for stage in walk.table.stages:
        LAUNCHES[stage.kind](walk, stage, k)


def gather(walk: Walk, stage: Stage, k: int) -> None:
    name = stage.name
    value, F = walk.training_call.inputs[name], walk.slices.plan.widths[name]
    if isinstance(value, Gather):
        data, indices, rows = (value.data,), value.indices, len(value.data)
        mean, scale, out = value.mean, value.scale, walk.at[Kind.RESULT(name)]
    else:
        tensor = walk.at[Kind.RESULT(name)]
        data = (tensor, int(differs(tensor, 0)))
        indices, rows, mean, scale, out = None, 0, None, None, None
    walk.launch(
        noise.gather_kernel, stage, out, walk.at.get(Kind.BAD(name)), data, indices, rows, mean,
        scale, k, walk.B, F=F, ROWS=ROWS, BLOCK_F=power_of_2(F, 16, 256),
    )  # fmt: skip


def add_noise(walk: Walk, stage: Stage, k: int) -> None:
    at = walk.at
    z = at[Kind.RESULT("z")] if Kind.RESULT("z") in stage.writes else None
    launch_add_noise(
        walk.device, stage.grid, z, at.get(Kind.EPS()), at[Kind.LABELS()],
        at.get(Kind.BAD_LABELS()), walk.training_call, k,
    )  # fmt: skip


def launch_add_noise(
    device: Device, grid: tuple[int, ...], z: Tensor | None, eps: Tensor | None,
    labels: Tensor | None, bad: Tensor | None, call: TrainCall | AddNoiseCall, k: int,
) -> None:  # fmt: skip
    drawn, noising, embedding, y = call.noise, call.noising, call.embedding, call.y
    if isinstance(y, Gather):
        read, indices, R, rows = (y.data,), (y.indices, y.replica), y.indices.shape[1], len(y.data)
    else:
        read, indices, R, rows = number(y), None, 0, 0
    device.launch(
        noise.add_noise_kernel, grid, z, eps, labels, bad, read, indices, R, rows,
        embedding.W_embed, drawn.seeds,
        number(drawn.draw), number(drawn.block), number(noising.signal), number(noising.noise),
        float(noising.sigma), k, noising.signal.shape[2], drawn.first_row,
        M=embedding.M, D=embedding.D, STREAM=drawn.stream, SECOND=noising.sigma != 0,
        **noise_blocks(embedding.D),
    )  # fmt: skip


def noise_blocks(D: int) -> dict[str, int]:
    return {"ROWS": ROWS, "GROUPS": power_of_2(cdiv(D, 4), 4, 32)}


def dense_forward(walk: Walk, stage: Stage, k: int) -> None:
    plan, slices, name = walk.slices.plan, walk.slices, stage.name
    layer = plan.dense[name]
    plain = layer.norm is None
    widths = tuple(plan.widths[source] for source in layer.sources)
    blocks = dense_blocks(layer.features, slices.precision)
    walk.launch(
        dense.dense_kernel, stage,
        walk.at[Kind.RESULT(name) if plain else Kind.PRODUCT(name)],
        walk.at.get(Kind.KEPT(name)) if plain else None,
        tuple(walk.source(source) for source in layer.sources),
        walk.source(layer.add) if plain and layer.add else None,
        slices.params[f"{name}.weight"], slices.params[f"{name}.bias"], walk.index, walk.B,
        H=layer.features, WIDTHS=widths, IN_WIDTH=sum(widths),
        ADDS=plain and layer.add is not None, ACTIVATION=layer.activation if plain else None,
        PRECISION=walk.device.precision(slices.precision),
        BLOCK_B=blocks.rows, BLOCK_H=blocks.columns, BLOCK_K=blocks.depths(widths),
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip


def norm_forward(walk: Walk, stage: Stage, k: int) -> None:
    slices, name = walk.slices, stage.name
    layer = slices.plan.dense[name]
    assert layer.norm is not None
    key = f"{name}.norm."
    statistics = tuple(slices.stats[key + part] for part in ("running_mean", "running_var"))
    batch = tuple(walk.at.get(Kind.BATCH(key + part)) for part in ("running_mean", "running_var"))
    walk.launch(
        norm.norm_kernel, stage, walk.at[Kind.RESULT(name)], walk.at.get(Kind.KEPT(name)),
        walk.at[Kind.MEAN(name)], walk.at[Kind.RSTD(name)], None if batch[0] is None else batch,
        walk.at[Kind.PRODUCT(name)],
        walk.source(layer.add) if layer.add else None, slices.params[key + "weight"],
        slices.params[key + "bias"], statistics, walk.index, layer.norm.eps, layer.norm.momentum,
        walk.B, H=layer.features, TRAINING=walk.training,
        MOVE=Kind.STATE(key + "running_mean") in stage.writes, ADDS=layer.add is not None,
        ACTIVATION=layer.activation, BLOCK_H=vector_block(layer.features),
    )  # fmt: skip


def head_blocks(M: int, D: int) -> dict[str, int]:
    return {"ROWS": ROWS, "BLOCK_M": power_of_2(M, 16, 64), "BLOCK_D": power_of_2(D, 16, 64)}


def head_gradient(walk: Walk, stage: Stage, k: int) -> None:
    plan, at = walk.slices.plan, walk.at
    launch_head(
        walk.device, stage.grid, at[Kind.ERROR()], at[Kind.GRADIENT(plan.output)],
        at.get(Kind.D_U_HAT()), at.get(Kind.P()), at[Kind.RESULT(plan.output)], at[Kind.LABELS()],
        at.get(Kind.EPS()), walk.training_call, k,
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
        eps if objective.flow != 0 else None, embedding.W_embed, number(objective.weight),
        float(objective.flow), float(objective.rows), k, B, M=M, D=embedding.D, HEAD=objective.head,
        **head_blocks(M, embedding.D),
    )  # fmt: skip


def loss(walk: Walk, stage: Stage, k: int) -> None:
    objective, rule, at, slices = walk.training_call.objective, walk.rule, walk.at, walk.slices
    flags = flags_of(stage) if walk.errors is not None else []
    bad = tuple((at[each], walk.places.get(each.name)) for each in flags)
    lr, decay = rates_of(rule)
    walk.launch(
        update.loss_kernel, stage, at[Kind.LOSS()][k], at[Kind.APPLIED()][k], at.get(Kind.RATES()),
        slices.draws, slices.updates, walk.errors, at[Kind.ERROR()], number(objective.weight), bad,
        lr, decay, walk.index, float(objective.rows), k, walk.B, cdiv(walk.B, ROWS), FLAGS=len(bad),
        RULE=formula_of(rule), **logs_of(rule),
    )  # fmt: skip


def rates(walk: Walk, stage: Stage, k: int) -> None:
    d_logits = walk.at.get(Kind.GRADIENT(walk.slices.plan.output))
    lr, decay = rates_of(walk.rule)
    walk.launch(
        update.rates_kernel, stage, walk.at[Kind.RATES()], walk.at.get(Kind.APPLIED()),
        walk.slices.updates, d_logits, lr, decay, walk.index, k,
        0 if d_logits is None else d_logits[0].numel(),
        RULE=formula_of(walk.rule), **logs_of(walk.rule),
    )  # fmt: skip


def result_gradient(walk: Walk, stage: Stage, k: int) -> None:
    plan, slices, at, name = walk.slices.plan, walk.slices, walk.at, stage.name
    layer, F = plan.dense.get(name), plan.widths[name]
    read: list[Address] = []
    columns, heights, widths = [], [], []
    for reader, column in consumers(plan, name) if name != plan.output else [(name, None)]:
        columns.append(column or 0)
        heights.append(plan.widths[reader])
        widths.append(1 if column is None else plan.in_widths[reader])
        if column is None:
            read.append((at[Kind.GRADIENT(reader)], None))
        else:
            read.append((at[product_gradient(plan, reader)], slices.params[f"{reader}.weight"]))
    activation = None if layer is None else layer.activation
    blocks = dense_blocks(F, slices.precision)
    walk.launch(
        dense.result_gradient_kernel, stage,
        at[Kind.GRADIENT(name)] if Kind.GRADIENT(name) in stage.writes else None,
        at[behind_activation(plan, name)] if activation else None,
        at[kept(plan, name)] if activation else None, tuple(read), walk.index, walk.B,
        F=F, HEIGHTS=tuple(heights), IN_WIDTHS=tuple(widths), COLUMNS=tuple(columns),
        ACTIVATION=activation, PRECISION=walk.device.precision(slices.precision),
        BLOCK_B=blocks.rows, BLOCK_F=blocks.columns, BLOCK_K=blocks.depths(tuple(heights)),
        warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip


def norm_gradient(walk: Walk, stage: Stage, k: int) -> None:
    at, name, key = walk.at, stage.name, f"{stage.name}.norm."
    plan = walk.slices.plan
    walk.launch(
        norm.norm_gradient_kernel, stage, at[Kind.PRODUCT_GRADIENT(name)],
        at[Kind.NORM_SUM(key + "weight")], at[Kind.NORM_SUM(key + "bias")],
        at[behind_activation(plan, name)], at[Kind.PRODUCT(name)],
        at[Kind.MEAN(name)], at[Kind.RSTD(name)], walk.slices.params[key + "weight"], walk.index,
        walk.B, H=plan.widths[name], TRAINING=walk.training,
        BLOCK_H=vector_block(plan.widths[name]),
    )  # fmt: skip


def numbers_gradient(walk: Walk, stage: Stage, k: int) -> None:
    at, embedding = walk.at, walk.training_call.embedding
    walk.launch(
        step_gradients.numbers_gradient_kernel, stage, at[Kind.D_SIGNAL()], at[Kind.D_NOISE()],
        at[Kind.GRADIENT("z")], at[Kind.EPS()], at[Kind.LABELS()], embedding.W_embed, walk.B,
        D=embedding.D, ROWS=ROWS, BLOCK_D=power_of_2(embedding.D, 16, 64),
    )  # fmt: skip


def embedding_gradient(walk: Walk, stage: Stage, k: int) -> None:
    at, call = walk.at, walk.training_call
    d_u_hat, d_z = (
        at[each] if each in stage.reads else None for each in (Kind.D_U_HAT(), Kind.GRADIENT("z"))
    )
    walk.launch(
        step_gradients.embedding_gradient_kernel, stage, at[Kind.D_W_EMBED()], at.get(Kind.P()),
        d_u_hat, d_z, at[Kind.LABELS()], number(call.noising.signal), k, walk.B,
        M=at[Kind.D_W_EMBED()].shape[1], D=call.embedding.D, BLOCK_M=EMBEDDING,
        BLOCK_D=EMBEDDING, BLOCK_B=32,
    )  # fmt: skip


def update_all(walk: Walk, stage: Stage, k: int) -> None:
    plan, at, slices = walk.slices.plan, walk.at, walk.slices
    weights, vectors, statistics = [], [], []
    for name, layer in plan.dense.items():
        d_y = at[product_gradient(plan, name)]
        for source in layer.sources:
            weights.append((walk.parameter(f"{name}.weight"), d_y, walk.source(source)))
        vectors.append((walk.parameter(f"{name}.bias"), d_y))
        if layer.norm is not None:
            key = f"{name}.norm."
            for part in ("weight", "bias"):
                vectors.append((walk.parameter(key + part), at[Kind.NORM_SUM(key + part)]))
            if Kind.STATE(key + "running_mean") in stage.writes:
                for part in (key + "running_mean", key + "running_var"):
                    batch = at[Kind.BATCH(part)]
                    statistics.append((slices.stats[part], batch, layer.norm.momentum))
    tiles = update_tiles(plan, walk.training, bool(statistics))
    blocks = update_blocks()
    walk.launch(
        update.update_kernel, stage, tuple(weights), tuple(vectors), tuple(statistics),
        at.get(Kind.RATES()), numbers_of(walk.rule), walk.index, walk.B, WEIGHTS=tiles.weights,
        VECTORS=tiles.vectors, STATISTICS=tiles.statistics, RULE=formula_of(walk.rule),
        PRECISION=walk.device.precision(slices.precision), BLOCK_H=blocks.rows,
        BLOCK_B=blocks.depth, warps=blocks.warps, stages=blocks.stages,
    )  # fmt: skip


LAUNCHES: dict[str, Callable[[Walk, Stage, int], None]] = {
    "gather": gather,
    "add_noise": add_noise,
    "dense": dense_forward,
    "norm": norm_forward,
    "head": head_gradient,
    "loss": loss,
    "rates": rates,
    "result_gradient": result_gradient,
    "norm_gradient": norm_gradient,
    "numbers": numbers_gradient,
    "d_W_embed": embedding_gradient,
    "update": update_all,
}
