"""A choice of launches changes no bit, and trying them leaves no trace."""

from types import SimpleNamespace

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels import tuning
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.gpu.memory import Workspace
from noprop_kernels.backends.triton import graph, launch_options
from noprop_kernels.backends.triton.context import Device

pytestmark = pytest.mark.triton

T, B, F, M = 2, 5, 7, 4


@pytest.fixture
def blocks() -> nk.DenoisingBlocks:
    if reason := dispatch.triton_gap(torch.device("cpu")):
        pytest.skip(reason)
    plan, goal = nk.plans.mlp(F, M, M, hidden=6), nk.DT(nk.NoiseSchedule.cosine(T))
    made = nk.DenoisingBlocks(plan, goal, backend="triton")
    made.train_step(*batch())  # moments and counters that are not zero
    return made


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(B, F, generator=generator), torch.arange(B) % M


def copies(blocks: nk.DenoisingBlocks) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in blocks.state_dict().items()}


class Recorder:
    """Stands for a kernel; its launches are put on a list."""

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.launched: list[dict] = []

    def __getitem__(self, grid):
        return lambda *args, **options: self.launched.append(options)


def launch(device: Device, name: str) -> dict:
    kernel = Recorder(name)
    device.launch(kernel, (1,), warps=4, stages=3)
    return kernel.launched[0]


def test_a_choice_reaches_its_kernels_and_ends_with_the_block() -> None:
    device = Device(interpreted=False, pdl=True)
    static = {"num_warps": 4, "num_stages": 3, "launch_pdl": True, "PDL": True}
    chosen = tuning.Launches(pdl=False, warps={"dense_kernel": 8}, stages={"update_kernel": 1})
    assert launch(device, "dense_kernel") == static
    with pytest.raises(KeyError), tuning.use(chosen):
        assert launch(device, "dense_kernel") == {"num_warps": 8, "num_stages": 3, "PDL": False}
        assert launch(device, "update_kernel") == {"num_warps": 4, "num_stages": 1, "PDL": False}
        raise KeyError
    assert launch(device, "dense_kernel") == static
    early = tuning.Launches(pdl=True)
    with tuning.use(early):  # not where the device has none
        assert launch(Device(interpreted=False, pdl=False), "dense_kernel")["PDL"] is False


@pytest.mark.parametrize(
    "choice, text",
    [
        ({"warps": {"dense_kernel": 2}}, "warps must be among .*got {'dense_kernel': 2}"),
        ({"warps": {"update_kernel": 8}}, "warps must be among .*got {'update_kernel': 8}"),
        ({"stages": {"head_kernel": 2}}, "stages must be among .*got {'head_kernel': 2}"),
        ({"stages": {"dense_kernel": 9}}, "stages must be among .*got {'dense_kernel': 9}"),
    ],
)
def test_what_could_change_a_sum_is_refused(choice: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tuning.Launches(**choice)


def test_a_graph_of_other_launches_is_another_graph(monkeypatch) -> None:
    monkeypatch.setattr(graph, "key_of", lambda call: ("call",))
    monkeypatch.setattr(graph, "launch_steps", lambda call, ctx: None)
    cache, call = graph.GraphCache(), SimpleNamespace(slices=SimpleNamespace(index=[0]))
    choices = (
        tuning.Launches(),
        tuning.Launches(pdl=False),
        tuning.Launches(warps={"dense_kernel": 8}),
        tuning.Launches(stages={"dense_kernel": 1}),
        tuning.Launches(stages={"update_kernel": 1}),
    )
    for count, choice in enumerate(choices, 1):
        with tuning.use(choice):
            graph.train_by_graphs([call], lambda call, workspace: None, cache, None, 0, Workspace())  # type: ignore[arg-type,list-item]
        assert len(cache.graphs) == count


def test_tuning_leaves_the_object_as_it_was(blocks: nk.DenoisingBlocks, monkeypatch) -> None:
    monkeypatch.setattr(tuning, "STAGES", (2,))  # the interpreter is slow, and does not pipeline
    before = copies(blocks)
    chosen = tuning.tune(blocks, *batch(), repeats=1)
    after = blocks.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert launch_options.current() == tuning.Launches()
    static = blocks.train_step(*batch()).loss
    moved = copies(blocks)
    for name, value in blocks.state_dict().items():
        value.copy_(before[name])
    with tuning.use(chosen):
        assert torch.equal(blocks.train_step(*batch()).loss, static)
    assert all(torch.equal(value, moved[name]) for name, value in blocks.state_dict().items())


def test_an_error_on_the_way_leaves_the_object_as_it_was(blocks, monkeypatch) -> None:
    before = copies(blocks)

    def broken(*_) -> float:
        blocks.train_step(*batch())
        raise RuntimeError("lost the device")

    monkeypatch.setattr(tuning, "fastest", broken)
    with pytest.raises(RuntimeError, match="lost the device"):
        tuning.tune(blocks, *batch())
    after = blocks.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        tuning.tune(blocks, *batch(), repeats=0)


class OutOfResources(Exception):
    """Named as Triton's."""


def test_search_takes_the_fastest_that_changes_no_bit() -> None:
    tried = []

    def result(launches: tuning.Launches) -> dict[str, torch.Tensor]:
        tried.append(launches)
        if launches.stages.get("dense_kernel") == 4:
            raise OutOfResources("shared memory")
        other = launches.warps.get("dense_kernel") == 8  # faster, but another sum
        return {"weight": torch.tensor([1.0, 2.0 + other])}

    def milliseconds(launches: tuning.Launches) -> float:
        fast = {"dense_kernel": 2, "update_kernel": 3}
        right = sum(launches.stages.get(kernel) == count for kernel, count in fast.items())
        return 10.0 - right - 5 * (launches.warps.get("dense_kernel") == 8)

    best = tuning.search(result, milliseconds)
    assert best.stages == {"dense_kernel": 2, "update_kernel": 3}
    assert best.warps == {"dense_kernel": 4}
    assert tuning.Launches(warps={"dense_kernel": 8}, stages={"dense_kernel": 2}) in tried

    def broken(launches: tuning.Launches) -> dict[str, torch.Tensor]:
        if launches.stages:
            raise RuntimeError("illegal address")
        return {}

    with pytest.raises(RuntimeError, match="illegal address"):
        tuning.search(broken, milliseconds)
