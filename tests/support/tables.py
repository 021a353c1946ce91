"""The static check of a table of stages, and random plans to check tables of."""

import random

from noprop_kernels.backends.gpu.buffers import Buffer
from noprop_kernels.backends.gpu.stages import Table, floats
from noprop_kernels.plan import ACTIVATION_NAMES, BatchNorm, Dense, Plan


def check_table(table: Table) -> None:
    """Every buffer is written before it is read and never overwritten while it is needed.

    A barrier stands between stages whose order matters and waits for just the programs that arrive.

    Raises:
        ValueError: it is not so; the text names the stage and the buffer.
    """
    phase, arrived, phase_of = 0, 0, []
    for stage in table.stages:
        phase_of.append(phase)
        arrived += stage.tiles
        if stage.expects:
            if stage.expects != arrived:
                raise ValueError(f"{stage.kind} {stage.name}: {arrived} arrive, not expected")
            phase, arrived = phase + 1, 0
    if arrived:
        raise ValueError("no barrier at the end")

    writes: dict[Buffer, list[int]] = {}
    reads: dict[Buffer, list[int]] = {}
    for stage, at in zip(table.stages, phase_of, strict=True):
        for name in stage.writes:
            writes.setdefault(name, []).append(at)
        for name in stage.reads:
            reads.setdefault(name, []).append(at)
            if name not in table.given and not any(w < at for w in writes.get(name, [])):
                raise ValueError(f"{stage.kind} {stage.name}: {name} is read before it is written")
    for name, at in writes.items():
        if len(at) > 1:
            raise ValueError(f"{name} is written twice")
        if name in table.given:
            both = {s.kind for s in table.stages if name in s.reads and name in s.writes}
            later = [r for r in reads.get(name, []) if r >= at[0]]
            if len(later) > len(both):
                raise ValueError(f"{name} is overwritten while a later stage needs the old one")
        elif any(r <= at[0] for r in reads.get(name, [])):
            raise ValueError(f"{name} is read in the phase that writes it")

    def life(name: Buffer) -> tuple[int, int]:
        end = phase if name in table.kept else max(reads.get(name, writes[name]))
        return writes[name][0], end

    names = list(table.shapes)
    if missing := [name for name in names if name not in writes]:
        raise ValueError(f"{missing} are never written")
    for i, a in enumerate(names):
        for b in names[:i]:
            (a_low, b_low), (a_size, b_size) = (
                (f(a), f(b)) for f in (table.offsets.__getitem__, lambda n: floats(table.shapes[n]))
            )
            apart = a_low + a_size <= b_low or b_low + b_size <= a_low
            if not apart and life(a)[0] <= life(b)[1] and life(b)[0] <= life(a)[1]:
                raise ValueError(f"{a} and {b} are alive in the same memory")


def random_plan(seed: int) -> Plan:
    """A plan of some layers: several sources, norms, skips, an activation behind the logits."""
    draw = random.Random(seed)
    widths = {"x": draw.choice([1, 7, 40]), "z": draw.choice([2, 5])}
    inputs = {name: (width,) for name, width in widths.items()}
    layers: dict[str, Dense] = {}
    unused = ["x", "z"]
    for i in range(draw.randint(1, 6)):
        add = draw.choice([None, *widths])
        sources = draw.sample(list(widths), draw.randint(1, min(3, len(widths))))
        layers[f"h{i}"] = Dense(
            tuple(sources),
            widths[add] if add else draw.choice([3, 8, 70]),
            activation=draw.choice(ACTIVATION_NAMES),
            norm=draw.choice([None, BatchNorm()]),
            add=add,
        )
        unused = [name for name in unused if name not in (*sources, add)] + [f"h{i}"]
        widths[f"h{i}"] = layers[f"h{i}"].features
    norm = draw.choice([None, BatchNorm()])
    layers["logits"] = Dense(tuple(unused), 6, activation=draw.choice(ACTIVATION_NAMES), norm=norm)
    return Plan(inputs, layers)
