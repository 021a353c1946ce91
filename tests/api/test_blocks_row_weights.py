"""row_weight: a weight for each row, in the steps of blocks and heads."""

from typing import Any

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from support.blocks import (
    PLANS,
    B,
    D,
    F,
    M,
    T,
    assert_close,
    assert_same,
    batch,
    data,
    indices,
    make,
    snapshot,
)

GOALS = {"dt": nk.DT(nk.NoiseSchedule.cosine(T)), "ct": nk.CT(), "fm": nk.FM(sigma=0.1)}
TIMED = nk.plans.mlp(F, D, M, hidden=6, time=True)


def of_goal(name: str, **options: Any) -> nk.DenoisingBlocks:
    plan = PLANS["mlp"] if name == "dt" else TIMED
    return nk.DenoisingBlocks(plan, GOALS[name], **options)


def make_head(**options: Any) -> nk.OutputHead:
    return nk.OutputHead(D, M, goal=GOALS["dt"], **options)


def weights(*shape: int) -> Tensor:
    return 3 * torch.rand(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("goal", GOALS)
def test_ones_give_the_bits_of_none(backend, goal):
    X, Y = data()
    rows, ones = indices(3, B), torch.ones(20)
    plain, weighted = of_goal(goal), of_goal(goal)
    losses = plain.train_steps(X, Y, rows)
    assert torch.equal(weighted.train_steps(X, Y, rows, row_weight=ones), losses)
    x, y = batch()
    step = weighted.train_step(x, y, row_weight=torch.ones(B))
    assert torch.equal(step.loss, plain.train_step(x, y).loss)
    assert torch.equal(weighted.loss(x, y, row_weight=torch.ones(B)), plain.loss(x, y))
    assert_same(snapshot(weighted), snapshot(plain))


@pytest.mark.parametrize("goal", GOALS)
def test_the_loss_and_its_gradient_are_sums_over_rows_of_weight_times_error(backend, goal):
    x, y = batch()
    w, blocks = weights(B), of_goal(goal)
    each = [
        blocks.gradients(x, y, row_weight=one) for one in torch.eye(B, dtype=torch.float32).unbind()
    ]
    whole = blocks.gradients(x, y, row_weight=w)
    plain = blocks.gradients(x, y)
    assert torch.equal(whole.error, plain.error)
    losses = torch.stack([one.loss for one in each])  # (B, n)
    assert_close(whole.loss, (w[:, None] * losses).sum(0))
    assert_close(plain.loss, losses.sum(0))
    for name, value in whole.by_name.items():
        rows = torch.stack([one.by_name[name] for one in each])
        assert_close(value, torch.einsum("b,b...->...", w, rows))
    if goal == "dt":
        levels = GOALS["dt"].levels(torch.arange(1, T + 1))
        assert_close(whole.loss, levels.weight * (w * whole.error).mean(1))


def test_a_step_descends_along_that_gradient(backend):
    x, y = batch()
    blocks = make(optimizer=nk.SGD(lr=0.5))
    w, before = weights(B), snapshot(blocks)
    grads = blocks.gradients(x, y, row_weight=w)
    step = blocks.train_step(x, y, row_weight=w)
    assert_close(step.loss, grads.loss)
    for name, value in grads.by_name.items():
        assert_close(snapshot(blocks)[name], before[name] - 0.5 * value)


def test_autograd_has_the_same_gradient(backend):
    x, y = batch()
    w, blocks = weights(B), make()
    grads = blocks.gradients(x, y, row_weight=w)
    blocks.loss(x, y, row_weight=w).sum().backward()
    for name, value in blocks.named_parameters():
        assert_close(value.grad, grads.by_name[name])


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_weights_are_gathered_as_rows_are(backend, plan):
    X, Y = data()
    rows, w = indices(3, B), weights(20)
    many, one, given = make(plan), make(plan), make(plan)
    losses = many.train_steps(X, Y, rows, row_weight=w)
    singles = [one.train_step(X[i], Y[i], row_weight=w[i]).loss for i in rows]
    assert torch.equal(losses, torch.stack(singles))
    assert torch.equal(given.train_steps(X[rows], Y[rows], None, row_weight=w[rows]), losses)
    assert_same(snapshot(many), snapshot(one))
    assert_same(snapshot(given), snapshot(one))


def test_each_replica_has_the_weights_of_its_own_rows(backend):
    X, Y = data()
    rows, w = indices(3, 2, B), weights(20)
    losses = make(seed=[4, 9]).train_steps(X, Y, rows, row_weight=w)
    for r, seed in enumerate((4, 9)):
        alone = make(seed=seed).train_steps(X, Y, rows[:, r], row_weight=w)
        assert torch.equal(alone, losses[:, r * T : r * T + T])


def test_batches_of_bytes_have_their_weights(backend):
    X, Y = data()
    X = (X * 30 + 128).to(torch.uint8)
    rows, w = indices(3, B), weights(20)
    losses = make().train_steps(X, Y, rows, row_weight=w)
    assert torch.equal(make().train_steps(X[rows], Y[rows], None, row_weight=w[rows]), losses)


def test_rows_of_weight_0_teach_nothing(backend):
    x, y = batch()
    w = torch.ones(B)
    w[2:] = 0
    blocks, other = make(), make()
    step = blocks.train_step(x, y, row_weight=w)
    x[2:], y[2:] = -x[2:], (y[2:] + 1) % M
    assert torch.equal(other.train_step(x, y, row_weight=w).loss, step.loss)
    assert_same(snapshot(blocks), snapshot(other))


def test_heads_have_them_too(backend):
    Y, w, rows = data()[1], weights(20), indices(3, B)
    t = torch.tensor([1, 2, 3])
    many, one, plain, ones = (make_head() for _ in range(4))
    losses = many.train_steps(Y, rows, t, row_weight=w)
    for k, at in enumerate(rows):
        step = one.train_step(Y[at], k + 1, row_weight=w[at])
        assert torch.equal(step.loss, losses[k])
        assert_close(step.loss, (w[at] * step.error).mean(1))
    assert_same(snapshot(many), snapshot(one))
    expected = plain.train_steps(Y, rows, t)
    assert torch.equal(ones.train_steps(Y, rows, t, row_weight=torch.ones(20)), expected)
    assert not torch.equal(losses, expected)
    assert_same(snapshot(ones), snapshot(plain))


REFUSED = {
    "negative": (-torch.ones(20), "must be finite and at least 0, got -1"),
    "NaN": (torch.full((20,), torch.nan), "must be finite and at least 0, got nan"),
    "infinite": (torch.full((20,), torch.inf), "must be finite and at least 0, got inf"),
    "too few": (torch.ones(19), r"must have shape \(20,\), got \(19,\)"),
    "float64": (torch.ones(20).double(), "must be torch.float32"),
    "a list": ([1.0] * 20, "must be a tensor, got list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(backend, case):
    (X, Y), rows = data(), indices(3, B)
    value, text = REFUSED[case]
    blocks, head = make(), make_head()
    before = snapshot(blocks), snapshot(head)
    with pytest.raises(ValueError, match=f"train_steps: row_weight {text}"):
        blocks.train_steps(X, Y, rows, row_weight=value)
    with pytest.raises(ValueError, match="train_steps: row_weight"):
        head.train_steps(Y, rows, 1, row_weight=value)
    for call in (blocks.train_step, blocks.gradients, blocks.loss):
        with pytest.raises(ValueError, match="row_weight must"):
            call(X, Y, row_weight=value)
    with pytest.raises(ValueError, match="train_step: row_weight must"):
        head.train_step(Y, 1, row_weight=value)
    assert_same(snapshot(blocks), before[0])
    assert_same(snapshot(head), before[1])


@pytest.mark.parametrize("bad", [-1, 20])
def test_an_index_out_of_range_is_still_told(backend, bad):
    (X, Y), rows = data(), indices(3, B)
    rows[1, 2] = bad
    with pytest.raises(ValueError, match=f"indices must name rows of the data, got {bad}"):
        make().train_steps(X, Y, rows, row_weight=torch.ones(20))
