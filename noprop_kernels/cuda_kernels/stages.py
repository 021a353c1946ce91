"""The stages of a table as the stages of a program: each kind's fields, by the table's names."""

from collections.abc import Callable

from torch import Tensor

from ..calls import Gather, PredictCall
from ..gpu.records import classes
from ..gpu.shapes import cdiv
from ..gpu.stages import Stage
from ..gpu.tables import activated, behind_activation, consumers, product_gradient
from . import buffers, shapes
from .buffers import TYPES, address, number, real
from .walk import Fields, Walk, stage

NOTHING = (None, 0, 0, 0)  # a number that no one reads


def gather(walk: Walk, item: Stage) -> list[Fields]:
    name, value = item.name, walk.inputs[item.name]
    fields: Fields = {"bad": walk.at.get(f"bad:{name}"), "F": walk.slices.plan.widths[name]}
    if isinstance(value, Gather):
        fields |= {
            "out": walk.at[name],
            "data": (value.data.data_ptr(), 0, 0, 0),
            "rows": buffers.rows_of(value),
            "scale": address(value.scale),
            "shift": address(value.shift),
            "type": TYPES[value.data.dtype],
        }
    else:
        nothing = dict.fromkeys(("out", "rows", "scale", "shift"))
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
    drawn, mix, y = walk.noise, walk.mix, walk.y
    assert drawn is not None and mix is not None and y is not None
    gathered = isinstance(y, Gather)
    return stage(
        "noise",
        shapes.row_tiles(walk.B),
        **outputs,
        y=(y.data.data_ptr(), 0, 0, 0) if gathered else number(y),
        rows=buffers.rows_of(y) if gathered else None,
        W_embed=address(mix.W_embed),
        seeds=address(walk.hold(drawn.seeds.contiguous())),
        draw=number(drawn.draw),
        block=number(drawn.block),
        signal=number(mix.signal),
        noise=number(mix.noise),
        first_row=drawn.first_row,
        sigma=mix.sigma,
        stream=drawn.stream,
        M=classes(mix),
        D=mix.D,
    )


def dense(walk: Walk, item: Stage) -> list[Fields]:
    plan, params, at, name = walk.slices.plan, walk.slices.params, walk.at, item.name
    layer = plan.layers[name]
    plain = layer.norm is None  # else the norm has the activation and `add`
    return [
        stage(
            "dense",
            tiles_of_product(walk.B, layer.features),
            out=at[name if plain else f"y:{name}"],
            activated=at.get(f"act:{name}") if plain else None,
            sources=[at[source] for source in layer.sources],
            add=at[layer.add] if plain and layer.add else None,
            weight=address(params[f"{name}.weight"]),
            bias=address(params[f"{name}.bias"]),
            widths=[plan.widths[source] for source in layer.sources],
            num_sources=len(layer.sources),
            H=layer.features,
            in_width=plan.in_widths[name],
            relu=int(plain and layer.activation == "relu"),
            tile=shapes.product_tile(walk.B, layer.features),
        )
    ]


def tiles_of_product(B: int, columns: int) -> int:
    along_B, along_columns = shapes.product_tiles(B, columns)
    return along_B * along_columns


def norm(walk: Walk, item: Stage) -> list[Fields]:
    slices, at, name = walk.slices, walk.at, item.name
    layer = slices.plan.layers[name]
    assert layer.norm is not None
    key = f"{name}.norm."
    mean, var = key + "running_mean", key + "running_var"
    return [
        stage(
            "norm",
            shapes.vector_tiles(layer.features),
            out=at[name],
            activated=at.get(f"act:{name}"),
            mean=at[f"mean:{name}"],
            rstd=at[f"rstd:{name}"],
            batch_mean=at.get(f"batch:{mean}"),
            batch_var=at.get(f"batch:{var}"),
            y=at[f"y:{name}"],
            add=at[layer.add] if layer.add else None,
            weight=address(slices.params[key + "weight"]),
            bias=address(slices.params[key + "bias"]),
            running_mean=address(slices.stats[mean]),
            running_var=address(slices.stats[var]),
            eps=layer.norm.eps,
            momentum=layer.norm.momentum,
            H=layer.features,
            relu=int(layer.activation == "relu"),
            training=int(walk.training),
            move=int(mean in item.writes),
        )
    ]


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
    mix = walk.mix
    assert mix is not None
    return stage(
        "head",
        shapes.row_tiles(walk.B),
        **outputs,
        logits=logits,
        labels=labels,
        eps=eps if mix.flow != 0 else None,
        W_embed=address(mix.W_embed),
        weight=number(mix.weight),
        flow=mix.flow,
        rows=float(mix.rows),
        head=mix.head,
        M=M,
        D=mix.D,
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
    mix, rule = walk.mix, walk.rule
    assert mix is not None
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
        weight=number(mix.weight),
        lr=real(rule.lr if rule else None),
        weight_decay=real(rule.weight_decay if rule else None),
        rows=float(mix.rows),
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


def result_gradient(walk: Walk, item: Stage) -> list[Fields]:
    plan, params, at, name = walk.slices.plan, walk.slices.params, walk.at, item.name
    layer, F = plan.layers.get(name), plan.widths[name]
    read = []
    for reader, column in consumers(plan, name) if name != plan.output else [(name, None)]:
        height = plan.widths[reader]
        if column is None:
            read.append((at[f"d:{reader}"], None, height, 0, 0))
        else:
            weight = address(params[f"{reader}.weight"])
            d_y = at[product_gradient(plan, reader)]
            read.append((d_y, weight, height, plan.in_widths[reader], column))
    relu = layer is not None and layer.activation == "relu"
    return [
        stage(
            "result_gradient",
            tiles_of_product(walk.B, F),
            d_result=at[f"d:{name}"] if f"d:{name}" in item.writes else None,
            d_y=at[behind_activation(plan, name)] if relu else None,
            activated=at[activated(plan, name)] if relu else None,
            consumers=read,
            num_consumers=len(read),
            F=F,
            tile=shapes.product_tile(walk.B, F),
        )
    ]


def norm_gradient(walk: Walk, item: Stage) -> list[Fields]:
    plan, at, name, key = walk.slices.plan, walk.at, item.name, f"{item.name}.norm."
    H = plan.widths[name]
    return [
        stage(
            "norm_gradient",
            shapes.vector_tiles(H),
            d_y=at[f"dy:{name}"],
            d_weight=at[f"sum:{key}weight"],
            d_bias=at[f"sum:{key}bias"],
            d_out=at[behind_activation(plan, name)],
            y=at[f"y:{name}"],
            mean=at[f"mean:{name}"],
            rstd=at[f"rstd:{name}"],
            weight=address(walk.slices.params[key + "weight"]),
            H=H,
            training=int(walk.training),
        )
    ]


def numbers(walk: Walk, item: Stage) -> list[Fields]:
    at, mix = walk.at, walk.mix
    assert mix is not None
    return [
        stage(
            "numbers",
            shapes.row_tiles(walk.B),
            d_signal=at[":d_signal"],
            d_noise=at[":d_noise"],
            d_z=at["d:z"],
            eps=at[":eps"],
            labels=at[":y"],
            W_embed=address(mix.W_embed),
            D=mix.D,
        )
    ]


def embedding(walk: Walk, item: Stage) -> list[Fields]:
    at, mix = walk.at, walk.mix
    assert mix is not None
    M, side = classes(mix), shapes.constant("kEmbedding")
    return [
        stage(
            "embedding",
            cdiv(M, side) * cdiv(mix.D, side),
            d_W=at[":d_W_embed"],
            p=at.get(":p"),
            d_u_hat=at[":d_u_hat"] if ":d_u_hat" in item.reads else None,
            d_z=at["d:z"] if "d:z" in item.reads else None,
            labels=at[":y"],
            signal=number(mix.signal),
            M=M,
            D=mix.D,
        )
    ]


def update(walk: Walk, item: Stage) -> list[Fields]:
    """Weights first, source by source, then the vectors, then the statistics."""
    plan, at, slices = walk.slices.plan, walk.at, walk.slices
    weights, vectors, statistics = [], [], []
    for name, layer in plan.layers.items():
        H, d_y, column = layer.features, at[product_gradient(plan, name)], 0
        for source in layer.sources:
            weights.append(weight_stage(walk, name, source, column))
            column += plan.widths[source]
        frozen = layer.norm is not None and walk.training
        kind = "zero" if frozen else "rows"
        vectors.append(vector_stage(walk, f"{name}.bias", d_y, kind, H))
        if layer.norm is None:
            continue
        key = f"{name}.norm."
        for part in (key + "weight", key + "bias"):
            vectors.append(vector_stage(walk, part, at[f"sum:{part}"], "done", H))
        for part in (key + "running_mean", key + "running_var"):
            if part in item.writes:
                fields = {"running": address(slices.stats[part]), "batch": at[f"batch:{part}"]}
                fields |= {"rates": at[":rates"], "momentum": layer.norm.momentum, "H": H}
                statistics.append(stage("update_statistic", shapes.vector_tiles(H), **fields))
    return [*weights, *vectors, *statistics]


def weight_stage(walk: Walk, name: str, source: str, column: int) -> Fields:
    plan = walk.slices.plan
    H, F = plan.widths[name], plan.widths[source]
    return stage(
        "update_weight",
        shapes.weight_tiles(H, F),
        param=walk.parameter(f"{name}.weight"),
        d_y=walk.at[product_gradient(plan, name)],
        x=walk.at[source],
        rates=walk.at.get(":rates"),
        H=H,
        F=F,
        in_width=plan.in_widths[name],
        column=column,
        resident=0,
        resident_tiles=0,
    )


def vector_stage(walk: Walk, name: str, gradient: buffers.Buffer, kind: str, H: int) -> Fields:
    return stage(
        "update_vector",
        shapes.vector_tiles(H),
        param=walk.parameter(name),
        gradient=gradient,
        rates=walk.at.get(":rates"),
        sum=kind,
        H=H,
    )


def apply_stage(walk: Walk, name: str, gradient: Tensor) -> Fields:
    return stage(
        "apply",
        cdiv(gradient[0].numel(), shapes.constant("kApplied")),
        param=walk.parameter(name),
        gradient=buffers.of_slices(gradient),
        rates=walk.at[":rates"],
    )


def u_hat_stage(
    walk: Walk,
    u_hat: buffers.Buffer,
    logits: buffers.Buffer,
    M: int,
    D: int,
    W_embed: Tensor | None,
    name: str,
) -> Fields:
    return stage(
        "u_hat",
        shapes.row_tiles(walk.B),
        u_hat=u_hat,
        logits=logits,
        W_embed=address(W_embed),
        M=M,
        D=D,
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
        D=call.D,
    )


STAGES: dict[str, Callable[[Walk, Stage], list[Fields]]] = {
    "gather": gather,
    "add_noise": add_noise,
    "dense": dense,
    "norm": norm,
    "head": head,
    "loss": loss,
    "rates": rates,
    "result_gradient": result_gradient,
    "norm_gradient": norm_gradient,
    "numbers": numbers,
    "d_W_embed": embedding,
    "update": update,
}


def of_table(walk: Walk) -> list[Fields]:
    """Every stage of the walk's table, in order, with its barriers."""
    assert walk.table is not None
    made: list[Fields] = []
    for item in walk.table.stages:
        made += STAGES[item.kind](walk, item)
        made[-1]["barrier"] = int(item.expects > 0)
    return made
