"""The tables of a backend's calls: a whole step, the layers alone, the gradients behind them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ...plan import Plan
from .buffers import Buffer, Kind
from .layers import consumers, end_of, kind_of, update_parts
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
        for name in self.plan.layers:
            kind_of(self.plan, name).forward(self, name)

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
            if name not in needed:
                continue
            self.result_gradient(name, needed)
            if name in plan.layers:
                kind_of(plan, name).backward(self, name)

    def result_gradient(self, name: str, needed: frozenset[str]) -> None:
        options, plan, end = self.options, self.plan, end_of(self.plan, name)
        n, B, F = options.n, options.B, plan.widths[name]
        reads = [buffer for part in consumers(plan, name) for buffer in part.reads]
        writes = []
        if end is not None:
            reads.append(end.kept)
            writes.append(self.size(end.d_y, n, B, F))
        if name != plan.output and (end is None or plan.layers[name].add in needed):
            writes.append(self.size(Kind.GRADIENT(name), n, B, F))
        if writes:
            grid = (*options.tiles.product(B, F, options.precision), n)
            self.add("result_gradient", name, reads, writes, grid)

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
        moving = options.statistics == "later"
        parts = update_parts(plan, options.training, moving)
        reads = {Kind.RESULT(part.x): None for part in parts.weights}
        reads |= {part.d_y: None for part in parts.weights}
        reads |= {part.gradient: None for part in parts.vectors}
        params = [*plan.parameters()]
        if not options.update:
            writes = [*map(Kind.PARAMETER_GRADIENT, params)]
        else:
            moved = [part.name for part in parts.statistics]
            writes = [*map(Kind.STATE, [*params, *moved])]
            reads |= dict.fromkeys([*writes, Kind.RATES(), *map(Kind.BATCH, moved)])
        tiles = options.tiles.update(plan, options.training, moving)
        self.add("update", "", reads, writes, (tiles, options.n))


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
