"""gradients and update: the two halves of train_step, and what may happen between them."""

import pytest
import torch

import noprop_kernels as nk
from support.blocks import T, assert_close, assert_same, batch, make, of_slices, snapshot


@pytest.mark.parametrize(
    "optimizer", [nk.SGD(lr=0.1, momentum=0.9), nk.AdamW()], ids=["sgd", "adamw"]
)
@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_gradients_then_update_is_train_step(backend, plan, optimizer):
    x, y = batch()
    step, halves = make(plan, optimizer=optimizer), make(plan, optimizer=optimizer)
    for _ in range(3):
        done = step.train_step(x, y)
        grads = halves.gradients(x, y)
        assert torch.equal(grads.loss, done.loss) and torch.equal(grads.error, done.error)
        assert halves.update(grads).all()
    want = snapshot(step)
    for name, got in snapshot(halves).items():
        if got.is_floating_point():
            torch.testing.assert_close(got, want[name], rtol=1e-5, atol=1e-6, msg=name)
        else:
            assert torch.equal(got, want[name]), name


def test_gradients_move_nothing(backend):
    x, y = batch()
    blocks = make("norm")
    before, version = snapshot(blocks), blocks.hx.weight._version
    blocks.gradients(x, y)
    assert_same(snapshot(blocks), before)
    assert blocks.hx.weight._version == version


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_gradients_are_autograds(backend, plan):
    x, y = batch()
    blocks = make(plan)
    grads = blocks.gradients(x, y)
    blocks.loss(x, y).sum().backward()
    for name, parameter in blocks.named_parameters():
        torch.testing.assert_close(grads.by_name[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_parts_of_a_batch_add_to_the_whole(backend):
    x, y = batch(10)
    blocks = make()
    whole = blocks.gradients(x, y)
    parts = blocks.gradients(x[:3], y[:3], rows=10)
    for start, stop in [(3, 7), (7, 10)]:
        parts = parts + blocks.gradients(x[start:stop], y[start:stop], first_row=start, rows=10)
    for name, want in whole.by_name.items():
        assert_close(parts.by_name[name], want, name)
    assert_close(parts.loss, whole.loss)
    assert_close(parts.error, whole.error)
    assert parts.rows == 10


def test_parts_that_do_not_add(backend):
    x, y = batch()
    blocks, norm = make(), make("norm")
    with pytest.raises(ValueError, match="free of batch norm"):
        norm.gradients(x, y, rows=12) + norm.gradients(x, y, first_row=6, rows=12)
    with pytest.raises(ValueError, match="rows of one batch, got 6, 12"):
        blocks.gradients(x, y) + blocks.gradients(x, y, rows=12)
    with pytest.raises(ValueError, match="of the same slices"):
        blocks.gradients(x, y, blocks=1) + blocks.gradients(x, y, blocks=2)


def test_a_part_without_a_finite_loss_stops_the_whole(backend):
    x, y = batch()
    blocks = make()
    first = blocks.gradients(x, y, rows=12)
    with torch.no_grad():
        blocks.logits.weight[1] = torch.inf
    second = blocks.gradients(x, y, first_row=6, rows=12)
    assert (first + second).applied.tolist() == [True, False, True]


def test_step_addresses_the_noise(backend):
    x, y = batch()
    blocks, ahead = make(), make()
    for _ in range(2):
        ahead.advance()
    assert not torch.equal(blocks.gradients(x, y).loss, ahead.gradients(x, y).loss)
    assert torch.equal(blocks.gradients(x, y, step=2).loss, ahead.gradients(x, y).loss)


def test_norm_and_scale_are_per_slice(backend):
    x, y = batch()
    grads = make().gradients(x, y)
    squares = sum(g.double().square().flatten(1).sum(1) for g in grads.by_name.values())
    norm = grads.norm()
    assert_close(norm, squares.sqrt().float())
    assert_close(grads.scale_(1 / norm).norm(), torch.ones(T))
    assert_close(grads.scale_(3.0).norm(), torch.full((T,), 3.0))
    with pytest.raises(ValueError, match=r"factor must be a number or of shape \(n,\) = \(3,\)"):
        grads.scale_(torch.ones(2))


def test_update_of_some_blocks_leaves_the_others(backend):
    x, y = batch()
    blocks = make("norm")
    before = snapshot(blocks)
    blocks.update(blocks.gradients(x, y, blocks=[3, 1]), lr=torch.tensor([0.1, 0.2]))
    assert_same(of_slices(snapshot(blocks), [1]), of_slices(before, [1]))
    assert blocks.draws.tolist() == blocks.updates.tolist() == [1, 0, 1]


def test_update_skips_a_slice_whose_loss_or_gradient_is_not_finite(backend):
    x, y = batch()
    blocks = make("norm")
    with torch.no_grad():
        blocks.logits.weight[0] = torch.inf
    grads = blocks.gradients(x, y)
    grads.by_name["hx.weight"][2, 0, 0] = torch.nan
    before = snapshot(blocks)
    assert blocks.update(grads).tolist() == [False, True, False]
    before["draws"] += 1
    after = snapshot(blocks)
    assert_same(of_slices(after, [0, 2]), of_slices(before, [0, 2]))
    assert not torch.equal(after["hx.weight"][1], before["hx.weight"][1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["hx.weight", "logits.bias"])
def test_update_finds_one_number_that_is_not_finite(name, bad, backend):
    x, y = batch()
    blocks = make()
    grads = blocks.gradients(x, y)
    grads.by_name[name].view(3, -1)[1, -1] = bad
    assert blocks.update(grads).tolist() == [True, False, True]


def test_update_takes_large_gradients_whose_sum_overflows(backend):
    x, y = batch()
    blocks = make()
    grads = blocks.gradients(x, y)
    grads.by_name["hx.weight"][0] = 3e38
    assert blocks.update(grads).tolist() == [True, True, True]


def test_bad_gradients(backend):
    x, y = batch()
    blocks = make()
    before = snapshot(blocks)
    wider = make(seed=[1, 2]).gradients(x, y)
    with pytest.raises(ValueError, match="grads must be of this object's 3 slices"):
        blocks.update(wider)
    with pytest.raises(ValueError, match="grads must have"):
        blocks.update(make("norm").gradients(x, y))
    with pytest.raises(ValueError, match="grads must be Gradients, got dict"):
        blocks.update({})
    grads = blocks.gradients(x, y)
    grads.by_name["hx.weight"] = grads.by_name["hx.weight"][:, :1]
    with pytest.raises(ValueError, match="update: hx.weight must have shape"):
        blocks.update(grads)
    assert_same(snapshot(blocks), before)
