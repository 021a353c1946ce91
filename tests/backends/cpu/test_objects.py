"""Objects whose memory was shared, assigned or freed, and plans that are too large: errors before
anything is written.
"""

import signal
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.backends.cpu import extension
from noprop_kernels.plan import Dense, Plan

pytestmark = pytest.mark.skipif(
    dispatch.native_gap() is not None, reason=f"no CPU kernels: {dispatch.native_gap()}"
)


class Subclass(torch.Tensor):
    pass


# written tensors share no memory


def blocks(**options: Any) -> nk.DenoisingBlocks:
    goal = nk.DT(nk.NoiseSchedule.cosine(T=4))
    return nk.DenoisingBlocks(nk.plans.mlp(20, 3, 3, hidden=32), goal, **options)


def data(rows: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 20, generator=generator)
    return x, torch.randint(3, (rows,), generator=generator)


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_untouched(module: torch.nn.Module, before: dict[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        if name in before and before[name].shape == value.shape:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("gathered", [False, True])
def test_data_in_the_memory_of_the_state_is_refused(gathered: bool) -> None:
    b = blocks()
    before = state(b)
    x = b.get_parameter("hx.weight").detach()[0, :12]
    _, y = data()
    with pytest.raises(ValueError, match="share no memory"):
        if gathered:
            b.train_steps(x, y, torch.arange(12).view(2, 6))
        else:
            b.train_step(x, y)
    with pytest.raises(ValueError, match="share no memory"):
        b.train_step(data(4)[0], b.updates)
    assert_untouched(b, before)


def test_indices_in_the_memory_of_counters_are_those_of_the_call() -> None:
    x, y = data()
    b, other = blocks(), blocks()
    losses = b.train_steps(x, y, b.updates.view(2, 2))
    assert torch.equal(losses, other.train_steps(x, y, torch.zeros(2, 2, dtype=torch.int64)))


def test_tied_weights_are_refused() -> None:
    b = nk.DenoisingBlocks(
        nk.plans.mlp(3, 3, 3, hidden=5), nk.DT(nk.NoiseSchedule.cosine(T=4)), optimizer=nk.SGD()
    )
    b.hz.weight = b.hx.weight
    with pytest.raises(ValueError, match="share no memory"):
        b.train_step(torch.rand(4, 3), torch.zeros(4, dtype=torch.int64))


# state that was assigned


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([0, 1, 2, 3], dtype=torch.int32),
        torch.tensor([0, 7, 1, 7, 2, 7, 3, 8])[1::2],
        torch.tensor([0, 1, 1, 3]),
    ],
    ids=["int32", "strided", "twice the same"],
)
def test_update_looks_at_the_index_of_gradients(index: Tensor) -> None:
    b, (x, y) = blocks(), data()
    grads = b.gradients(x, y)
    grads.index = index
    before = state(b)
    with pytest.raises(ValueError, match="index must be torch.int64|4 slices, each once"):
        b.update(grads)
    assert_untouched(b, before)


@pytest.mark.parametrize(
    "name, value",
    [
        ("updates", torch.zeros(1, dtype=torch.int64)),
        ("draws", torch.zeros(4)),
        ("seeds", torch.zeros(4, dtype=torch.int32)),
        ("updates", torch.zeros(8, dtype=torch.int64)[::2]),
        ("draws", torch.zeros(1, dtype=torch.int64).expand(4)),
    ],
)
def test_counters_that_do_not_fit(name: str, value: Tensor) -> None:
    b, (x, y) = blocks(), data()
    before = state(b)
    setattr(b, name, value)
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        b.train_step(x, y)
    assert_untouched(b, {k: v for k, v in before.items() if k != name})


@pytest.mark.parametrize(
    "W_embed", [torch.eye(3)[:2], torch.eye(6)[::2, :3], torch.eye(3).double(), torch.eye(4)]
)
def test_an_embedding_that_does_not_fit(W_embed: Tensor) -> None:
    b, (x, y) = blocks(embedding=torch.eye(3)), data()
    before = state(b)
    b.W_embed = W_embed
    for call in (lambda: b.train_step(x, y), lambda: b.predict(x), lambda: b.loss(x, y)):
        with pytest.raises(ValueError):
            call()
    assert_untouched(b, {k: v for k, v in before.items() if k != "W_embed"})


def test_a_plan_that_was_set_is_held_against_the_state() -> None:
    b, (x, y) = blocks(), data()
    before = state(b)
    object.__setattr__(b, "plan", nk.plans.mlp(20, 3, 3, hidden=64))
    with pytest.raises(ValueError):
        b.train_step(x, y)
    assert_untouched(b, before)


# between forward and backward


@pytest.mark.parametrize("alike", [True, False])
def test_weights_of_other_memory_before_backward(alike: bool) -> None:
    b, (x, y) = blocks(), data()
    b.draws += 1
    b.loss(x, y).sum().backward()
    loss = b.loss(x, y).sum()
    b.hx.weight.data = b.hx.weight.detach().clone() if alike else torch.zeros(1)
    with pytest.raises(ValueError, match="backward: hx.weight must lie where the forward read it"):
        loss.backward()


@pytest.mark.parametrize("name", ["weight", "weight_m"])
def test_what_changed_its_shape_before_backward_update(name: str) -> None:
    b, (x, _) = blocks(), data()
    logits = b(x, torch.rand(4, 12, 3))
    before = state(b)
    getattr(b.hx, name).data = torch.zeros(1)
    with pytest.raises(ValueError, match=f"hx.{name} must (have shape|lie where)"):
        b.backward_update(logits, torch.ones_like(logits))
    assert_untouched(b, before)


@pytest.mark.parametrize("new", [torch.zeros(1), torch.zeros(5, 4).double()])
def test_a_dense_layer_whose_weight_changed_before_backward(new: Tensor) -> None:
    weight = torch.nn.Parameter(torch.rand(5, 4))
    y = nk.functional.dense(torch.rand(3, 4), weight, None)
    weight.data = new
    with pytest.raises((ValueError, RuntimeError)):
        y.sum().backward()


@pytest.mark.parametrize("name", ["weight", "bias", "weight_m", "bias_v"])
def test_a_layer_whose_memory_changed_before_backward(name: str) -> None:
    layer = nk.Linear(4, 5, optimizer=nk.AdamW(lr=1e-2))
    y = layer(torch.rand(3, 4))
    before = state(layer)
    getattr(layer, name).data = torch.zeros_like(getattr(layer, name))
    with pytest.raises((ValueError, RuntimeError), match=name):
        y.sum().backward()
    assert_untouched(layer, {key: value for key, value in before.items() if key != name})


# memory under a call


def test_memory_lives_as_long_as_the_call() -> None:
    b, (x, y) = blocks(), data(64)
    undisturbed = blocks()
    indices = torch.randint(64, (3000, 64), generator=torch.Generator().manual_seed(2))
    memory = StorageWeakRef(b.hx.weight.untyped_storage())
    freed: list[bool] = []

    def handler(*_: Any) -> None:
        b.hx.weight.data = torch.zeros_like(b.hx.weight)
        freed.append(memory.expired())

    # processor time, since on a busy machine the real one may pass before the call begins
    before = signal.signal(signal.SIGPROF, handler)
    signal.setitimer(signal.ITIMER_PROF, 0.02)
    try:
        losses = b.train_steps(x, y, indices)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert freed == [False]
    assert memory.expired()
    assert torch.equal(losses, undisturbed.train_steps(x, y, indices))


# values that are not where they seem to be


def test_negated_views_are_read_with_their_sign() -> None:
    x, y = data()
    negated = torch._neg_view(-x)
    assert torch.equal(blocks().train_step(negated, y).loss, blocks().train_step(x, y).loss)
    assert torch.equal(blocks().predict(negated).logits, blocks().predict(x).logits)
    weight = torch.rand(3, 20)
    dense = nk.functional.dense
    assert torch.equal(dense(negated, weight, None), dense(x, weight, None))
    of_negated = dense(x, torch._neg_view(-weight), None)
    assert torch.equal(of_negated, dense(x, weight, None))


def test_a_subclass_is_read_as_its_memory() -> None:
    x, y = data()
    loss = blocks().train_step(x.as_subclass(Subclass), y).loss
    assert torch.equal(loss.as_subclass(Tensor), blocks().train_step(x, y).loss)


# the size of a plan


def wide(count: int) -> Plan:
    return Plan({"x": (2,), "z": (3,)}, {"logits": Dense(("x", "z") * count, 3)})


def test_as_many_sources_as_the_kernels_have_room_for() -> None:
    goal, (x, y) = nk.DT(nk.NoiseSchedule.cosine(T=2)), data()
    most = extension.C.most_sources
    losses = [
        nk.DenoisingBlocks(wide(most // 2), goal, backend=backend).train_step(x[:, :2], y).loss
        for backend in ("cpu", "reference")
    ]
    torch.testing.assert_close(*losses)


def test_more_sources_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="inputs must be at most 128 names, got 140"):
        wide(70)
    plan = wide(1)
    object.__setattr__(plan.layers["logits"], "inputs", ("x", "z") * 70)
    assert "may have 128 inputs, 'logits' has 140" in str(cpu.plan_gap(plan))
    with pytest.raises(ValueError, match="1 to 128 inputs"):
        extension.C.Plan(plan, "float32")


def test_more_layers_are_refused() -> None:
    layers = {f"h{i}": Dense(f"h{i - 1}" if i else ("x", "z"), 3) for i in range(128)}
    plan = Plan({"x": (2,), "z": (3,)}, layers)
    assert "may have 128 inputs and layers" in str(cpu.plan_gap(plan))
    with pytest.raises(ValueError, match="at most 128"):
        extension.C.Plan(plan, "float32")


def test_widths_beyond_32_bits_are_refused() -> None:
    with pytest.raises(
        ValueError, match="width of input 'x' must be an integer of at most 2147483647"
    ):
        Plan({"x": (2**31,), "z": (3,)}, {"logits": Dense(("x", "z"), 3)})
    plan = Plan({"x": (2,), "z": (3,)}, {"logits": Dense(("x", "z"), 3)})
    object.__setattr__(plan, "widths", {**plan.widths, "x": 2**31})
    object.__setattr__(plan, "inputs", {"x": (2**31,), "z": (3,)})
    assert "below 2^31" in str(cpu.plan_gap(plan))
    with pytest.raises(ValueError, match="width"):
        extension.C.Plan(plan, "float32")


def test_rows_whose_workspace_has_no_size() -> None:
    plan = extension.C.Plan(nk.plans.mlp(20, 3, 3, hidden=32), "float32")
    with pytest.raises(MemoryError):
        plan.saved_floats(1, 2**60)
