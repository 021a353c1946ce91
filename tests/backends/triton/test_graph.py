"""Graphs of K steps, with a host's stand-in for the capture: keys, own buffers, bounds."""

import gc
import re
import threading
import weakref
from dataclasses import fields, is_dataclass
from types import ModuleType

import pytest
import torch

from noprop_kernels.backends import calls as records
from noprop_kernels.backends import warn
from noprop_kernels.backends.calls import TrainCall
from noprop_kernels.backends.gpu.memory import Workspace
from noprop_kernels.backends.triton import graph
from noprop_kernels.optimizers import Adam, AdamW
from support.calls import PLANS, clone_call, make_train_call
from support.compare import results

pytestmark = pytest.mark.triton


def make(seed: int = 0, **options) -> TrainCall:
    options = {"optimizer": AdamW(), "gather": True, **options}
    return make_train_call(PLANS["one_layer"](5, 5, 6), 3, 2, 5, 2, seed=seed, **options)


def on_the_state_of(call: TrainCall, seed: int, **options) -> TrainCall:
    """Other rows, labels, rates and numbers for the same object and data."""
    other = make(seed, **options)
    other.slices = call.slices
    for name, value in other.inputs.items():
        value.data = call.inputs[name].data
    other.y.data = call.y.data
    other.embedding.W_embed = call.embedding.W_embed
    other.noise.seeds = call.slices.seeds[call.slices.index]
    return other


class Recorder:
    """Captures launches on a host: replaying them runs them again."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, launches):
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            launches()

        return replay


def run(
    calls: list[TrainCall], kernels: ModuleType, cache: graph.GraphCache | None = None
) -> Recorder:
    """The calls one after another, as on a GPU where a Recorder captures."""
    recorder, cache = Recorder(), cache or graph.GraphCache()
    for call in calls:
        workspace = cache.workspaces.get(0, Workspace())
        graph.train_by_graphs([call], kernels.context_of, cache, recorder, 0, workspace)
    return recorder


def test_replays_are_the_steps_themselves(kernels: ModuleType) -> None:
    first = make()
    calls = [first, *(on_the_state_of(first, seed) for seed in (1, 2, 3))]
    plain = clone_call(first)
    others = [on_the_state_of(plain, seed) for seed in (1, 2, 3)]
    for other, call in zip([plain, *others], calls, strict=True):
        other.inputs["x"].data, other.y.data = call.inputs["x"].data, call.y.data
        kernels.train(other)
    recorder = run(calls, kernels)
    assert (recorder.captures, recorder.replays) == (1, 3)
    for done, expected in zip(calls, [plain, *others], strict=True):
        assert torch.equal(done.out.loss, expected.out.loss)
        assert torch.equal(done.out.applied, expected.out.applied)
    for (name, got), (_, expected) in zip(results(first), results(plain), strict=True):
        assert torch.equal(got, expected), name


def test_the_key_is_all_that_a_graph_freezes() -> None:
    call = make()
    key = graph.key_of(call)
    assert graph.key_of(on_the_state_of(call, 1)) == key
    assert graph.key_of(on_the_state_of(call, 1, optimizer=Adam(weight_decay=0.01))) != key
    assert graph.key_of(on_the_state_of(call, 1, head="linear")) != key
    assert graph.key_of(on_the_state_of(call, 1, first_row=1)) != key
    assert graph.key_of(on_the_state_of(call, 1, per_row=True)) != key
    for change in (
        lambda c: setattr(c.inputs["x"], "data", c.inputs["x"].data.clone()),
        lambda c: c.slices.params.update({"logits.bias": c.slices.params["logits.bias"].clone()}),
        lambda c: setattr(c.slices, "index", c.slices.index.flip(0)),
        lambda c: setattr(c.slices, "precision", "tf32"),
    ):
        other = on_the_state_of(call, 1)
        other.slices = clone_call(call.slices)
        for group in ("params", "m", "v", "stats"):
            setattr(other.slices, group, dict(getattr(call.slices, group)))
        for name in ("seeds", "draws", "updates"):
            setattr(other.slices, name, getattr(call.slices, name))
        assert graph.key_of(other) == key
        change(other)
        assert graph.key_of(other) != key


def test_a_graph_has_tensors_of_its_own() -> None:
    call = make(gather=False)
    own = graph.with_own_tensors(call)
    assert own.slices is call.slices and own.embedding.W_embed is call.embedding.W_embed
    pairs = list(zip(graph.fresh(call), graph.fresh(own), strict=True))
    assert {path[-1] for (path, _), _ in pairs} == {
        *("seeds", "draw", "block", "signal", "noise", "weight", "x", "y"),
        *("lr", "weight_decay", "loss", "applied"),
    }
    for (path, given), (_, kept) in pairs:
        assert torch.equal(given.nan_to_num(), kept.nan_to_num()), path
        assert given.data_ptr() != kept.data_ptr(), path
        assert [s == 0 for s in given.stride()] == [s == 0 for s in kept.stride()], path


def test_a_graph_lets_its_object_die(kernels: ModuleType) -> None:
    call = make()
    owner, weight = (
        weakref.ref(t) for t in (call.slices.updates, call.slices.params["logits.bias"])
    )
    cache = graph.cache_of(call.slices.updates)
    for _ in range(2):
        graph.train_by_graphs(
            [call], kernels.context_of, cache, lambda launches: lambda: None, 0, Workspace()
        )
    assert [type(kept) for kept in cache.graphs.values()] == [graph.Graph]
    del call
    gc.collect()
    assert owner() is None and weight() is None


def test_few_graphs_are_kept(kernels: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(graph, "GRAPHS", 2)
    monkeypatch.setattr(graph, "launch_steps", lambda call, ctx: None)
    cache = graph.GraphCache()
    for B in (3, 4, 5, 3):
        call = make_train_call(
            PLANS["one_layer"](5, 5, 6), 3, 2, B, 1, optimizer=AdamW(), gather=True
        )
        recorder = run([call], kernels, cache)
        assert recorder.captures == 0 and len(cache.graphs) <= 2


def test_where_a_graph_has_no_memory_plain_launches_do_the_same(
    kernels: ModuleType, monkeypatch, capsys
) -> None:
    def refuse(call: TrainCall) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    warn.warn_once.cache_clear()
    first = make()
    calls = [first, on_the_state_of(first, 1), on_the_state_of(first, 2)]
    plain = clone_call(first)
    others = [plain, on_the_state_of(plain, 1), on_the_state_of(plain, 2)]
    for other, call in zip(others, calls, strict=True):
        other.inputs["x"].data, other.y.data = call.inputs["x"].data, call.y.data
        kernels.train(other)
    cache = graph.GraphCache()
    monkeypatch.setattr(graph, "with_own_tensors", refuse)
    assert run(calls, kernels, cache).captures == 0
    assert capsys.readouterr().err.count("no memory for a CUDA graph") == 1
    assert not cache.workspaces and [*cache.graphs.values()] == [None]
    for done, expected in zip(calls, others, strict=True):
        assert torch.equal(done.out.loss, expected.out.loss)
    for (name, got), (_, expected) in zip(results(first), results(plain), strict=True):
        assert torch.equal(got, expected), name
    warn.warn_once.cache_clear()


def test_an_object_s_graphs_share_a_workspace(kernels: ModuleType) -> None:
    first, cache = make(), graph.GraphCache()
    rows = {"per_row": True}
    others = [on_the_state_of(first, seed, **rows) for seed in (2, 3)]
    assert run([first, on_the_state_of(first, 1), *others], kernels, cache).captures == 2
    held = [tensor for made in cache.graphs.values() for tensor in made.held[1:]]
    places = {tensor.untyped_storage().data_ptr() for tensor in held}
    assert places == {cache.workspaces[0].whole.untyped_storage().data_ptr()}


def test_steps_and_slices_of_a_call_are_calls(kernels: ModuleType) -> None:
    whole, cut = make(per_row=True), make(per_row=True)
    kernels.train(whole)
    for slices in (slice(0, 1), slice(1, 2)):
        for steps in (slice(0, 1), slice(1, 2)):
            kernels.train(graph.part_of(cut, steps, slices))
    for (name, got), (_, expected) in zip(results(cut), results(whole), strict=True):
        assert torch.equal(got, expected), name


def test_a_second_thread_waits(kernels: ModuleType, monkeypatch) -> None:
    call, order = make(), []
    inside, go = threading.Event(), threading.Event()

    def slow(call: TrainCall, ctx) -> None:
        order.append("begins")
        inside.set()
        assert go.wait(10)
        order.append("ends")

    monkeypatch.setattr(graph, "launch_steps", slow)
    monkeypatch.setattr(kernels, "check_train", lambda call: None)
    threads = [threading.Thread(target=kernels.train, args=(call,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert order == ["begins", "ends"] * 2


def test_every_tensor_of_a_call_says_whether_a_graph_may_freeze_it() -> None:
    seen = [TrainCall]
    for record in seen:  # which grows
        for item in fields(record):
            text = str(item.type)
            assert ("Tensor" in text) == ("fresh" in item.metadata), (record, item.name)
            found = (getattr(records, name, None) for name in re.findall(r"\w+", text))
            seen += [each for each in found if is_dataclass(each) and each not in seen]
    assert {records.Slices, records.NoiseAddress, records.Gather, records.TrainOut} <= set(seen)
