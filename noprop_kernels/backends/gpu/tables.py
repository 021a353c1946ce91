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
class Ask:
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
class Draft:
    """Collects stages and the shapes of the buffers that they write."""

    plan: Plan
    ask: Ask
    stages: list[Stage] = field(default_factory=list)
    shapes: dict[Buffer, Shape] = field(default_factory=dict)

    def size(self, buffer: Buffer, *shape: int, dtype: torch.dtype = torch.float32) -> Buffer:
        if buffer not in self.ask.outside:
            self.shapes[buffer] = shape, dtype
        return buffer

    def add(
        self, kind: str, name: str, reads: Iterable[Buffer], writes: Iterable[Buffer], grid: tuple
    ) -> None:
        self.stages.append(Stage(kind, name, tuple(reads), tuple(writes), grid))

    def prepare(self) -> None:
        """Stages that gather rows, read labels and draw noise."""
        ask, plan = self.ask, self.plan
        tiles = cdiv(ask.B, ask.tiles.rows)
        for name in (*ask.gathered, *ask.looked_at):
            slots = ask.R if name in ask.gathered else ask.n
            writes = []
            if name in ask.gathered:
                writes.append(self.size(Kind.RESULT(name), slots, ask.B, plan.widths[name]))
            if ask.check:
                writes.append(self.size(Kind.BAD(name), slots, tiles, dtype=torch.int32))
            read = Kind.DATA(name) if name in ask.gathered else Kind.RESULT(name)
            self.add("gather", name, [read], writes, (tiles, slots))
        n, B, D = ask.n, ask.B, ask.D
        writes = [self.size(Kind.LABELS(), n, B, dtype=torch.int64)]
        writes += [self.size(Kind.BAD_LABELS(), n, tiles, dtype=torch.int32)] if ask.check else []
        writes += [self.size(Kind.RESULT("z"), n, B, D)] if ask.drawn else []
        writes += [self.size(Kind.EPS(), n, B, D)] if ask.eps else []
        self.add("add_noise", "z", [Kind.GIVEN_LABELS(), Kind.DRAW()], writes, (tiles, n))

    def forward(self) -> None:
        for name, layer in self.plan.layers.items():
            KINDS[type(layer)](self, name, layer)

    def head(self) -> None:
        ask, out = self.ask, self.plan.output
        reads = [Kind.RESULT(out), Kind.LABELS()] + ([Kind.EPS()] if ask.eps else [])
        writes = [self.size(Kind.ERROR(), ask.n, ask.B)]
        writes.append(self.size(Kind.GRADIENT(out), ask.n, ask.B, ask.M))
        if ask.embedded:
            writes.append(self.size(Kind.D_U_HAT(), ask.n, ask.B, ask.D))
            if ask.d_W_embed:
                writes.append(self.size(Kind.P(), ask.n, ask.B, ask.M))
        self.add("head", out, reads, writes, (cdiv(ask.B, ask.tiles.rows), ask.n))
        reads, writes = [Kind.ERROR()], [Kind.LOSS(), Kind.APPLIED()]
        if ask.check:
            reads += [Kind.BAD_LABELS(), *map(Kind.BAD, (*ask.gathered, *ask.looked_at))]
        if ask.update:
            counters = [Kind.DRAWS(), Kind.UPDATES()]
            reads += counters
            writes += [self.size(Kind.RATES(), ask.n, 4), *counters]
        self.add("loss", out, reads, writes, (ask.n,))

    def backward(self) -> None:
        ask, plan = self.ask, self.plan
        needed = plan.needs_gradient(ask.wanted)
        for name in reversed([*plan.inputs, *plan.layers]):
            if name in needed:
                self.result_gradient(name, needed)

    def result_gradient(self, name: str, needed: frozenset[str]) -> None:
        ask, plan = self.ask, self.plan
        n, B, F = ask.n, ask.B, plan.widths[name]
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
            grid = (*ask.tiles.product(B, F, ask.precision), n)
            self.add("result_gradient", name, reads, writes, grid)
        if layer is not None and layer.norm is not None:
            norm = f"{name}.norm."
            reads = [behind, Kind.PRODUCT(name), Kind.MEAN(name), Kind.RSTD(name)]
            reads.append(Kind.STATE(norm + "weight"))
            writes = [self.size(Kind.PRODUCT_GRADIENT(name), n, B, F)]
            writes += [self.size(Kind.NORM_SUM(norm + part), n, F) for part in ("weight", "bias")]
            self.add("norm_gradient", name, reads, writes, (ask.tiles.vector(F), n))

    def numbers(self) -> None:
        ask = self.ask
        if ask.numbers:
            reads = [Kind.GRADIENT("z"), Kind.EPS(), Kind.LABELS()]
            grid = (cdiv(ask.B, ask.tiles.rows), ask.n)
            self.add("numbers", "z", reads, [Kind.D_SIGNAL(), Kind.D_NOISE()], grid)
        if ask.d_W_embed:
            reads = [Kind.LABELS()] + ([Kind.P(), Kind.D_U_HAT()] if ask.embedded else [])
            reads += [Kind.GRADIENT("z")] if ask.drawn else []
            side = ask.tiles.embedding
            grid = (cdiv(ask.M, side), cdiv(ask.D, side), ask.n)
            self.add("d_W_embed", "W_embed", reads, [Kind.D_W_EMBED()], grid)

    def update(self) -> None:
        ask, plan = self.ask, self.plan
        reads = {Kind.RESULT(name): None for each in plan.layers.values() for name in each.sources}
        for name, layer in plan.dense.items():
            reads[product_gradient(plan, name)] = None
            if layer.norm is not None:
                norm = f"{name}.norm."
                reads |= {Kind.NORM_SUM(norm + part): None for part in ("weight", "bias")}
        params = [*plan.parameters()]
        if not ask.update:
            writes = [*map(Kind.PARAMETER_GRADIENT, params)]
        else:
            moved = [*plan.statistics()] if ask.statistics == "later" else []
            writes = [*map(Kind.STATE, [*params, *moved])]
            reads |= dict.fromkeys([*writes, Kind.RATES(), *map(Kind.BATCH, moved)])
        tiles = ask.tiles.update(plan, ask.training, ask.statistics == "later")
        self.add("update", "", reads, writes, (tiles, ask.n))


def dense_forward(draft: Draft, name: str, layer: Dense) -> None:
    ask, plan = draft.ask, draft.plan
    n, B, H = ask.n, ask.B, layer.features
    sources = [*map(Kind.RESULT, layer.sources)]
    params = [Kind.STATE(f"{name}.weight"), Kind.STATE(f"{name}.bias")]
    grid = (*ask.tiles.product(B, H, ask.precision), n)
    ends = [draft.size(Kind.RESULT(name), n, B, H)]
    if layer.activation and kept(plan, name).kind is Kind.KEPT:
        ends.append(draft.size(Kind.KEPT(name), n, B, H))
    add = [Kind.RESULT(layer.add)] if layer.add else []
    if layer.norm is None:
        draft.add("dense", name, [*sources, *add, *params], ends, grid)
        return
    y = draft.size(Kind.PRODUCT(name), n, B, H)
    draft.add("dense", name, [*sources, *params], [y], grid)
    norm = f"{name}.norm."
    reads = [y, *add, Kind.STATE(norm + "weight"), Kind.STATE(norm + "bias")]
    ends += [draft.size(part(name), n, H) for part in (Kind.MEAN, Kind.RSTD)]
    statistics = [Kind.STATE(norm + part) for part in ("running_mean", "running_var")]
    if not ask.training or ask.statistics == "now":
        reads += statistics
    if ask.statistics == "now":
        ends += statistics
    elif ask.training:
        ends += [draft.size(Kind.BATCH(running.name), n, H) for running in statistics]
    draft.add("norm", name, reads, ends, (ask.tiles.vector(H), n))


KINDS: dict[type, Callable[..., None]] = {Dense: dense_forward}  # forward stages of each kind


def finish(draft: Draft, given: Iterable[Buffer], kept: Iterable[Buffer] = ()) -> Table:
    """The table of a draft, with barriers and shared memory."""
    stages, kept = with_barriers(draft.stages), frozenset(kept) & draft.shapes.keys()
    sizes = {buffer: floats(shape) for buffer, shape in draft.shapes.items()}
    offsets = share_memory(stages, sizes, kept)
    return Table(stages, draft.shapes, offsets, frozenset(given), kept)


def state(plan: Plan) -> set[Buffer]:
    names = [*plan.parameters(), *plan.statistics()]
    return {*map(Kind.STATE, names), Kind.DRAWS(), Kind.UPDATES()}


def inputs(plan: Plan) -> set[Buffer]:
    return {*map(Kind.RESULT, plan.inputs)}


@lru_cache(maxsize=256)
def train_table(plan: Plan, ask: Ask) -> Table:
    """A whole step: noise, forward, head, backward, update."""
    draft = Draft(plan, ask)
    draft.prepare()
    draft.forward()
    draft.head()
    draft.backward()
    draft.numbers()
    draft.update()
    given = state(plan) | {Kind.GIVEN_LABELS(), Kind.DRAW(), *map(Kind.DATA, ask.gathered)}
    made = {*map(Kind.RESULT, ask.gathered)} | ({Kind.RESULT("z")} if ask.drawn else set())
    return finish(draft, given | inputs(plan) - made)


@lru_cache(maxsize=256)
def forward_table(plan: Plan, ask: Ask, save: bool) -> Table:
    """The layers alone; with `save` every buffer outlives the table."""
    draft = Draft(plan, ask)
    draft.forward()
    return finish(draft, state(plan) | inputs(plan), draft.shapes if save else ())


@lru_cache(maxsize=256)
def backward_table(plan: Plan, ask: Ask, parameters: bool) -> Table:
    """The gradients of a saved forward: of the inputs, and with `parameters` of the parameters."""
    draft = Draft(plan, ask)
    forward = Draft(plan, ask)
    forward.forward()
    if ask.update:
        reads = [Kind.GRADIENT(plan.output), Kind.UPDATES()]
        writes = [Kind.APPLIED(), Kind.UPDATES(), draft.size(Kind.RATES(), ask.n, 4)]
        draft.add("rates", "", reads, writes, (ask.n,))
    draft.backward()
    if parameters:
        draft.update()
    given = state(plan) | inputs(plan) | {Kind.GRADIENT(plan.output)}
    return finish(draft, given | {buffer for stage in forward.stages for buffer in stage.writes})
