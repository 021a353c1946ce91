"""Programs: tiles, barriers and turns of every table, what is refused, and how they are read."""

import copy
import json
from types import ModuleType
from typing import Any

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cuda import backend, extension, limits, placement, tiles
from noprop_kernels.backends.cuda.placement import Layout, keep_moments, layout, phases
from noprop_kernels.backends.gpu.layers import consumers
from noprop_kernels.optimizers import AdamW
from noprop_kernels.plan import Dense, Plan
from support.calls import PLANS, make_train_call
from support.tables import check_table, random_plan

pytestmark = pytest.mark.cuda_host
CPU = torch.device("cpu")

ALL = {
    **PLANS,
    **{f"random {seed}": lambda F, D, M, seed=seed: random_plan(seed) for seed in range(20)},
}
MODES = {
    "update": {"optimizer": AdamW(), "gather": True},
    "everything": {"optimizer": AdamW(), "flow": 1.0, "head": "linear", "extras": True},
    "gradients": {"grads": True},
}


class Recorder:
    """The extension, but a launch only keeps its program."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.programs = module, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def launch(self, program: dict, device: int, stream: int) -> None:
        self.programs.append(program)


@pytest.fixture
def recorder(kernels: ModuleType, cuda_module: ModuleType, monkeypatch) -> Recorder:
    made = Recorder(cuda_module)
    monkeypatch.setattr(extension, "module", made)
    return made


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
def test_stages_are_the_table_s(recorder: Recorder, monkeypatch, name: str, mode: str) -> None:
    tables = []
    make = backend.train_table

    def watched(*arguments):
        tables.append(make(*arguments))
        return tables[-1]

    monkeypatch.setattr(backend, "train_table", watched)
    plan = ALL[name](9, 5, 6)
    call = make_train_call(plan, 3, 2, 20, 1, **MODES[mode])
    backend.train(call)
    (table,), (made,) = tables, recorder.programs
    check_table(table)
    stages = made["stages"]
    if all(len(consumers(plan, result)) <= 4 for result in plan.widths):
        assert phases(stages) == placement.phases_of(table)
    assert stages[-1]["barrier"] == 1
    assert len(stages) <= limits.stages_of(plan)
    first = 0
    for stage in stages:
        assert stage["first"] == first and stage["tiles"] > 0
        first = 0 if stage["barrier"] else first + stage["tiles"]


def test_everything_has_as_many_stages_as_the_limit_counts(recorder: Recorder) -> None:
    plan = PLANS["branches"](9, 5, 6)
    counts = []
    for options in (MODES["everything"], {"grads": True}):
        backend.train(make_train_call(plan, 3, 2, 20, 1, **options))
        counts.append(len(recorder.programs[-1]["stages"]))
    # on a GPU a stage looks at x as well
    assert counts[0] + 1 == limits.stages_of(plan) > counts[1]


def chain(length: int) -> Plan:
    layers = {f"h{i}": Dense(f"h{i - 1}" if i else ("x", "z"), 4) for i in range(length)}
    return Plan({"x": (3,), "z": (2,)}, layers)


def wide(sources: int) -> Plan:
    layers = {f"h{i}": Dense("x" if i % 2 else "z", 4) for i in range(sources)}
    return Plan({"x": (3,), "z": (2,)}, {**layers, "logits": Dense(tuple(layers), 4)})


def many_inputs(count: int) -> Plan:
    inputs = {"z": (2,)} | {f"x{i}": (2,) for i in range(count)}
    layers = {f"h{i}": Dense(("z" if i == 0 else f"h{i - 1}", f"x{i}"), 2) for i in range(count)}
    return Plan(inputs, layers)


REFUSED = {
    "a layer may have 4 inputs, 'logits' has 5": (wide(4), wide(5)),
    "a plan may have 3 inputs beside z, got 4": (many_inputs(3), many_inputs(4)),
    "a step may have 80 stages, this plan's has up to": (PLANS["paper_dt"](9, 5, 6), chain(30)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_room_is_refused_with_the_backend_to_use(
    kernels: ModuleType, reason: str
) -> None:
    most, too_much = REFUSED[reason]
    assert dispatch.choose(most, CPU, backend="cuda") is kernels
    with pytest.raises(nk.BackendError) as error:
        dispatch.choose(too_much, CPU, backend="cuda")
    found = error.value.args[0].splitlines()[1]
    assert found.startswith(f"  cuda: {reason}") and found.endswith('; backend="triton" runs it')


def test_a_layout_s_cost() -> None:
    assert layout(10, (8, 52), 132) == Layout(10, 13)
    assert layout(1, (8, 52), 132) == Layout(1, 52)
    assert layout(120, (8, 52), 132) == Layout(120, 1)
    assert layout(300, (1,), 132) == Layout(100, 1)  # three turns whatever is done: less memory
    assert layout(3, (1,), 2) == Layout(2, 1)


def test_moments_have_room_in_the_order_of_stages() -> None:
    made = [{"kind": "update_weight", "tiles": count} for count in (5, 1, 9)]
    made.insert(1, {"kind": "update_vector", "tiles": 3})
    assert keep_moments(made, 2, 10, 65) == 60
    kept = [(stage["resident"], stage["resident_tiles"]) for stage in made if len(stage) == 4]
    assert kept == [(0, 3), (30, 1), (40, 2)]
    assert keep_moments(made, 2, 0, 65) == 0 and made[0]["resident_tiles"] == 0


def test_tiles_cover_what_they_are_cut_from(kernels: ModuleType) -> None:
    for B, columns in ((1, 1), (16, 16), (17, 65), (128, 256), (300, 1000)):
        side = tiles.product_tile(B, columns)
        along_B, along_columns = tiles.product_tiles(B, columns)
        assert (along_B - 1) * side < B <= along_B * side
        assert (along_columns - 1) * side < columns <= along_columns * side
    assert tiles.weight_tiles(64, 65) == 2 and tiles.row_tiles(17) == 2


def broken(made: dict, change: str) -> dict:
    made = copy.deepcopy(made)
    dense = next(stage for stage in made["stages"] if stage["kind"] == "dense")
    changes = {
        "no field": lambda: dense.pop("activation"),
        "a field too many": lambda: dense.update(leaky=1),
        "too many sources": lambda: dense.update(sources=[None] * 5),
        "an unknown activation": lambda: dense.update(activation="tanh"),
        "an unknown kind": lambda: dense.update(kind="convolution"),
        "a short buffer": lambda: dense.update(out=(0, 0)),
        "a number too large": lambda: made.update(B=2**31),
        "too many stages": lambda: made.update(stages=[dense] * 81),
        "no barrier at the end": lambda: made["stages"][-1].update(barrier=0),
        "a grid too large": lambda: made.update(groups=17),
    }
    changes[change]()
    return made


UNREAD = {
    "no field": r"stage 1 \(dense\): the field activation is missing",
    "a field too many": r"stage 1 \(dense\): has 17 fields, got 18: .*'leaky'",
    "too many sources": r"stage 1 \(dense\): sources: may have 4 entries, got 5",
    "an unknown activation": r"stage 1 \(dense\): activation: no value of the enum is named tanh",
    "an unknown kind": r"stage 1 \(convolution\): kind: no value of the enum is named convolution",
    "a short buffer": r"stage 1 \(dense\): out: must have 4 entries, got 2",
    "a number too large": "program: B: ",
    "too many stages": "program: may have 80 stages, got 81",
    "no barrier at the end": "the last stage of a program must have a barrier",
    "a grid too large": "holds 16 thread blocks of this program at the same time, got 17 groups",
}


@pytest.mark.parametrize("change", UNREAD)
def test_a_program_that_does_not_fit_is_refused_before_it_runs(
    recorder: Recorder, cuda_module: ModuleType, change: str
) -> None:
    call = make_train_call(PLANS["mlp"](9, 5, 6), 3, 2, 20, 1, optimizer=AdamW())
    backend.train(call)
    kind = RuntimeError if change in ("no barrier at the end", "a grid too large") else ValueError
    with pytest.raises(kind, match=UNREAD[change]):
        cuda_module.launch(broken(recorder.programs[0], change), 0, 0)
    assert call.out.loss.isnan().all()


def check_layout(described: dict[str, Any]) -> int:
    """That between the fields that a struct describes is no room for another; its alignment."""
    if "fields" not in described:
        return described["size"]
    end, widest = 0, 1
    for name, field in described["fields"].items():
        alignment = check_layout(field)
        assert field["at"] == -(-end // alignment) * alignment, name
        end = field["at"] + field["size"] * field.get("count", 1)
        widest = max(widest, alignment)
    for field in described.get("kinds", {}).values():
        widest = max(widest, check_layout(field))
        assert field["at"] == -(-end // widest) * widest
    own = max((field["size"] for field in described.get("kinds", {}).values()), default=0)
    assert described["size"] == -(-(end + own) // widest) * widest
    return widest


def test_a_program_describes_all_of_its_fields(cuda_module: ModuleType) -> None:
    described = json.loads(cuda_module.description())
    check_layout(described)
    stages = described["fields"]["stages"]
    assert stages["count"] == cuda_module.constants()["kMaxStages"]
    assert list(stages["kinds"]) == stages["fields"]["kind"]["names"]


def test_the_host_s_module_runs_on_the_cpu_alone(kernels: ModuleType) -> None:
    text = dispatch.gap("cuda", None, torch.device("cuda"), "float32")
    assert text == "is built for the host and runs on the CPU, the parameters are on cuda"
    assert dispatch.gap("cuda", chain(30), CPU, "float32").startswith("a step may")
    with nk.use_backend("cuda"):
        assert nk.explain(chain(3)).startswith("Plan on cpu, float32: cuda (forced by")
