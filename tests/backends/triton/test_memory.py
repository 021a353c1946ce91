"""No memory: one error, before anything is written."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.gpu import memory
from noprop_kernels.backends.triton import context, graph
from noprop_kernels.optimizers import AdamW
from support.blocks import B, assert_same, batch, data, indices, make, snapshot
from support.calls import PLANS, make_train_call

pytestmark = pytest.mark.triton

TORCH_S = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 1.00 GiB."


def refuse(*_) -> None:
    raise torch.OutOfMemoryError(TORCH_S)


CALLS = {
    "train_steps": lambda blocks: blocks.train_steps(*data(), indices(2, B)),
    "predict": lambda blocks: blocks.predict(batch()[0]),
    "forward": lambda blocks: blocks(batch()[0], torch.zeros(B, 5)),
}


@pytest.mark.parametrize("op", CALLS)
def test_nothing_has_changed(kernels: ModuleType, op: str, monkeypatch) -> None:
    blocks = make("norm", backend="triton")
    before = snapshot(blocks)
    versions = [value._version for value in blocks.state_dict().values()]
    monkeypatch.setattr(memory.Workspace, "take", refuse)
    with pytest.raises(MemoryError, match=f"{op}: no memory on cpu, nothing was changed") as error:
        CALLS[op](blocks)
    assert "Tried to allocate 2.00 GiB" in str(error.value)
    assert "total of" not in str(error.value)
    assert_same(snapshot(blocks), before)
    assert [value._version for value in blocks.state_dict().values()] == versions


@pytest.mark.parametrize("blocks_per_launch, most", [(None, 3), (2, 2), (1, None)])
def test_what_needs_less_is_named(
    kernels: ModuleType, blocks_per_launch, most, monkeypatch
) -> None:
    blocks = make(backend="triton", blocks_per_launch=blocks_per_launch)
    monkeypatch.setattr(memory.Workspace, "take", refuse)
    with pytest.raises(MemoryError, match="a smaller batch needs less") as error:
        blocks.train_step(*batch())
    assert (f"blocks_per_launch below {most}" in str(error.value)) == (most is not None)
    assert ("blocks_per_launch" in str(error.value)) == (most is not None)


def watched(monkeypatch) -> list[str]:
    """Launches, and growth of a workspace, as they come."""
    order: list[str] = []
    launch, take = context.Device.launch, memory.Workspace.take

    def launched(self, *args, **options):
        order.append("launch")
        return launch(self, *args, **options)

    def taken(self, *args):
        before = self.whole
        found = take(self, *args)
        order.extend([] if found is before else ["grows"])
        return found

    monkeypatch.setattr(context.Device, "launch", launched)
    monkeypatch.setattr(memory.Workspace, "take", taken)
    return order


def test_memory_is_taken_before_the_first_launch(kernels: ModuleType, monkeypatch) -> None:
    """A launch after which memory is asked for would be a half-done step."""
    order = watched(monkeypatch)
    blocks = make(backend="triton", blocks_per_launch=2)  # of three: groups of two and one
    blocks.train_steps(*data(), indices(2, B))
    assert order[0] == "grows" and order.count("grows") == 1 and "launch" in order


def test_so_it_is_where_graphs_are_made(kernels: ModuleType, monkeypatch) -> None:
    """The parts of a call may be of two sizes; the larger one's workspace comes first."""
    order = watched(monkeypatch)
    call = make_train_call(PLANS["one_layer"](5, 5, 6), 3, 3, 5, 2, optimizer=AdamW(), gather=True)
    parts = [graph.part_of(call, slice(0, 2), s) for s in (slice(0, 1), slice(1, 3))]
    capture = lambda launches: launches  # noqa: E731
    graph.train_by_graphs(
        parts, kernels.context_of, graph.GraphCache(), capture, 0, memory.Workspace()
    )
    launches = order.index("launch")
    assert "grows" in order[:launches] and "grows" not in order[launches:]


def test_numbers_of_a_group_lie_together() -> None:
    """Else every launch would copy them, and one of these copies could find no memory."""
    call = make_train_call(PLANS["one_layer"](5, 5, 6), 3, 2, 5, 2, optimizer=AdamW(), per_row=True)
    part = graph.part_of(call, slice(0, 2), slice(1, 2))
    for value in (part.noising.signal, part.objective.weight, part.noise.draw, part.rule.lr):
        assert context.stored(value).is_contiguous()
    assert torch.equal(part.rule.lr, call.rule.lr[:, 1:])
    assert torch.equal(part.noising.signal, call.noising.signal[:, 1:])
