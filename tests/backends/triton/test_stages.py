"""Tables of stages: sound for every plan, and each kind of planted error is found."""

import dataclasses
from types import ModuleType

import pytest

from noprop_kernels import plans
from noprop_kernels.backends.gpu import memory
from noprop_kernels.backends.gpu.buffers import Buffer, Kind
from noprop_kernels.backends.gpu.stages import Table, floats, with_barriers
from noprop_kernels.backends.gpu.tables import (
    TableOptions,
    backward_table,
    forward_table,
    train_table,
)
from noprop_kernels.backends.triton.configs import TILES
from noprop_kernels.optimizers import AdamW
from noprop_kernels.plan import Plan
from support.blocks import PLANS as SMALL_PLANS
from support.calls import PLANS, make_train_call
from support.tables import check_table, random_plan

pytestmark = pytest.mark.triton

ALL = {
    **{name: plan(17, 5, 6) for name, plan in PLANS.items()},
    **{f"small {name}": plan for name, plan in SMALL_PLANS.items()},
    "headline": plans.mlp(784, 10, 10),
    **{f"random {seed}": random_plan(seed) for seed in range(40)},
}

HEADLINE = TableOptions(tiles=TILES, n=10, B=128, M=10, D=10)


def all_options(plan: Plan) -> list[TableOptions]:
    z = plan.widths["z"]
    statistics = "later" if plan.has_norm() else ""
    plain = TableOptions(tiles=TILES, n=3, B=130, M=6, D=z, statistics=statistics)
    inputs = tuple(name for name in plan.inputs if name != "z")
    extras = {Kind.D_SIGNAL(), Kind.D_NOISE(), Kind.D_W_EMBED(), *map(Kind.GRADIENT, inputs)}
    grads = {*map(Kind.PARAMETER_GRADIENT, plan.parameters())}
    batch = {*map(Kind.BATCH, plan.statistics())}
    return [
        plain,
        dataclasses.replace(plain, gathered=inputs, R=2, check=True, precision="tf32"),
        dataclasses.replace(plain, looked_at=inputs, check=True, eps=True),
        dataclasses.replace(
            plain,
            wanted=frozenset(plan.inputs),
            eps=True,
            numbers=True,
            d_W_embed=True,
            outside=frozenset(extras),
        ),
        dataclasses.replace(plain, drawn=False, embedded=False, d_W_embed=True),
        dataclasses.replace(
            plain, update=False, statistics="", outside=frozenset(grads | batch | {Kind.ERROR()})
        ),
    ]


def tables(plan: Plan) -> list[Table]:
    made = [train_table(plan, options) for options in all_options(plan)]
    for training in (True, False):
        options = TableOptions(
            tiles=TILES, n=3, B=130, M=6, D=5, training=training,
            statistics="now" if training else "", outside=frozenset({Kind.RESULT(plan.output)}),
        )  # fmt: skip
        made += [forward_table(plan, options, save) for save in (True, False)]
        for update, wanted in ((True, frozenset()), (False, frozenset(plan.inputs))):
            outside = frozenset(map(Kind.GRADIENT, (plan.output, *wanted)))
            options = TableOptions(
                tiles=TILES, n=3, B=130, M=6, D=5, training=training, update=update, wanted=wanted,
                outside=outside,
            )  # fmt: skip
            made += [backward_table(plan, options, parameters) for parameters in (True, False)]
    return [table for table in made if table.stages]


@pytest.mark.parametrize("plan", ALL)
def test_tables_are_sound(plan: str) -> None:
    for table in tables(ALL[plan]):
        check_table(table)


def test_about_eleven_launches_whatever_T_is() -> None:
    plan = ALL["headline"]
    for n in (1, 10, 120):
        table = train_table(plan, dataclasses.replace(HEADLINE, n=n, gathered=("x",)))
        assert len(table.stages) == 12
    assert len(train_table(plan, HEADLINE).stages) == 11


def test_memory_is_shared() -> None:
    table = train_table(PLANS["paper_dt"](784, 10, 10), HEADLINE)
    assert table.floats < 0.8 * sum(map(floats, table.shapes.values()))


PLAIN = train_table(ALL["branches"], all_options(ALL["branches"])[0])


def without_barrier(at: int) -> Table:
    stages = list(PLAIN.stages)
    assert stages[at].expects
    lost = stages[at].expects
    stages[at] = dataclasses.replace(stages[at], expects=0)
    following = next(i for i in range(at + 1, len(stages)) if stages[i].expects)
    both = stages[following].expects + lost
    stages[following] = dataclasses.replace(stages[following], expects=both)
    return dataclasses.replace(PLAIN, stages=tuple(stages))


def test_a_barrier_that_is_missing_is_found() -> None:
    barriers = [i for i, stage in enumerate(PLAIN.stages[:-1]) if stage.expects]
    assert len(barriers) > 8
    for at in barriers:
        with pytest.raises(ValueError, match="before it is written|phase that writes|overwritten"):
            check_table(without_barrier(at))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_barrier_that_expects_another_number_is_found(change: int) -> None:
    stages = list(PLAIN.stages)
    stages[3] = dataclasses.replace(stages[3], expects=stages[3].expects + change)
    with pytest.raises(ValueError, match="arrive, not expected"):
        check_table(dataclasses.replace(PLAIN, stages=tuple(stages)))


def test_a_barrier_missing_at_the_end_is_found() -> None:
    last = dataclasses.replace(PLAIN.stages[-1], expects=0)
    with pytest.raises(ValueError, match="no barrier at the end"):
        check_table(dataclasses.replace(PLAIN, stages=(*PLAIN.stages[:-1], last)))


def reordered(order: list[int]) -> Table:
    stages = [dataclasses.replace(PLAIN.stages[i], expects=0) for i in order]
    return dataclasses.replace(PLAIN, stages=with_barriers(stages))


def test_a_buffer_read_before_it_is_written_is_found() -> None:
    n, found = len(PLAIN.stages), 0
    for at in range(n - 1):  # each stage moved behind the next one that needs it
        order = [i for i in range(n) if i != at] + [at]
        try:
            check_table(reordered(order))
        except ValueError:
            found += 1
    assert found == n - 1


def test_weights_updated_before_the_gradients_that_read_them_are_found() -> None:
    kinds = [stage.kind for stage in PLAIN.stages]
    first, update = kinds.index("result_gradient"), kinds.index("update")
    stages = list(PLAIN.stages)
    early = dataclasses.replace(stages[update], reads=())  # so that only the order is wrong
    stages = [*stages[:first], early, *stages[first:update]]
    stages = [dataclasses.replace(stage, expects=0) for stage in stages]
    with pytest.raises(ValueError, match="overwritten while a later stage needs the old one"):
        check_table(dataclasses.replace(PLAIN, stages=with_barriers(stages)))


def test_buffers_in_the_same_memory_are_found() -> None:
    left, right = Kind.RESULT("left"), Kind.RESULT("right")
    offsets = PLAIN.offsets | {right: PLAIN.offsets[left]}
    with pytest.raises(ValueError, match="alive in the same memory"):
        check_table(dataclasses.replace(PLAIN, offsets=offsets))


def test_a_write_that_is_lost_is_found() -> None:
    stages = [
        dataclasses.replace(
            stage, writes=tuple(w for w in stage.writes if w != Kind.RESULT("left"))
        )
        for stage in PLAIN.stages
    ]
    with pytest.raises(ValueError, match="left is read before it is written"):
        check_table(dataclasses.replace(PLAIN, stages=tuple(stages)))


class Watched(dict):
    """Buffers, and those asked for."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.seen: set[Buffer] = set()

    def __getitem__(self, buffer: Buffer):
        self.seen.add(buffer)
        return super().__getitem__(buffer)

    def get(self, buffer: Buffer, default=None):
        return self[buffer] if buffer in self else default


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("plan", ["branches", "two_inputs"])
def test_stages_touch_what_the_table_says(
    kernels: ModuleType, monkeypatch, plan: str, check: bool
) -> None:
    from noprop_kernels.backends.triton import context, launch

    monkeypatch.setattr(context.Device, "launch", lambda self, kernel, grid, *args, **meta: None)
    call = make_train_call(
        PLANS[plan](17, 5, 6), 3, 2, 20, 1, optimizer=AdamW(), extras=True, flow=1.0, gather=check
    )
    if check:
        call.out.d_inputs.clear()
    made = kernels.context_of(call, memory.Workspace())
    for stage in made.table.stages:
        steps = {} if check else {Kind.RESULT(k): v[0] for k, v in call.inputs.items()}
        made.at = Watched(made.at | steps)
        launch.LAUNCHES[stage.kind](made, stage, 0)
        assert made.at.seen <= {*stage.reads, *stage.writes}, stage
