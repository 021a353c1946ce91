"""How each kind of layer stands in a table: its stages, its gradients, and what a step moves.

A kind is an entry of KINDS; tables and both backends ask nothing else about it.
"""

from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from ...plan import Dense, Plan
from .buffers import Buffer, Kind

if TYPE_CHECKING:
    from .tables import TableBuilder


class End(NamedTuple):
    """An activation that ends a layer: its gradient is formed where the result's is.

    Args:
        activation: its name.
        kept: the operand of its gradient.
        d_y: the gradient behind it.
    """

    activation: str
    kept: Buffer
    d_y: Buffer


class Consumer(NamedTuple):
    """A part of a result's gradient: d_y @ weight[:, column : column + F], or d_y (B, F) itself.

    Args:
        d_y: (B, height).
        height: of d_y.
        weight: the parameter (height, in_width), or None.
    """

    d_y: Buffer
    height: int
    weight: str | None = None
    in_width: int = 1
    column: int = 0

    @property
    def reads(self) -> list[Buffer]:
        return [self.d_y] if self.weight is None else [self.d_y, Kind.STATE(self.weight)]


class Sum(IntEnum):
    """The gradient of a vector: summed over rows by the update, summed earlier, or always 0."""

    ROWS = 0
    DONE = 1
    ZERO = 2


class WeightPart(NamedTuple):
    """Columns column .. column + F of a weight (H, in_width), whose gradient is d_y.T @ x."""

    name: str
    d_y: Buffer
    x: str  # the source
    H: int
    F: int
    in_width: int
    column: int


class VectorPart(NamedTuple):
    """A parameter (H,) and its gradient, or d_y (B, H) where that is summed over rows."""

    name: str
    gradient: Buffer
    sum: Sum
    H: int


class StatisticPart(NamedTuple):
    """A running statistic (H,)."""

    name: str
    momentum: float
    H: int


Part = WeightPart | VectorPart | StatisticPart


class UpdateParts(NamedTuple):
    """All that a step moves, or the gradients of it, each kind of part in plan order."""

    weights: tuple[WeightPart, ...]
    vectors: tuple[VectorPart, ...]
    statistics: tuple[StatisticPart, ...]


class LayerKind(NamedTuple):
    """What a table asks about a kind of layer; each function has the plan and a layer's name.

    Args:
        forward: adds the stages of the layer's result.
        end: the activation that ends it, if any.
        backward: adds the stages between the gradient of the result, or the one behind `end`, and
            those that `consumers` and `update` read.
        consumers: its parts of a source's gradient.
        update: what a step moves of it; in training, by the flag.
    """

    forward: "Callable[[TableBuilder, str], None]"
    end: Callable[[Plan, str], End | None]
    backward: "Callable[[TableBuilder, str], None]"
    consumers: Callable[[Plan, str, str], Iterator[Consumer]]
    update: Callable[[Plan, str, bool], Iterator[Part]]


def kind_of(plan: Plan, name: str) -> LayerKind:
    return KINDS[type(plan.layers[name])]


def end_of(plan: Plan, name: str) -> End | None:
    """The activation that ends a layer; None without one, and of an input."""
    return kind_of(plan, name).end(plan, name) if name in plan.layers else None


def consumers(plan: Plan, result: str) -> list[Consumer]:
    """The parts of a result's gradient, in the order of their sum: that of the plan."""
    if result == plan.output:
        return [Consumer(Kind.GRADIENT(result), plan.widths[result])]
    found: list[Consumer] = []
    for name, layer in plan.layers.items():
        found += kind_of(plan, name).consumers(plan, name, result)
        if layer.add == result:
            found.append(Consumer(Kind.GRADIENT(name), plan.widths[name]))
    return found


@lru_cache(maxsize=256)
def update_parts(plan: Plan, training: bool, moving: bool) -> UpdateParts:
    """The parts of the update; moving: with running statistics."""
    parts = [
        part for name in plan.layers for part in kind_of(plan, name).update(plan, name, training)
    ]
    return UpdateParts(
        tuple(part for part in parts if isinstance(part, WeightPart)),
        tuple(part for part in parts if isinstance(part, VectorPart)),
        tuple(part for part in parts if moving and isinstance(part, StatisticPart)),
    )


# dense layers


def dense_end(plan: Plan, name: str) -> End | None:
    layer = plan.dense[name]
    if layer.activation is None:
        return None
    # the result is the operand where nothing is added to it
    kept = Kind.KEPT if layer.add or layer.needs_preactivation else Kind.RESULT
    d_y = Kind.PRODUCT_GRADIENT if layer.norm is None else Kind.NORM_OUT_GRADIENT
    return End(layer.activation, kept(name), d_y(name))


def behind_end(plan: Plan, name: str) -> Buffer:
    """The gradient behind a layer's activation."""
    end = end_of(plan, name)
    return Kind.GRADIENT(name) if end is None else end.d_y


def product_gradient(plan: Plan, name: str) -> Buffer:
    """The gradient of a dense layer's product."""
    normed = plan.dense[name].norm is not None
    return Kind.PRODUCT_GRADIENT(name) if normed else behind_end(plan, name)


def dense_forward(builder: "TableBuilder", name: str) -> None:
    options, plan = builder.options, builder.plan
    layer, end = plan.dense[name], end_of(plan, name)
    n, B, H = options.n, options.B, layer.features
    sources = [*map(Kind.RESULT, layer.sources)]
    params = [Kind.STATE(f"{name}.weight"), Kind.STATE(f"{name}.bias")]
    grid = (*options.tiles.product(B, H, options.precision), n)
    ends = [builder.size(Kind.RESULT(name), n, B, H)]
    if end is not None and end.kept.kind is Kind.KEPT:
        ends.append(builder.size(end.kept, n, B, H))
    add = [Kind.RESULT(layer.add)] if layer.add else []
    if layer.norm is None:
        builder.add("dense", name, [*sources, *add, *params], ends, grid)
        return
    y = builder.size(Kind.PRODUCT(name), n, B, H)
    builder.add("dense", name, [*sources, *params], [y], grid)
    norm = f"{name}.norm."
    reads = [y, *add, Kind.STATE(norm + "weight"), Kind.STATE(norm + "bias")]
    ends += [builder.size(part(name), n, H) for part in (Kind.MEAN, Kind.RSTD)]
    statistics = [Kind.STATE(norm + part) for part in ("running_mean", "running_var")]
    if not options.training or options.statistics == "now":
        reads += statistics
    if options.statistics == "now":
        ends += statistics
    elif options.training:
        ends += [builder.size(Kind.BATCH(running.name), n, H) for running in statistics]
    builder.add("norm", name, reads, ends, (options.tiles.vector(H), n))


def dense_backward(builder: "TableBuilder", name: str) -> None:
    options, plan = builder.options, builder.plan
    if plan.dense[name].norm is None:
        return
    n, B, H, norm = options.n, options.B, plan.widths[name], f"{name}.norm."
    reads = [behind_end(plan, name), Kind.PRODUCT(name), Kind.MEAN(name), Kind.RSTD(name)]
    reads.append(Kind.STATE(norm + "weight"))
    writes = [builder.size(Kind.PRODUCT_GRADIENT(name), n, B, H)]
    writes += [builder.size(Kind.NORM_SUM(norm + part), n, H) for part in ("weight", "bias")]
    builder.add("norm_gradient", name, reads, writes, (options.tiles.vector(H), n))


def dense_consumers(plan: Plan, name: str, result: str) -> Iterator[Consumer]:
    d_y, column = product_gradient(plan, name), 0
    for source in plan.dense[name].sources:
        if source == result:
            weight = f"{name}.weight"
            yield Consumer(d_y, plan.widths[name], weight, plan.in_widths[name], column)
        column += plan.widths[source]


def dense_update(plan: Plan, name: str, training: bool) -> Iterator[Part]:
    layer, d_y, column = plan.dense[name], product_gradient(plan, name), 0
    H, norm = layer.features, f"{name}.norm."
    for source in layer.sources:
        F = plan.widths[source]
        yield WeightPart(f"{name}.weight", d_y, source, H, F, plan.in_widths[name], column)
        column += F
    # batch statistics cancel a bias before them
    frozen = layer.norm is not None and training
    yield VectorPart(f"{name}.bias", d_y, Sum.ZERO if frozen else Sum.ROWS, H)
    if layer.norm is None:
        return
    for part in (norm + "weight", norm + "bias"):
        yield VectorPart(part, Kind.NORM_SUM(part), Sum.DONE, H)
    for part in (norm + "running_mean", norm + "running_var"):
        yield StatisticPart(part, layer.norm.momentum, H)


KINDS: dict[type, LayerKind] = {
    Dense: LayerKind(dense_forward, dense_end, dense_backward, dense_consumers, dense_update)
}
