"""forward, loss and backward_update: our kernels inside anyone's loop."""

import gc
import weakref

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.philox import STREAM_EPS, normal
from support.blocks import (
    GOAL,
    B,
    D,
    F,
    M,
    T,
    assert_close,
    assert_same,
    batch,
    make,
    of_slices,
    snapshot,
)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_forward_and_its_gradients_are_those_of_the_modules(backend, plan, training):
    x, y = batch()
    blocks = make(plan)
    blocks.train_step(x, y)  # running statistics that are not 0 and 1
    blocks.train(training)
    modules = blocks.to_modules()
    z = blocks.add_noise(y).requires_grad_()
    x_ours, x_twin, z_twin = (
        x.clone().requires_grad_(),
        x.clone().requires_grad_(),
        z.detach().clone(),
    )
    z_twin.requires_grad_()
    logits = blocks(x_ours, z)
    twins = torch.stack([m(x_twin, z_twin[i]) for i, m in enumerate(modules)])
    torch.testing.assert_close(logits, twins, rtol=1e-5, atol=1e-6)
    d_logits = torch.randn(T, B, M, generator=torch.Generator().manual_seed(0))
    logits.backward(d_logits)
    twins.backward(d_logits)
    torch.testing.assert_close(x_ours.grad, x_twin.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z.grad, z_twin.grad, rtol=1e-4, atol=1e-5)
    for i, module in enumerate(modules):
        state = module.state_dict()
        for name, parameter in module.named_parameters():
            want, got = parameter.grad, blocks.get_parameter(name).grad[i]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5, msg=name)
        for name in blocks.plan.statistics():
            torch.testing.assert_close(blocks.state_dict()[name][i], state[name], msg=name)


def test_forward_of_some_blocks_with_shared_z(backend):
    x, y = batch()
    blocks = make()
    z = torch.randn(B, D)
    whole, some = blocks(x, z), blocks(x, z, blocks=[3, 1])
    assert torch.equal(some, whole[[2, 0]])
    some.sum().backward()
    blocks(x, z, blocks=[1, 2]).sum().backward()
    twice = blocks.hx.weight.grad.clone()
    blocks.zero_grad()
    whole.sum().backward()
    once = blocks.hx.weight.grad
    assert once[0].ne(0).any() and torch.equal(twice, once * torch.tensor([2, 1, 1])[:, None, None])
    assert blocks(x[:0], z[:0]).shape == (T, 0, M)


def test_running_statistics_move_in_train_mode_alone(backend):
    x, y = batch()
    blocks = make("norm").eval()
    before = snapshot(blocks)
    blocks(x, blocks.add_noise(y))
    blocks.loss(x, y)
    assert_same(snapshot(blocks), before)
    blocks.train().loss(x, y)
    assert not torch.equal(blocks.hx.norm.running_mean, before["hx.norm.running_mean"])


def test_loss_is_that_of_the_step(backend):
    x, y = batch()
    blocks = make()
    assert_close(blocks.loss(x, y), blocks.gradients(x, y).loss)
    assert torch.equal(blocks.loss(x, y, blocks=2), blocks.loss(x, y)[1:2])


def test_parameters_that_need_no_gradient_get_none(backend):
    x, y = batch()
    blocks = make()
    blocks.hx.weight.requires_grad_(False)
    blocks.loss(x, y).sum().backward()
    assert blocks.hx.weight.grad is None and blocks.hx.bias.grad is not None
    blocks.requires_grad_(False)
    assert not blocks.loss(x, y).requires_grad


@pytest.mark.parametrize("kind", ["plain", "foreach", "fused"])
def test_an_outside_optimizer_with_new_noise_after_advance(backend, kind):
    x, y = batch()
    blocks, fused = make(optimizer=None), make(optimizer=nk.AdamW(lr=1e-2, weight_decay=0.1))
    options = {} if kind == "plain" else {kind: True}
    optimizer = torch.optim.AdamW(blocks.parameters(), lr=1e-2, weight_decay=0.1, **options)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = blocks.loss(x, y)
        assert torch.equal(blocks.loss(x, y), loss)  # the same noise until advance()
        loss.sum().backward()
        optimizer.step()
        blocks.advance()
        losses.append(loss.detach())
    ours = [fused.train_step(x, y).loss for _ in range(4)]
    torch.testing.assert_close(torch.stack(losses), torch.stack(ours), rtol=1e-4, atol=1e-6)
    assert blocks.draws.tolist() == [4] * T and blocks.updates.tolist() == [0] * T
    for name, parameter in blocks.named_parameters():
        torch.testing.assert_close(parameter, fused.get_parameter(name), rtol=1e-4, atol=1e-5)


def d_loss(blocks, x, y, z):
    """d_logits of the step's own loss, by torch."""
    logits = blocks(x, z)
    leaf = logits.detach().requires_grad_()
    snr = GOAL.schedule.snr
    weight = (0.5 * T * GOAL.eta * (snr[1:] - snr[:-1])).float()
    error = (leaf.softmax(-1) - torch.eye(M)[y]).square().sum(-1)
    (weight[:, None] * error / B).sum().backward()
    return logits, leaf.grad


def test_add_noise_is_the_marginal_of_z_at_its_address(backend):
    """z_{t-1} = sqrt(alpha_bar_{t-1}) u_y + sqrt(1 - alpha_bar_{t-1}) eps, eq. 6."""
    embedding = torch.randn(M, D, generator=torch.Generator().manual_seed(0))
    _, y = batch()
    blocks = make(seed=[3, 4], embedding=embedding)
    blocks.advance()
    z = blocks.add_noise(y, blocks=[3, 2], first_row=5)
    for i, (seed, t) in enumerate([(3, 3), (3, 2), (4, 3), (4, 2)]):
        eps = normal(torch.tensor([seed]), STREAM_EPS, 0, 1, t - 1, B, D, first_row=5)[0]
        alpha_bar = GOAL.schedule.alpha_bar[t - 1]
        want = alpha_bar.sqrt() * embedding[y] + (1 - alpha_bar).sqrt() * eps
        torch.testing.assert_close(z[i], want.float(), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_backward_update_is_train_step(backend, plan):
    x, y = batch()
    step, own = make(plan), make(plan)
    for _ in range(3):
        step.train_step(x, y)
        own.backward_update(*d_loss(own, x, y, own.add_noise(y)))
    want = snapshot(step)
    for name, got in snapshot(own).items():
        if got.is_floating_point():
            torch.testing.assert_close(got, want[name], rtol=1e-4, atol=2e-6, msg=name)
        else:
            assert torch.equal(got, want[name]), name


def test_backward_update_gives_the_inputs_gradients(backend):
    x, y = batch()
    blocks, graph = make(), make()
    z = blocks.add_noise(y)
    x_leaf, z_leaf = x.clone().requires_grad_(), z.clone().requires_grad_()
    d_logits = torch.randn(T, B, M, generator=torch.Generator().manual_seed(0))
    update = blocks.backward_update(blocks(x_leaf, z_leaf), d_logits, lr=0.0)
    graph(x_leaf, z_leaf).backward(d_logits)
    assert update.d_x.shape == (T, B, F)
    assert_close(update.d_x.sum(0), x_leaf.grad)
    assert torch.equal(update.d_z, z_leaf.grad)
    alone = blocks.backward_update(blocks(x, z), d_logits)
    assert alone.d_x is None and alone.d_z is None and alone.applied.all()


def test_backward_update_skips_a_gradient_that_is_not_finite(backend):
    x, y = batch()
    blocks = make()
    logits = blocks(x, blocks.add_noise(y))
    d_logits = torch.ones_like(logits)
    d_logits[1, 0, 0] = torch.nan
    before = snapshot(blocks)
    assert blocks.backward_update(logits, d_logits).applied.tolist() == [True, False, True]
    before["draws"] += 1
    assert_same(of_slices(snapshot(blocks), [1]), of_slices(before, [1]))
    assert blocks.updates.tolist() == [1, 0, 1]


def test_backward_update_refuses_what_is_not_its_to_use(backend):
    x, y = batch()
    blocks = make()
    z = blocks.add_noise(y)
    fresh = blocks(x, z)
    d_logits = torch.ones_like(fresh)
    before = snapshot(blocks)
    not_ours = "logits must be the tensor that this object's forward returned"
    for logits in (fresh + 1, fresh.detach(), make()(x, z), None):
        with pytest.raises(ValueError, match=not_ours):
            blocks.backward_update(logits, d_logits)
    with pytest.raises(ValueError, match=r"d_logits must have shape \(3, 6, 5\)"):
        blocks.backward_update(fresh, d_logits[:1])
    kept = blocks(x, z)
    kept.backward(d_logits, retain_graph=True)
    with pytest.raises(ValueError, match="one backward, got them a second time"):
        blocks.backward_update(kept, d_logits)
    assert_same(snapshot(blocks), before)
    stale = blocks(x, z)
    blocks.backward_update(fresh, d_logits)
    after = snapshot(blocks)
    with pytest.raises(ValueError, match="a second time"):
        blocks.backward_update(fresh, d_logits)
    with pytest.raises(ValueError, match="present weights"):
        blocks.backward_update(stale, d_logits)
    with pytest.raises(RuntimeError):
        fresh.backward(d_logits)
    assert_same(snapshot(blocks), after)


def test_backward_twice_over_a_retained_graph_adds(backend):
    x, y = batch()
    blocks = make()
    loss = blocks.loss(x, y).sum()
    loss.backward(retain_graph=True)
    once = blocks.hx.weight.grad.clone()
    loss.backward()
    assert torch.equal(blocks.hx.weight.grad, 2 * once)


def test_a_changed_input_is_noticed(backend):
    x, y = batch()
    blocks = make()
    logits = blocks(x, blocks.add_noise(y))
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_the_graph_dies_with_its_result(backend):
    x, y = batch()
    blocks = make()
    gc.disable()
    try:
        logits = blocks(x, blocks.add_noise(y))
        saved = weakref.ref(logits.grad_fn)
        del logits
        assert saved() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_fifty_steps_follow_torchs(backend, plan):
    """Against torch.autograd and torch.optim.AdamW on the same noise."""
    blocks = make(plan, optimizer=nk.AdamW(lr=1e-3, weight_decay=0.1))
    modules = [module.train() for module in blocks.to_modules()]
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1) for m in modules]
    frozen = [f"{name}.bias" for name, layer in blocks.plan.layers.items() if layer.norm]
    snr = GOAL.schedule.snr
    for k in range(50):
        x, y = batch(seed=k)
        z = blocks.add_noise(y)
        losses = blocks.train_step(x, y).loss
        for i, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
            optimizer.zero_grad()
            error = (module(x, z[i]).softmax(-1) - torch.eye(M)[y]).square().sum(1)
            loss = 0.5 * T * GOAL.eta * (snr[i + 1] - snr[i]).float() * error.mean()
            loss.backward()
            for name in frozen:
                module.get_parameter(name).grad.zero_()  # torch leaves rounding noise there
            optimizer.step()
            torch.testing.assert_close(losses[i], loss.detach(), rtol=1e-4, atol=1e-7)
    for i, module in enumerate(modules):
        for name, want in module.state_dict().items():
            if "num_batches" not in name:
                got = blocks.state_dict()[name][i]
                torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5, msg=name)
