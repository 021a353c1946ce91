"""The tables of a backend's calls: a whole step, the layers alone, the gradients behind them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ...plan import Dense, Plan
from .buffers import Buffer, Kind
from .stages import Shape, Stage, Table, floats, share_memory, with_barriers
from .tiles import Tiles, cdiv


@dataclass(frozen=True)
class TableOptions:
    """The options of a table: all that it depends on beside the plan.

    Args:
        tiles: the backend's numbers of tiles by stage.
        n, B, R: slices, rows, and replicas that gather rows of their own.
        M, D: classes and width of an embedding.
        precision: of the products.
        gathered: inputs whose rows are gathered into the workspace.
        looked_at: inputs of the caller whose contents a kernel checks.
        drawn: z is drawn, not the caller's.
        eps: eps is needed after z.
        wanted: inputs whose gradient is requested.
        numbers: d_signal and d_noise are requested.
        d_W_embed: d_W_embed is requested.
        embedded: an embedding is predicted, so that d_W_embed has a part from u_hat.
        update: parameters are updated; else their gradients are written.
        training: batch statistics, else running ones.
        statistics: when the running ones are updated: "now", as soon as the batch's are known,
            "later", with the parameters, or never: "".
        check: contents of labels and indices are checked.
        outside: buffers that are tensors of the caller.
    """

    tiles: Tiles
    n: int
    B: int
    M: int
    D: int
    R: int = 1
    precision: str = "float32"
    gathered: tuple[str, ...] = ()
    looked_at: tuple[str, ...] = ()
    drawn: bool = True
    eps: bool = False
    wanted: frozenset[str] = frozenset()
    numbers: bool = False
    d_W_embed: bool = False
    embedded: bool = True
    update: bool = True
    training: bool = True
    statistics: str = ""
    check: bool = False
    outside: frozenset[Buffer] = frozenset()


def behind_activation(plan: Plan, name: str) -> Buffer:
    layer = plan.dense[name]
    if layer.activation is None:
        return Kind.GRADIENT(name)
    return Kind.PRODUCT_GRADIENT(name) if layer.norm is None else Kind.NORM_OUT_GRADIENT(name)


def product_gradient(plan: Plan, name: str) -> Buffer:
    """The gradient of a layer's product."""
    if plan.dense[name].norm is None:
        return behind_activation(plan, name)
    return Kind.PRODUCT_GRADIENT(name)


def kept(plan: Plan, name: str) -> Buffer:
    """The operand of a layer's activation gradient: its result, where nothing is added to it."""
    layer = plan.dense[name]
    return Kind.KEPT(name) if layer.add or layer.needs_preactivation else Kind.RESULT(name)


def consumers(plan: Plan, result: str) -> list[tuple[str, int | None]]:
    """The layers that read a result, in plan order, each with the result's first column there.

    None: as `add`. Their gradients are summed in this order.
    """
    found: list[tuple[str, int | None]] = []
    for name, layer in plan.layers.items():
        column = 0
        for source in layer.sources:
            if source == result:
                found.append((name, column))
            column += plan.widths[source]
        if layer.add == result:
            found.append((name, None))
    return found


def flags_of(stage: Stage) -> list[Buffer]:
    """The flags of contents that a stage reads."""
    return [each for each in stage.reads if each.kind in (Kind.BAD, Kind.BAD_LABELS)]


@dataclass
class TableBuilder:
    """Collects stages and the shapes of the buffers that they write."""

    plan: Plan
    options: TableOptions
    stages: list[Stage] = field(default_factory=list)
    shapes: dict[Buffer, Shape] = field(default_factory=dict)

    def size(self, buffer: Buffer, *shape: int, dtype: torch.dtype = torch.float32) -> Buffer:
        if buffer not in self.options.outside:
            self.shapes[buffer] = shape, dtype
        return buffer

    def add(
        self, kind: str, name: str, reads: Iterable[Buffer], writes: Iterable[Buffer], grid: tuple
    ) -> None:
        self.stages.append(Stage(kind, name, tuple(reads), tuple(writes), grid))

    def prepare(self) -> None:
        """Stages that gather rows, read labels and draw noise."""
        options, plan = self.options, self.plan
        tiles = cdiv(options.B, options.tiles.rows)
        for name in (*options.gathered, *options.looked_at):
            slots = options.R if name in options.gathered else options.n
            writes = []
            if name in options.gathered:
                writes.append(self.size(Kind.RESULT(name), slots, options.B, plan.widths[name]))
            if options.check:
                writes.append(self.size(Kind.BAD(name), slots, tiles, dtype=torch.int32))
            read = Kind.DATA(name) if name in options.gathered else Kind.RESULT(name)
            self.add("gather", name, [read], writes, (tiles, slots))
        n, B, D = options.n, options.B, options.D
        writes = [self.size(Kind.LABELS(), n, B, dtype=torch.int64)]
        if options.check:
            writes.append(self.size(Kind.BAD_LABELS(), n, tiles, dtype=torch.int32))
        writes += [self.size(Kind.RESULT("z"), n, B, D)] if options.drawn else []
        writes += [self.size(Kind.EPS(), n, B, D)] if options.eps else []
        self.add("add_noise", "z", [Kind.GIVEN_LABELS(), Kind.DRAW()], writes, (tiles, n))

    def forward(self) -> None:
        for name, layer in self.plan.layers.items():
            KINDS[type(layer)](self, name, layer)

    def head(self) -> None:
        options, out = self.options, self.plan.output
        reads = [Kind.RESULT(out), Kind.LABELS()] + ([Kind.EPS()] if options.eps else [])
        writes = [self.size(Kind.ERROR(), options.n, options.B)]
        writes.append(self.size(Kind.GRADIENT(out), options.n, options.B, options.M))
        if options.embedded:
            writes.append(self.size(Kind.D_U_HAT(), options.n, options.B, options.D))
            if options.d_W_embed:
                writes.append(self.size(Kind.P(), options.n, options.B, options.M))
        self.add("head", out, reads, writes, (cdiv(options.B, options.tiles.rows), options.n))
        reads, writes = [Kind.ERROR()], [Kind.LOSS(), Kind.APPLIED()]
        if options.check:
            reads += [Kind.BAD_LABELS(), *map(Kind.BAD, (*options.gathered, *options.looked_at))]
        if options.update:
            counters = [Kind.DRAWS(), Kind.UPDATES()]
            reads += counters
            writes += [self.size(Kind.RATES(), options.n, 4), *counters]
        self.add("loss", out, reads, writes, (options.n,))

    def backward(self) -> None:
        options, plan = self.options, self.plan
        needed = plan.needs_gradient(options.wanted)
        for name in reversed([*plan.inputs, *plan.layers]):
            if name in needed:
                self.result_gradient(name, needed)

    def result_gradient(self, name: str, needed: frozenset[str]) -> None:
        options, plan = self.options, self.plan
        n, B, F = options.n, options.B, plan.widths[name]
        layer = plan.dense.get(name)
        gradient = Kind.GRADIENT(name)
        behind = gradient if layer is None else behind_activation(plan, name)
        reads, writes = [], []
        if layer is not None and layer.activation:
            reads.append(kept(plan, name))
            writes.append(self.size(behind, n, B, F))
        if name == plan.output:
            reads.append(gradient)
        else:
            for reader, column in consumers(plan, name):
                if column is None:
                    reads.append(Kind.GRADIENT(reader))
                else:
                    reads += [product_gradient(plan, reader), Kind.STATE(f"{reader}.weight")]
            if behind == gradient or (layer is not None and layer.add in needed):
                writes.append(self.size(gradient, n, B, F))
        if writes:
            grid = (*options.tiles.product(B, F, options.precision), n)
            self.add("result_gradient", name, reads, writes, grid)
        if layer is not None and layer.norm is not None:
            norm = f"{name}.norm."
            reads = [behind, Kind.PRODUCT(name), Kind.MEAN(name), Kind.RSTD(name)]
            reads.append(Kind.STATE(norm + "weight"))
            writes = [self.size(Kind.PRODUCT_GRADIENT(name), n, B, F)]
            writes += [self.size(Kind.NORM_SUM(norm + part), n, F) for part in ("weight", "bias")]
            self.add("norm_gradient", name, reads, writes, (options.tiles.vector(F), n))

    def step_gradients(self) -> None:
        options = self.options
        if options.numbers:
            reads = [Kind.GRADIENT("z"), Kind.EPS(), Kind.LABELS()]
            grid = (cdiv(options.B, options.tiles.rows), options.n)
            self.add("step_gradients", "z", reads, [Kind.D_SIGNAL(), Kind.D_NOISE()], grid)
        if options.d_W_embed:
            reads = [Kind.LABELS()] + ([Kind.P(), Kind.D_U_HAT()] if options.embedded else [])
            reads += [Kind.GRADIENT("z")] if options.drawn else []
            side = options.tiles.embedding
            grid = (cdiv(options.M, side), cdiv(options.D, side), options.n)
            self.add("d_W_embed", "W_embed", reads, [Kind.D_W_EMBED()], grid)

    def update(self) -> None:
        options, plan = self.options, self.plan
        reads = {Kind.RESULT(name): None for each in plan.layers.values() for name in each.sources}
        for name, layer in plan.dense.items():
            reads[product_gradient(plan, name)] = None
            if layer.norm is not None:
                norm = f"{name}.norm."
                reads |= {Kind.NORM_SUM(norm + part): None for part in ("weight", "bias")}
        params = [*plan.parameters()]
        if not options.update:
            writes = [*map(Kind.PARAMETER_GRADIENT, params)]
        else:
            moved = [*plan.statistics()] if options.statistics == "later" else []
            writes = [*map(Kind.STATE, [*params, *moved])]
            reads |= dict.fromkeys([*writes, Kind.RATES(), *map(Kind.BATCH, moved)])
        tiles = options.tiles.update(plan, options.training, options.statistics == "later")
        self.add("update", "", reads, writes, (tiles, options.n))


def dense_forward(builder: TableBuilder, name: str, layer: Dense) -> None:
    options, plan = builder.options, builder.plan
    n, B, H = options.n, options.B, layer.features
    sources = [*map(Kind.RESULT, layer.sources)]
    params = [Kind.STATE(f"{name}.weight"), Kind.STATE(f"{name}.bias")]
    grid = (*options.tiles.product(B, H, options.precision), n)
    ends = [builder.size(Kind.RESULT(name), n, B, H)]
    if layer.activation and kept(plan, name).kind is Kind.KEPT:
        ends.append(builder.size(Kind.KEPT(name), n, B, H))
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


KINDS: dict[type, Callable[..., None]] = {Dense: dense_forward}  # forward stages of each kind


def finish(builder: TableBuilder, given: Iterable[Buffer], kept: Iterable[Buffer] = ()) -> Table:
    """The builder's table, with barriers and shared memory."""
    stages, kept = with_barriers(builder.stages), frozenset(kept) & builder.shapes.keys()
    sizes = {buffer: floats(shape) for buffer, shape in builder.shapes.items()}
    offsets = share_memory(stages, sizes, kept)
    return Table(stages, builder.shapes, offsets, frozenset(given), kept)


def state(plan: Plan) -> set[Buffer]:
    names = [*plan.parameters(), *plan.statistics()]
    return {*map(Kind.STATE, names), Kind.DRAWS(), Kind.UPDATES()}


def inputs(plan: Plan) -> set[Buffer]:
    return {*map(Kind.RESULT, plan.inputs)}


@lru_cache(maxsize=256)
def train_table(plan: Plan, options: TableOptions) -> Table:
    """A whole step: noise, forward, head, backward, update."""
    builder = TableBuilder(plan, options)
    builder.prepare()
    builder.forward()
    builder.head()
    builder.backward()
    builder.step_gradients()
    builder.update()
    given = state(plan) | {Kind.GIVEN_LABELS(), Kind.DRAW(), *map(Kind.DATA, options.gathered)}
    made = {*map(Kind.RESULT, options.gathered)} | ({Kind.RESULT("z")} if options.drawn else set())
    return finish(builder, given | inputs(plan) - made)


@lru_cache(maxsize=256)
def forward_table(plan: Plan, options: TableOptions, save: bool) -> Table:
    """The layers alone; with `save` every buffer outlives the table."""
    builder = TableBuilder(plan, options)
    builder.forward()
    return finish(builder, state(plan) | inputs(plan), builder.shapes if save else ())


@lru_cache(maxsize=256)
def backward_table(plan: Plan, options: TableOptions, parameters: bool) -> Table:
    """The gradients of a saved forward: of the inputs, and with `parameters` of the parameters."""
    builder = TableBuilder(plan, options)
    forward = TableBuilder(plan, options)
    forward.forward()
    if options.update:
        reads = [Kind.GRADIENT(plan.output), Kind.UPDATES()]
        writes = [Kind.APPLIED(), Kind.UPDATES(), builder.size(Kind.RATES(), options.n, 4)]
        builder.add("rates", "", reads, writes, (options.n,))
    builder.backward()
    if parameters:
        builder.update()
    given = state(plan) | inputs(plan) | {Kind.GRADIENT(plan.output)}
    return finish(builder, given | {buffer for stage in forward.stages for buffer in stage.writes})
