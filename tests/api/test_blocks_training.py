"""train_step and train_steps: isolation, order, replicas, resumption; bit for bit everywhere."""

from pathlib import Path

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends.reference import backend as reference_backend
from noprop_kernels.goal import Levels
from support.blocks import (
    GOAL,
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
    of_slices,
    snapshot,
)

EMBEDDING = torch.randn(M, D, generator=torch.Generator().manual_seed(5))
OPTIMIZERS = {
    "sgd": nk.SGD(lr=0.1),
    "nesterov": nk.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": nk.Adam(weight_decay=0.01),
    "adamw": nk.AdamW(weight_decay=0.01),
}


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_a_block_trains_alone_as_among_others(backend, plan):
    x, y = batch()
    together, alone, one_of_all = make(plan), make(plan, held=[2]), make(plan)
    for _ in range(3):
        step = together.train_step(x, y)
        single = alone.train_step(x, y)
        chosen = one_of_all.train_step(x, y, blocks=2)
        assert torch.equal(step.loss[1:2], single.loss) and torch.equal(step.loss[1:2], chosen.loss)
        assert torch.equal(step.error[1:2], single.error)
    assert_same(of_slices(snapshot(together), [1]), snapshot(alone))
    assert_same(of_slices(snapshot(one_of_all), [1]), snapshot(alone))
    untouched = of_slices(snapshot(make(plan)), [0, 2])
    assert_same(of_slices(snapshot(one_of_all), [0, 2]), untouched)


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_step_major_and_block_major_train_the_same(backend, plan):
    X, Y = data()
    rows = indices(4, B)
    step_major, block_major, apart = make(plan), make(plan), []
    losses = torch.stack([step_major.train_step(X[i], Y[i]).loss for i in rows])
    for t in (3, 1, 2):
        assert torch.equal(block_major.train_steps(X, Y, rows, blocks=[t])[:, 0], losses[:, t - 1])
    for t in (1, 2, 3):
        apart.append(make(plan, held=[t]))
        apart[-1].train_steps(X, Y, rows)
    assert_same(snapshot(block_major), snapshot(step_major))
    for t in (1, 2, 3):
        assert_same(snapshot(apart[t - 1]), of_slices(snapshot(step_major), [t - 1]))


@pytest.mark.parametrize("plan", ["mlp", "norm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_train_steps_is_k_times_train_step(backend, plan, optimizer):
    X, Y = data()
    rows = indices(3, B)
    many, one = make(plan, optimizer=optimizer), make(plan, optimizer=optimizer)
    before = snapshot(many)
    losses = many.train_steps(X, Y, rows)
    assert torch.equal(losses, torch.stack([one.train_step(X[i], Y[i]).loss for i in rows]))
    assert_same(snapshot(many), snapshot(one))
    assert many.draws.tolist() == many.updates.tolist() == [3] * T
    assert not torch.equal(many.hx.weight, before["hx.weight"])


def test_batches_already_gathered_are_the_same_steps(backend):
    X, Y = data()
    rows = indices(3, B)
    by_index, given = make(), make()
    losses = by_index.train_steps(X, Y, rows)
    assert torch.equal(given.train_steps(X[rows], Y[rows], None), losses)
    assert_same(snapshot(given), snapshot(by_index))
    strided = make().train_steps(X[rows], Y[rows].T.contiguous().T, None)
    assert torch.equal(strided, losses)


def test_lr_per_step_and_per_slice(backend):
    X, Y = data()
    rows = indices(3, B)
    lr = torch.tensor([[1e-3, 0.0, 2e-3], [2e-3, 0.0, 1e-3], [3e-3, 0.0, 5e-3]])
    many, one = make(), make()
    start = snapshot(many)
    many.train_steps(X, Y, rows, lr=lr)
    for k, i in enumerate(rows):
        one.train_step(X[i], Y[i], lr=lr[k])
    assert_same(snapshot(many), snapshot(one))
    assert torch.equal(many.hx.weight[1], start["hx.weight"][1])  # lr 0, so decay 0 too
    per_step, same = make(), make()
    per_step.train_steps(X, Y, rows, lr=lr[:, 0])
    same.train_steps(X, Y, rows, lr=lr[:, :1].expand(3, T))
    assert_same(snapshot(per_step), snapshot(same))


def test_weight_decay_per_slice_is_that_of_separate_objects(backend):
    x, y = batch()
    decays = (0.0, 0.1, 0.2)
    blocks = make(optimizer=nk.AdamW(weight_decay=decays))
    for _ in range(2):
        blocks.train_step(x, y)
    for t, decay in enumerate(decays, 1):
        alone = make(held=[t], optimizer=nk.AdamW(weight_decay=decay))
        for _ in range(2):
            alone.train_step(x, y)
        chosen = make(optimizer=nk.AdamW(weight_decay=decays))
        for _ in range(2):
            chosen.train_step(x, y, blocks=t)
        for other in (blocks, chosen):
            assert_same(snapshot(alone), of_slices(snapshot(other), [t - 1]))


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_a_replica_equals_training_alone(backend, plan):
    X, Y = data()
    rows = indices(3, 2, B)
    both = make(plan, seed=[4, 9])
    losses = both.train_steps(X, Y, rows)
    assert losses.shape == (3, 2 * T)
    for r, seed in enumerate((4, 9)):
        alone = make(plan, seed=seed)
        part = slice(r * T, (r + 1) * T)
        assert torch.equal(alone.train_steps(X, Y, rows[:, r]), losses[:, part])
        assert_same(snapshot(alone), of_slices(snapshot(both), [*range(T * r, T * r + T)]))


def test_blocks_selects_t_in_every_replica_in_the_order_given(backend):
    x, y = batch()
    blocks, chosen = make(seed=[4, 9]), make(seed=[4, 9])
    step, picked = blocks.train_step(x, y), chosen.train_step(x, y, blocks=[3, 1])
    assert torch.equal(picked.loss, step.loss[[2, 0, 5, 3]])
    order = [2, 0, 5, 3]
    assert_same(of_slices(snapshot(chosen), order), of_slices(snapshot(blocks), order))
    assert chosen.updates.tolist() == [1, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_resuming_from_a_state_dict_goes_on_bit_for_bit(backend, plan, tmp_path: Path):
    X, Y = data()
    rows = indices(5, B)
    whole, first = make(plan), make(plan)
    whole.train_steps(X, Y, rows)
    first.train_steps(X, Y, rows[:2])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make(plan)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    second.train_steps(X, Y, rows[2:])
    assert_same(snapshot(second), snapshot(whole))


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_a_block_without_a_finite_loss_stands_still_alone(backend, plan):
    x, y = batch()
    blocks, healthy = make(plan), make(plan)
    with torch.no_grad():
        blocks.logits.weight[1] = torch.inf
    before = of_slices(snapshot(blocks), [1])
    step, reference = blocks.train_step(x, y), healthy.train_step(x, y)
    assert step.applied.tolist() == [True, False, True]
    assert not step.loss[1].isfinite() and torch.equal(step.loss[[0, 2]], reference.loss[[0, 2]])
    before["draws"] += 1
    assert_same(of_slices(snapshot(blocks), [1]), before)
    assert_same(of_slices(snapshot(blocks), [0, 2]), of_slices(snapshot(healthy), [0, 2]))


def test_loss_is_the_weighted_mean_of_the_error(backend):
    x, y = batch()
    blocks = make()
    step = blocks.train_step(x, y)
    t = torch.arange(1, T + 1)
    snr = GOAL.schedule.snr
    weight = 0.5 * T * GOAL.eta * (snr[t] - snr[t - 1])
    assert_close(step.loss, (weight * step.error.double().mean(1)).float())


@pytest.mark.parametrize("embedding", [None, EMBEDDING], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_gradients_beside_the_step_are_autograds(backend, plan, embedding):
    x, y = batch()
    blocks = make(plan, embedding=embedding)
    modules = [module.train() for module in blocks.to_modules()]
    z = blocks.add_noise(y)
    step = blocks.train_step(x, y, input_grad=True, levels_grad=True)
    W = torch.eye(M) if embedding is None else embedding
    schedule = GOAL.schedule
    for i, module in enumerate(modules):
        x_i, W_i = x.clone().requires_grad_(), W.clone().requires_grad_()
        alpha_bar = schedule.alpha_bar[i]
        signal = alpha_bar.sqrt().float().expand(B).clone().requires_grad_()
        noise = (1 - alpha_bar).sqrt().float().expand(B).clone().requires_grad_()
        eps = (z[i] - signal.detach()[:, None] * W[y]) / noise.detach()[:, None]
        z_i = signal[:, None] * W_i[y] + noise[:, None] * eps
        u_hat = module(x_i, z_i).softmax(-1) @ W_i
        weight = 0.5 * T * GOAL.eta * (schedule.snr[i + 1] - schedule.snr[i]).float()
        loss = weight * (u_hat - W_i[y]).square().sum(1).mean()
        loss.backward()
        assert_close(step.loss[i], loss.detach())
        for name, got, want in [
            ("d_x", step.d_x[i], x_i.grad),
            ("d_signal", step.d_signal[i], signal.grad),
            ("d_noise", step.d_noise[i], noise.grad),
            ("d_W_embed", step.d_W_embed[i], W_i.grad),
        ]:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6, msg=name)


def test_features_of_z_given_are_the_step_that_draws_it(backend):
    x, y = batch()
    drawn, given = make(), make()
    z = given.add_noise(y)
    assert torch.equal(drawn.train_step(x, y).loss, given.train_step(x, y, z=z).loss)
    assert_same(snapshot(given), snapshot(drawn))
    step = given.train_step(x, y, z=given.add_noise(y), input_grad=True, levels_grad=True)
    assert step.d_z.shape == (T, B, D) and step.d_x.shape == (T, B, F)
    assert step.d_signal is None and step.d_noise is None and step.d_W_embed.shape == (T, M, D)


def test_features_of_z_may_have_another_width(backend):
    x, y = batch()
    blocks = nk.DenoisingBlocks(nk.plans.mlp(F, 11, M, hidden=6), GOAL)
    step = blocks.train_step(x, y, z=torch.randn(T, B, 11), input_grad=True)
    assert step.applied.all() and step.d_z.shape == (T, B, 11)
    with pytest.raises(ValueError, match='train_step: plan must have a "z" of the width D = 5'):
        blocks.train_step(x, y)


def test_x_may_be_one_per_slice(backend):
    x, y = batch()
    shared, own = make(), make()
    assert torch.equal(
        shared.train_step(x, y).loss, own.train_step(x.expand(T, B, F).contiguous(), y).loss
    )
    x_own = torch.stack([x, 2 * x, -x])
    step = own.train_step(x_own, y)
    for i in range(T):
        assert torch.equal(shared.train_step(x_own[i], y, blocks=i + 1).loss, step.loss[i : i + 1])


def test_rows_of_a_larger_tensor_are_read_as_they_are(backend):
    x, y = batch()
    wide, twice = torch.randn(B, F + 3), y.repeat_interleave(2)
    wide[:, 2 : 2 + F] = x
    a, b = make(), make()
    assert torch.equal(a.train_step(x, y).loss, b.train_step(wide[:, 2 : 2 + F], twice[::2]).loss)
    assert_same(snapshot(a), snapshot(b))


def test_inputs_by_name(backend):
    x, y = batch()
    time = torch.randn(B, 4)
    blocks = make("two_inputs")
    step = blocks.train_step({"x": x, "t": time}, y, input_grad=True)
    assert {name: tuple(g.shape) for name, g in step.d_x.items()} == {
        "x": (T, B, F),
        "t": (T, B, 4),
    }
    X, Y = data()
    losses = blocks.train_steps({"x": X, "t": torch.randn(20, 4)}, Y, indices(2, B))
    assert losses.shape == (2, T) and losses.isfinite().all()


@pytest.mark.parametrize("channels", [1, 2, 8], ids=["scalar", "channel", "feature"])
def test_uint8_is_divided_by_255_and_normalised(backend, channels):
    F8 = 8
    plan = nk.plans.mlp(F8, D, M, hidden=6)
    X = torch.randint(256, (20, F8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    Y = data()[1]
    mean = torch.linspace(0.2, 0.6, channels)
    std = torch.linspace(0.3, 0.5, channels)
    full = (v.repeat_interleave(F8 // channels) for v in (mean, std))
    X_float = (X / 255 - next(full)) / next(full)
    normalize = (mean.tolist(), std.tolist()) if channels > 1 else (mean.item(), std.item())
    rows = indices(2, B)
    bytes_, floats = nk.DenoisingBlocks(plan, GOAL), nk.DenoisingBlocks(plan, GOAL)
    got = bytes_.train_steps(X, Y, rows, normalize=normalize)
    assert_close(got, floats.train_steps(X_float, Y, rows))
    gathered = nk.DenoisingBlocks(plan, GOAL)
    assert torch.equal(gathered.train_steps(X[rows], Y[rows], None, normalize=normalize), got)


def test_normalisation_takes_the_mean_away_first(backend):
    """Numbers around 2^24 lose nothing: each difference to the mean is exact."""
    rows, Y, steps = indices(2, B), data()[1], torch.arange(20.0)[:, None] * torch.ones(F)
    normalize = (2.0**24 - 40, 5.0)
    got = make().train_steps(2.0**24 - 50 + steps, Y, rows, normalize=normalize)
    assert torch.equal(got, make().train_steps((steps - 10) * torch.tensor(0.2), Y, rows))


@pytest.mark.parametrize("std", [1e-40, 1e-45, 1e-300])
def test_a_deviation_without_an_inverse_is_a_constants(backend, std):
    rows, Y, X = indices(2, B), data()[1], data()[0]
    got = make().train_steps(X, Y, rows, normalize=(0.5, [std] + [1.0] * (F - 1)))
    X = X - 0.5
    X[:, 0] = 0
    assert torch.equal(got, make().train_steps(X, Y, rows))


def test_uint8_alone_and_bfloat16(backend):
    Y, rows = data()[1], indices(2, B)
    X = torch.randint(256, (20, F), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert_close(make().train_steps(X, Y, rows), make().train_steps(X / 255, Y, rows))
    half = torch.randn(20, F).bfloat16()
    assert torch.equal(make().train_steps(half, Y, rows), make().train_steps(half.float(), Y, rows))


def test_no_steps_and_no_rows(backend):
    X, Y = data()
    blocks = make()
    before = snapshot(blocks)
    assert blocks.train_steps(X, Y, indices(0, B)).shape == (0, T)
    with pytest.raises(ValueError, match="indices must have at least 1 rows in training, got 0"):
        blocks.train_steps(X, Y, torch.empty(2, 0, dtype=torch.int64))
    with pytest.raises(ValueError, match="y must have at least 1 rows in training, got 0"):
        blocks.train_step(*batch(0))
    with pytest.raises(ValueError, match="at least 2 rows in training with batch norm, got 1"):
        make("norm").train_step(*batch(1))
    assert make().train_step(*batch(1)).applied.all()
    assert_same(snapshot(blocks), before)


def test_autograd_notices_a_step(backend):
    x, y = batch()
    blocks = make()
    logits = blocks(x, blocks.add_noise(y))
    blocks.train_step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_a_refused_step_leaves_graphs_alone_and_a_stopped_one_does_not(monkeypatch):
    x, y = batch()
    blocks = make(backend="reference")
    z = blocks.add_noise(y)
    logits = blocks(x, z)
    with pytest.raises(ValueError, match="x must be finite"):
        blocks.train_step(x * torch.nan, y)
    logits.sum().backward()

    def stopped(call):
        raise KeyboardInterrupt

    logits = blocks(x, z)
    monkeypatch.setattr(reference_backend, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        blocks.train_step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


class PerRow(nk.DT):
    """A goal of one's own, whose levels are (n, B)."""

    def levels(self, t: torch.Tensor) -> Levels:
        each = super().levels(t)
        return Levels(*(v[:, None].expand(-1, B) for v in (each.signal, each.noise, each.weight)))


def test_levels_of_rows_are_those_of_their_slice() -> None:
    x, y = batch()
    plan, options = PLANS["mlp"], {"optimizer": nk.SGD(lr=0.1), "held": [1, 3]}
    one, rows = (
        nk.DenoisingBlocks(plan, goal(GOAL.schedule), **options) for goal in (nk.DT, PerRow)
    )
    for blocks in (None, 3):
        losses = [each.train_step(x, y, blocks=blocks).loss for each in (one, rows)]
        assert torch.equal(*losses) and losses[0].isfinite().all()
    assert_same(snapshot(one), snapshot(rows))
