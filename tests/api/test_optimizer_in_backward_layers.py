"""What nk.OptimizerInBackward makes of a model: its layers, its copies, its calls."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import noprop_kernels as nk
from support.in_backward import (
    assert_close,
    network,
    pair,
    train,
)
from support.linear import rows

# the model is given back, and copies of it are plain


def test_restore_gives_the_model_back():
    model, optimizer, twin, theirs = pair()
    inner = optimizer._steps.optimizer
    train(model, optimizer)
    train(twin, theirs)
    optimizer.restore()
    optimizer.restore()
    assert type(model[0]) is nn.Linear and "_update" not in model[0].__dict__
    assert not model._forward_pre_hooks and not optimizer.layers
    model(rows(9, 7)).sum().backward()
    assert model[0].weight.grad is not None
    for trained, each in ((model, inner), (twin, theirs)):  # torch's goes on
        train(trained, each)
        trained.zero_grad()
    assert_close(model, twin)
    nk.OptimizerInBackward(model, inner).restore()


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_are_plain_and_names_stay(copied):
    model, plain = network(), network()
    text = repr(model)
    optimizer = nk.OptimizerInBackward(model, torch.optim.AdamW(model.parameters()))
    assert [*model.state_dict()] == [*plain.state_dict()] and repr(model) == text
    other = copied(model)
    assert type(other[0]) is nn.Linear and type(model[0]) is not nn.Linear
    before = copy.deepcopy(other.state_dict())
    other(rows(9, 7)).sum().backward()
    assert other[0].weight.grad is not None and other[1].weight.grad is not None
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    with pytest.raises(TypeError, match="use state_dict"):
        copied(optimizer)


@pytest.mark.parametrize("make", [network, lambda: nn.Sequential(nn.LayerNorm(7))])
def test_the_model_alone_keeps_its_updates_and_dies_with_them(make):
    model = make()
    optimizer = nk.OptimizerInBackward(model, torch.optim.AdamW(model.parameters()))
    train(model, optimizer, steps=1)
    del optimizer  # the model goes on without it
    gc.collect()
    before = copy.deepcopy(model.state_dict())
    model(rows(9, 7)).square().sum().backward()
    assert all(value.grad is None for value in model.parameters())
    assert not any(torch.equal(before[name], value) for name, value in model.state_dict().items())
    dead = [weakref.ref(value) for value in (model, *model.parameters())]
    del model
    gc.collect()
    assert [each() for each in dead] == [None] * len(dead)


# which parameters


def test_a_tied_weight_is_stepped_whole_with_one_notice(capfd):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.inner = nn.Embedding(11, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.inner(self.embed(x)))

    model, optimizer, twin, theirs = pair(model=Tied())
    assert optimizer.layers == [model.inner]
    nk.OptimizerInBackward(other := Tied(), torch.optim.SGD(other.parameters()))
    assert capfd.readouterr().err.count("head.weight belongs to several modules") == 1
    x = torch.arange(11)
    for trained, each in ((model, optimizer), (twin, theirs)):
        for _ in range(3):
            each.zero_grad()
            trained(x).square().mean().backward()
            each.step()
    assert_close(model, twin)


def test_what_no_kernel_takes_is_stepped_all_the_same():
    """Another dtype, a subclass, a weight that other code uses, a bias without its weight."""

    class Other(nn.Linear):
        pass

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.low, self.sub = nn.Linear(7, 7).bfloat16(), Other(7, 7)
            self.raw, self.still, self.half_frozen = (nn.Linear(7, 7) for _ in range(3))
            self.still.weight.requires_grad_(False)
            self.half_frozen.bias.requires_grad_(False)

        def forward(self, x):
            x = self.low(x.bfloat16()).float() + self.sub(x)
            x = nn.functional.linear(x, self.raw.weight, self.raw.bias)
            return self.half_frozen(self.still(x))

    model, optimizer, twin, theirs = pair(model=Mixed())
    assert optimizer.layers == [model.raw, model.still, model.half_frozen]
    train(model, optimizer)
    train(twin, theirs)
    assert_close(model, twin)


def test_parameters_that_the_optimizer_does_not_have_keep_their_gradient():
    model, optimizer, twin, theirs = pair(groups=lambda m: [m[0].weight, m[1].weight])
    assert optimizer.layers == []
    for trained, each in ((model, optimizer), (twin, theirs)):
        trained(rows(9, 7)).square().mean().backward()
        each.step()
    assert model[0].weight.grad is None
    torch.testing.assert_close(model[3].weight.grad, twin[3].weight.grad)
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


# calls of the model


def test_eval_mode_trains_as_torch_does_and_no_grad_does_not():
    model, optimizer, twin, theirs = pair()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        assert not model(rows(9, 7)).requires_grad
    x = rows(9, 7, grad=True)
    (d_x,) = torch.autograd.grad(model(x).sum(), x)
    (want,) = torch.autograd.grad(twin(x).sum(), x)
    torch.testing.assert_close(d_x, want)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    train(model.eval(), optimizer)
    train(twin.eval(), theirs)
    assert_close(model, twin)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_autocast(dtype):
    model, optimizer, twin, theirs = pair(model=nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8)))
    inputs = rows(9, 64, grad=True), rows(9, 64, grad=True)
    for trained, each, x in zip((model, twin), (optimizer, theirs), inputs, strict=True):
        with torch.autocast("cpu", dtype):
            y = trained(x)
        assert y.dtype == dtype
        y.float().square().sum().backward()
        each.step()
    assert inputs[0].grad.dtype == torch.float32
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=2e-2, atol=2e-2)
    for value, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, other, rtol=1e-2, atol=1e-2)
    moments = [optimizer.state[model[0].weight], theirs.state[twin[0].weight]]
    torch.testing.assert_close(moments[0]["exp_avg"], moments[1]["exp_avg"], rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    model, optimizer, twin, theirs = pair()
    for trained, each in ((model, optimizer), (twin, theirs)):
        x = rows(9, 7, grad=True)
        y = checkpoint(trained, x, use_reentrant=reentrant)
        y.square().mean().backward()
        each.step()
        each.zero_grad()
    assert_close(model, twin)


def test_no_rows_and_leading_dimensions():
    model, optimizer, twin, theirs = pair()
    for shape in ((2, 3, 7), (0, 7), (7,), (1, 5, 1, 7)):
        for trained, each in ((model, optimizer), (twin, theirs)):
            each.zero_grad()
            trained(rows(*shape)).square().sum().backward()
            each.step()
    assert_close(model, twin)


# what it cannot see, as the page tells


def test_a_gradient_that_is_not_finite_leaves_a_layer_as_it_is(backend):
    model = nn.Sequential(nn.Linear(7, 5))
    optimizer = nk.OptimizerInBackward(model, torch.optim.AdamW(model.parameters()))
    train(model, optimizer, steps=1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    (model(rows(9, 7)) * torch.tensor(torch.nan)).sum().backward()
    after = model.state_dict(), optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_inputs_of_backward_and_hooks_of_a_layer_s_weight_are_not_seen():
    model, optimizer, twin, theirs = pair()
    seen = []
    model[0].weight.register_hook(lambda grad: seen.append("weight"))
    model[1].weight.register_hook(lambda grad: seen.append("norm"))
    train(model, optimizer, steps=1)
    assert seen == ["norm"]
    before = copy.deepcopy(model.state_dict())
    model(rows(9, 7)).sum().backward(inputs=[model[0].weight])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
