"""explain describes the state's placement as a launch of the CUDA kernels has it."""

import re
from types import ModuleType

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends.cuda import backend, describe, extension, placement
from noprop_kernels.backends.cuda.placement import Layout

from .test_programs import Recorder, recorder  # noqa: F401

pytestmark = pytest.mark.cuda_host


def make(T: int = 3, H: int = 70, optimizer=None, plan=nk.plans.mlp, **options):
    hidden = {"hidden": H} if plan is nk.plans.mlp else {}
    return nk.DenoisingBlocks(
        plan(33, 5, 5, **hidden),
        nk.DT(nk.NoiseSchedule.cosine(T)),
        optimizer=optimizer or nk.AdamW(),
        **options,
    )


def launched(recorder: Recorder, blocks, B: int) -> dict:  # noqa: F811
    """The program of two steps."""
    indices = torch.zeros(2, B, dtype=torch.int64)
    with nk.use_backend("cuda"):
        blocks.train_steps(torch.zeros(4, 33), torch.zeros(4, dtype=torch.int64), indices)
    return recorder.programs[0]


OBJECTS = {
    "adamw": (make, 40),
    "sgd": (lambda: make(optimizer=nk.SGD(lr=0.1)), 40),
    "momentum": (lambda: make(T=20, H=300, optimizer=nk.SGD(lr=0.1, momentum=0.9)), 17),
    "more than there is room for": (lambda: make(T=30, H=200), 9),
    "norms": (lambda: make(plan=nk.plans.paper_dt), 9),
    "a part at a time": (lambda: make(T=5, blocks_per_launch=2), 130),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_it_is_the_launch_s(recorder: Recorder, monkeypatch, name: str) -> None:  # noqa: F811
    make_object, B = OBJECTS[name]
    blocks, asked, table_of = make_object(), [], backend.train_table
    place = describe.placement_of(blocks, B)
    monkeypatch.setattr(backend, "train_table", lambda *a: asked.append(a) or table_of(*a))
    made = launched(recorder, blocks, B)
    assert asked[0] == (blocks.plan, describe.options_of_steps(blocks, B))
    assert place.layout == Layout(made["groups"], made["blocks"])
    updates = [stage for stage in made["stages"] if stage["kind"] == "update_weight"]
    assert place.tiles == sum(stage["tiles"] for stage in updates)
    outcome = describe.weight_stages(blocks)
    assert [stage["tiles"] for stage in outcome] == [stage["tiles"] for stage in updates]
    held = 0
    for stage in updates:  # tile by tile, as they go round the thread blocks
        turns = [0] * made["blocks"]
        for tile in range(stage["tiles"]):
            rank = (stage["first"] + tile) % made["blocks"]
            held += turns[rank] < stage["resident_tiles"]
            turns[rank] += 1
    assert place.kept == held
    assert (place.kept == place.tiles) == (name in ("adamw", "a part at a time"))


def test_explain_prints_it_below_the_backend(kernels: ModuleType) -> None:
    lines = nk.explain(make(), batch=40).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  cuda: could run"))
    place = describe.placement_of(make(), 40)
    assert lines[at + 1] == (
        f"    train_steps at 40 rows a step: {place.layout.groups} groups of "
        f"{place.layout.blocks} thread blocks; moments of {place.kept} of a slice's {place.tiles} "
        f"weight tiles in shared memory; up to {place.working / 1e6:.1f} MB of state and "
        "activations at work in global memory, which fits L2 (1073.7 MB)"
    )
    assert "at 128 rows" in nk.explain(make())
    assert "; no moments, so no state in shared memory;" in nk.explain(
        make(optimizer=nk.SGD(lr=0.1))
    )
    head = nk.OutputHead(5, 5, goal=nk.DT(nk.NoiseSchedule.cosine(3)))
    outcome = r"a step: 1 group of \d+ thread blocks?; moments of 1 of a slice's 1 weight tile in"
    assert re.search(outcome, nk.explain(head))
    with pytest.raises(ValueError, match="batch must be an integer of at least 1, got 0"):
        nk.explain(make(), batch=0)


def test_nothing_is_made_up(kernels: ModuleType, cuda_module: ModuleType, monkeypatch) -> None:
    plan = make().plan
    plain = nk.DenoisingBlocks(plan, nk.DT(nk.NoiseSchedule.cosine(3)), optimizer=None)
    assert "rows a step" not in nk.explain(plan) + nk.explain(plain)

    class Broken(Recorder):
        def resident_blocks(self, *_: object) -> int:
            raise RuntimeError("the driver is gone")

    monkeypatch.setattr(extension, "module", Broken(cuda_module))
    assert "    where state lies is not known: the driver is gone" in nk.explain(make())
    monkeypatch.setattr(extension, "module", None)
    assert "rows a step" not in nk.explain(make())


def test_a_working_set_is_of_the_groups_alone() -> None:
    def stages():
        return [{"kind": "update_weight", "tiles": count} for count in (5, 9)]

    place = placement.place(300, (1,), 132, stages(), 10, 70, 1000, 100_000)
    assert (place.layout, place.tiles, place.working) == (Layout(100, 1), 14, 100_000)
    assert place.kept == 7 and place.fits_l2
    assert not placement.place(300, (1,), 132, stages(), 10, 70, 1001, 100_000).fits_l2
    assert placement.place(10, (8, 52), 132, stages(), 10, 30, 1, 1).kept == 14


def test_clusters_are_asked_for(recorder: Recorder, monkeypatch) -> None:  # noqa: F811
    """Groups of 8 thread blocks at most, in the launch and in what explain says of it."""
    assert not launched(recorder, make(), 40)["cluster"]
    assert "cluster" not in nk.explain(make(), batch=40)
    monkeypatch.setenv("NOPROP_CUDA_CLUSTERS", "1")
    recorder.programs.clear()
    made = launched(recorder, make(T=1, H=300), 40)
    assert (made["groups"], made["blocks"], made["cluster"]) == (1, 8, 1)
    assert ": 1 group of 8 thread blocks, each a cluster; moments" in nk.explain(
        make(T=1, H=300), batch=40
    )
    # 16 clusters of 1 or 2, 7 of 3: of equals the fewer groups; a group of one is no cluster
    assert placement.layout(7, (40,), 32, (16, 16, 7)) == Layout(7, 3, True)
    assert placement.layout(12, (1,), 32, (16, 16, 7)) == Layout(12, 1)


def test_clusters_are_refused_with_the_reason(
    kernels: ModuleType, cuda_module: ModuleType, monkeypatch
) -> None:
    class Older(Recorder):
        def resident_clusters(self, *_: object) -> int:
            raise RuntimeError(
                "thread-block clusters need compute capability 9.0, device 0 has 8.9"
            )

    monkeypatch.setattr(extension, "module", older := Older(cuda_module))
    monkeypatch.setenv("NOPROP_CUDA_CLUSTERS", "1")
    reason = "NOPROP_CUDA_CLUSTERS=1: thread-block clusters need compute capability 9.0, device 0"
    with pytest.raises(RuntimeError, match=reason):
        launched(older, make(), 40)
    assert not older.programs
    assert f"    where state lies is not known: {reason}" in nk.explain(make())
    monkeypatch.setenv("NOPROP_CUDA_CLUSTERS", "yes")
    with pytest.raises(ValueError, match="NOPROP_CUDA_CLUSTERS must be 0 or 1, got 'yes'"):
        launched(older, make(), 40)
