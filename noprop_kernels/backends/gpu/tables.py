"""The tables of a backend's calls: a whole step, the layers alone, the gradients behind them.

Names of buffers: an input or layer for its result, "y:" a layer before its norm, "act:" what the
gradient of its activation reads, where that is not its result, "d:" the gradient of a result, "dn:"
behind its activation, "dy:" behind its norm too; parameters and statistics by their own names,
"grad:" and "batch:" before them for what a step finds, "sum:" for a norm's gradients; "data:" for a
data set, "bad:" for flags of what is read.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from ...plan import Plan
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
    outside: frozenset[str] = frozenset()


def behind_activation(plan: Plan, name: str) -> str:
    layer = plan.layers[name]
    if layer.activation is None:
        return f"d:{name}"
    return f"{'dy' if layer.norm is None else 'dn'}:{name}"


def product_gradient(plan: Plan, name: str) -> str:
    """The gradient of a layer's product."""
    return behind_activation(plan, name) if plan.layers[name].norm is None else f"dy:{name}"


def kept(plan: Plan, name: str) -> str:
    """The operand of a layer's activation gradient: its result, where nothing is added to it."""
    layer = plan.layers[name]
    return f"act:{name}" if layer.add or layer.needs_preactivation else name


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


@dataclass
class Draft:
    """Collects stages and the shapes of the buffers that they write."""

    plan: Plan
    ask: Ask
    stages: list[Stage] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)

    def size(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> str:
        if name not in self.ask.outside:
            self.shapes[name] = shape, dtype
        return name

    def add(
        self, kind: str, name: str, reads: Iterable[str], writes: Iterable[str], grid: tuple
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
                writes.append(self.size(name, slots, ask.B, plan.widths[name]))
            if ask.check:
                writes.append(self.size(f"bad:{name}", slots, tiles, dtype=torch.int32))
            reads = [f"data:{name}" if name in ask.gathered else name]
            self.add("gather", name, reads, writes, (tiles, slots))
        n, B, D = ask.n, ask.B, ask.D
        writes = [self.size(":y", n, B, dtype=torch.int64)]
        writes += [self.size("bad::y", n, tiles, dtype=torch.int32)] if ask.check else []
        writes += [self.size("z", n, B, D)] if ask.drawn else []
        writes += [self.size(":eps", n, B, D)] if ask.eps else []
        self.add("add_noise", "z", [":labels", ":draw"], writes, (tiles, n))

    def forward(self) -> None:
        ask, plan = self.ask, self.plan
        n, B = ask.n, ask.B
        for name, layer in plan.layers.items():
            H = layer.features
            params = [f"{name}.weight", f"{name}.bias"]
            grid = (*ask.tiles.product(B, H, ask.precision), n)
            ends = [self.size(name, n, B, H)]
            if layer.activation and kept(plan, name) != name:
                ends.append(self.size(kept(plan, name), n, B, H))
            add = [layer.add] if layer.add else []
            if layer.norm is None:
                self.add("dense", name, [*layer.sources, *add, *params], ends, grid)
                continue
            y = self.size(f"y:{name}", n, B, H)
            self.add("dense", name, [*layer.sources, *params], [y], grid)
            norm = f"{name}.norm."
            reads = [y, *add, norm + "weight", norm + "bias"]
            ends += [self.size(f"{part}:{name}", n, H) for part in ("mean", "rstd")]
            statistics = [norm + part for part in ("running_mean", "running_var")]
            if not ask.training or ask.statistics == "now":
                reads += statistics
            if ask.statistics == "now":
                ends += statistics
            elif ask.training:
                ends += [self.size(f"batch:{statistic}", n, H) for statistic in statistics]
            self.add("norm", name, reads, ends, (ask.tiles.vector(H), n))

    def head(self) -> None:
        ask, out = self.ask, self.plan.output
        reads = [out, ":y"] + ([":eps"] if ask.eps else [])
        writes = [self.size(":error", ask.n, ask.B), self.size(f"d:{out}", ask.n, ask.B, ask.M)]
        if ask.embedded:
            writes.append(self.size(":d_u_hat", ask.n, ask.B, ask.D))
            if ask.d_W_embed:
                writes.append(self.size(":p", ask.n, ask.B, ask.M))
        self.add("head", out, reads, writes, (cdiv(ask.B, ask.tiles.rows), ask.n))
        reads, writes = [":error"], [":loss", ":applied"]
        if ask.check:
            reads += [f"bad:{name}" for name in (":y", *ask.gathered, *ask.looked_at)]
        if ask.update:
            counters = [":draws", ":updates"]
            reads += counters
            writes += [self.size(":rates", ask.n, 4), *counters]
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
        layer = plan.layers.get(name)
        behind = f"d:{name}" if layer is None else behind_activation(plan, name)
        reads, writes = [], []
        if layer is not None and layer.activation:
            reads.append(kept(plan, name))
            writes.append(self.size(behind, n, B, F))
        if name == plan.output:
            reads.append(f"d:{name}")
        else:
            for reader, column in consumers(plan, name):
                if column is None:
                    reads.append(f"d:{reader}")
                else:
                    reads += [product_gradient(plan, reader), f"{reader}.weight"]
            if behind == f"d:{name}" or (layer is not None and layer.add in needed):
                writes.append(self.size(f"d:{name}", n, B, F))
        if writes:
            grid = (*ask.tiles.product(B, F, ask.precision), n)
            self.add("result_gradient", name, reads, writes, grid)
        if layer is not None and layer.norm is not None:
            norm = f"{name}.norm."
            reads = [behind, f"y:{name}", f"mean:{name}", f"rstd:{name}", norm + "weight"]
            writes = [self.size(f"dy:{name}", n, B, F)]
            writes += [self.size(f"sum:{norm}{part}", n, F) for part in ("weight", "bias")]
            self.add("norm_gradient", name, reads, writes, (ask.tiles.vector(F), n))

    def numbers(self) -> None:
        ask = self.ask
        if ask.numbers:
            writes = [":d_signal", ":d_noise"]
            grid = (cdiv(ask.B, ask.tiles.rows), ask.n)
            self.add("numbers", "z", ["d:z", ":eps", ":y"], writes, grid)
        if ask.d_W_embed:
            reads = [":y"] + ([":p", ":d_u_hat"] if ask.embedded else [])
            reads += ["d:z"] if ask.drawn else []
            side = ask.tiles.embedding
            grid = (cdiv(ask.M, side), cdiv(ask.D, side), ask.n)
            self.add("d_W_embed", "W_embed", reads, [":d_W_embed"], grid)

    def update(self) -> None:
        ask, plan = self.ask, self.plan
        reads = {source: None for layer in plan.layers.values() for source in layer.sources}
        for name, layer in plan.layers.items():
            reads[product_gradient(plan, name)] = None
            if layer.norm is not None:
                reads |= {f"sum:{name}.norm.{part}": None for part in ("weight", "bias")}
        params = [*plan.parameters()]
        if not ask.update:
            writes = [f"grad:{name}" for name in params]
        else:
            moved = [*plan.statistics()] if ask.statistics == "later" else []
            reads |= dict.fromkeys([*params, ":rates", *moved, *(f"batch:{s}" for s in moved)])
            writes = [*params, *moved]
        tiles = ask.tiles.update(plan, ask.training, ask.statistics == "later")
        self.add("update", "", reads, writes, (tiles, ask.n))


def finish(draft: Draft, given: Iterable[str], kept: Iterable[str] = ()) -> Table:
    """The table of a draft, with barriers and shared memory."""
    stages, kept = with_barriers(draft.stages), frozenset(kept) & draft.shapes.keys()
    sizes = {name: floats(shape) for name, shape in draft.shapes.items()}
    offsets = share_memory(stages, sizes, kept)
    return Table(stages, draft.shapes, offsets, frozenset(given), kept)


def state(plan: Plan) -> set[str]:
    return {*plan.parameters(), *plan.statistics(), ":draws", ":updates"}


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
    given = state(plan) | {":labels", ":draw"} | {f"data:{name}" for name in ask.gathered}
    given |= {name for name in plan.inputs if name not in (*ask.gathered, "z")}
    return finish(draft, given if ask.drawn else given | {"z"})


@lru_cache(maxsize=256)
def forward_table(plan: Plan, ask: Ask, save: bool) -> Table:
    """The layers alone; with `save` every buffer outlives the table."""
    draft = Draft(plan, ask)
    draft.forward()
    return finish(draft, state(plan) | {*plan.inputs}, draft.shapes if save else ())


@lru_cache(maxsize=256)
def backward_table(plan: Plan, ask: Ask, parameters: bool) -> Table:
    """The gradients of a saved forward: of the inputs, and with `parameters` of the parameters."""
    draft = Draft(plan, ask)
    forward = Draft(plan, ask)
    forward.forward()
    if ask.update:
        writes = [":applied", ":updates", draft.size(":rates", ask.n, 4)]
        draft.add("rates", "", [f"d:{plan.output}", ":updates"], writes, (ask.n,))
    draft.backward()
    if parameters:
        draft.update()
    given = state(plan) | {*plan.inputs, f"d:{plan.output}"}
    return finish(draft, given | {name for stage in forward.stages for name in stage.writes})
