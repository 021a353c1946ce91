"""Isolation, order, replicas, resumption and trajectories of the GPU backends, bit for bit.

The tests of the blocks (tests/api) hold the other two to the same.
"""

from types import ModuleType

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends.reference import backend as reference
from support.blocks import T, assert_same, batch, data, indices, make, of_slices, snapshot
from support.calls import clone_call
from support.compare import assert_matches
from support.kernels import GPUS, name_of, on
from support.twin import F64, Twin, torch_step
from support.twin import make as make_call

pytestmark = on(*GPUS)
B = 4


@pytest.fixture(autouse=True)
def forced(kernels: ModuleType):
    with nk.use_backend(name_of(kernels)):
        yield


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_a_block_trains_alone_as_among_others(plan: str) -> None:
    x, y = batch(B)
    together, alone, chosen = make(plan), make(plan, held=[2]), make(plan)
    step = together.train_step(x, y)
    assert torch.equal(step.loss[1:2], alone.train_step(x, y).loss)
    assert torch.equal(step.loss[1:2], chosen.train_step(x, y, blocks=2).loss)
    assert_same(of_slices(snapshot(together), [1]), snapshot(alone))
    assert_same(of_slices(snapshot(chosen), [1]), snapshot(alone))
    assert_same(of_slices(snapshot(chosen), [0, 2]), of_slices(snapshot(make(plan)), [0, 2]))


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_step_major_and_block_major_train_the_same(plan: str) -> None:
    X, Y = data()
    rows = indices(2, B)
    step_major, block_major = make(plan), make(plan)
    losses = torch.stack([step_major.train_step(X[i], Y[i]).loss for i in rows])
    for t in (3, 1, 2):
        assert torch.equal(block_major.train_steps(X, Y, rows, blocks=t)[:, 0], losses[:, t - 1])
    assert_same(snapshot(block_major), snapshot(step_major))


def test_a_replica_equals_training_alone() -> None:
    X, Y = data()
    rows = indices(2, 2, B)
    both = make(seed=[4, 9])
    losses = both.train_steps(X, Y, rows)
    for r, seed in enumerate((4, 9)):
        alone, part = make(seed=seed), slice(r * T, (r + 1) * T)
        assert torch.equal(alone.train_steps(X, Y, rows[:, r]), losses[:, part])
        assert_same(snapshot(alone), of_slices(snapshot(both), [*range(T * r, T * r + T)]))


def test_resuming_goes_on_bit_for_bit_whatever_the_length_of_a_visit() -> None:
    X, Y = data()
    rows = indices(3, B)
    whole, parts = make("norm"), make("norm")
    whole.train_steps(X, Y, rows)
    parts.train_steps(X, Y, rows[:1])
    resumed = make("norm")
    resumed.load_state_dict(parts.state_dict())
    resumed.train_steps(X[rows[1:]], Y[rows[1:]], None)
    assert_same(snapshot(resumed), snapshot(whole))


def test_blocks_per_launch_changes_no_bit() -> None:
    x, y = batch(B)
    whole = make("norm", seed=[1, 2])
    step = whole.train_step(x, y, input_grad=True)
    for group in (1, 2):
        grouped = make("norm", seed=[1, 2], blocks_per_launch=group)
        same = grouped.train_step(x, y, input_grad=True)
        assert torch.equal(step.loss, same.loss) and torch.equal(step.d_x, same.d_x)
        assert_same(snapshot(grouped), snapshot(whole))
    with pytest.raises(ValueError, match="blocks_per_launch must be an integer of at least 1"):
        make(blocks_per_launch=0)


def test_halves_of_a_step_and_autograd() -> None:
    x, y = batch(B)
    step, halves, graph = make(), make(), make(optimizer=None)
    step.train_step(x, y)
    grads = halves.gradients(x, y)
    halves.update(grads)
    for name, value in snapshot(step).items():
        torch.testing.assert_close(snapshot(halves)[name], value, rtol=1e-5, atol=1e-7)
    graph.loss(x, y).sum().backward()
    for name, value in grads.by_name.items():
        got = graph.get_parameter(name).grad
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "plan, optimizer",
    [("one_layer", nk.SGD(lr=0.01, momentum=0.9)), ("branches", nk.AdamW(lr=3e-3))],
)
def test_a_trajectory_is_autograd_s_and_torch_optim_s(
    kernels: ModuleType, plan: str, optimizer: nk.AdamW | nk.SGD
) -> None:
    steps = 12 if name_of(kernels) == "triton" else 50  # the interpreter is slow
    exact = make_call(plan, n=1, B=5, K=steps, dtype=F64, optimizer=optimizer)
    for value in [*exact.slices.m.values(), *exact.slices.v.values()]:
        value.zero_()
    exact.slices.updates.zero_()
    call, plain = clone_call(exact, torch.float32), clone_call(exact, torch.float32)
    twin, at = Twin(exact, 0), exact.slices.index[0]
    kernels.train(call)
    reference.train(plain)
    if isinstance(optimizer, nk.SGD):
        torch_s = torch.optim.SGD(twin.params.values(), momentum=0.9)
    else:
        torch_s = torch.optim.AdamW(twin.params.values(), weight_decay=0.01)
    losses = torch.empty(steps, 1, dtype=F64)
    for step in range(steps):
        losses[step] = torch_step(twin, torch_s, step, exact.rule.lr[step, 0])
    terms = 16 * steps
    assert_matches(call.out.loss, losses, plain.out.loss, terms, "loss")
    for name, leaf in twin.params.items():
        trio = (call.slices.params[name][at], leaf.detach(), plain.slices.params[name][at])
        assert_matches(*trio, terms, name)
    assert call.slices.updates[at] == steps
