"""nk.OptimizerInBackward against torch.optim on the same model."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR
from torch.utils.checkpoint import checkpoint

import noprop_kernels as nk
from noprop_kernels.autograd.layer import plan_of
from noprop_kernels.backends import dispatch
from support.in_backward import (
    OPTIMIZERS,
    assert_close,
    assert_state_close,
    network,
    pair,
    train,
    two_groups,
)
from support.linear import rows


@pytest.fixture
def calls(monkeypatch):
    """The records of every backward call of the CPU kernels."""
    seen, module = [], dispatch.choose(plan_of(7, 5, None), torch.device("cpu"))
    run = module.backward
    monkeypatch.setattr(module, "backward", lambda call: (seen.append(call), run(call)))
    return seen


@pytest.mark.parametrize("groups", [lambda model: model.parameters(), two_groups])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_and_state_are_those_of_torch(backend, name, groups):
    model, optimizer, twin, theirs = pair(OPTIMIZERS[name], groups=groups)
    for k in range(10):
        for trained, each in ((model, optimizer), (twin, theirs)):
            each.param_groups[0]["lr"] = 0.03 * 0.9**k
            train(trained, each, steps=1, seed=k)
    assert_close(model, twin)
    assert_state_close(optimizer.state_dict(), theirs.state_dict())


def test_linears_are_updated_in_the_kernel_and_no_gradient_is_written(calls):
    model = network()
    optimizer = nk.OptimizerInBackward(model, torch.optim.AdamW(model.parameters()))
    assert optimizer.layers == [model[0], model[3]]
    model(rows(9, 7)).sum().backward()
    assert [call.grads for call in calls] == [None, None]
    assert all(call.rule is not None for call in calls)
    assert [[*call.d_inputs] for call in calls] == [["z"], []]  # the first input needs none
    moments = [call.slices.m["y.weight"].data_ptr() for call in calls]
    states = [optimizer.state[layer.weight]["exp_avg"] for layer in (model[3], model[0])]
    assert moments == [value.data_ptr() for value in states]


def test_it_is_a_torch_optimizer_whose_step_and_zero_grad_do_nothing():
    model, optimizer, twin, theirs = pair()
    assert isinstance(optimizer, torch.optim.Optimizer)
    for trained, each in ((model, optimizer), (twin, theirs)):
        trained(rows(9, 7)).square().mean().backward()
        each.step()
        each.zero_grad()
    assert_close(model, twin)
    before = copy.deepcopy(model.state_dict())
    assert optimizer.step() is None
    optimizer.zero_grad()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# groups are live


def test_every_number_of_every_group_is_read_at_each_backward():
    model, optimizer, twin, theirs = pair(groups=two_groups)
    changes = [
        (0, {"lr": 0.002}),
        (1, {"lr": 0.05, "weight_decay": 0.3}),
        (0, {"betas": (0.5, 0.9), "eps": 1e-3}),
        (1, {"betas": (0.7, 0.95)}),
    ]
    for k, (index, change) in enumerate(changes):
        for trained, each in ((model, optimizer), (twin, theirs)):
            each.param_groups[index].update(change)
            train(trained, each, steps=2, seed=k)
        assert_close(model, twin)


def test_momentum_that_begins_later():
    model, optimizer, twin, theirs = pair(OPTIMIZERS["sgd"])
    for momentum in (0.0, 0.9, 0.5):
        for trained, each in ((model, optimizer), (twin, theirs)):
            each.param_groups[0]["momentum"] = momentum
            train(trained, each)
    assert_close(model, twin)


@pytest.mark.parametrize("name", ["adamw", "momentum"])
@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.05, total_steps=12),
        lambda optimizer: CosineAnnealingLR(optimizer, T_max=12),
    ],
    ids=["one cycle", "cosine"],
)
def test_schedulers(name, schedule):
    model, optimizer, twin, theirs = pair(OPTIMIZERS[name])
    for trained, each in ((model, optimizer), (twin, theirs)):
        train(trained, each, steps=10, schedulers=[schedule(each)])
    assert optimizer.param_groups[0] | {"params": []} == theirs.param_groups[0] | {"params": []}
    assert_close(model, twin)


def test_a_group_that_is_added():
    model, optimizer, twin, theirs = pair(groups=lambda model: model[0].parameters())
    for trained, each in ((model, optimizer), (twin, theirs)):
        train(trained, each)
        trained.zero_grad()  # parameters that no optimizer has keep .grad
        each.add_param_group({"params": [*trained[1].parameters(), trained[3].weight], "lr": 0.1})
        train(trained, each)
    assert_close(model, twin)


# state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_goes_to_torch_and_back(name):
    model, optimizer, twin, theirs = pair(OPTIMIZERS[name], groups=two_groups)
    for _ in range(2):
        train(model, optimizer)
        twin.load_state_dict(model.state_dict())
        theirs.load_state_dict(optimizer.state_dict())
        train(twin, theirs, seed=7)
        model.load_state_dict(twin.state_dict())
        file = io.BytesIO()
        torch.save(theirs.state_dict(), file)
        optimizer.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
        assert_state_close(optimizer.state_dict(), theirs.state_dict())
    for trained, each in ((model, optimizer), (twin, theirs)):
        train(trained, each, seed=11)
    assert_close(model, twin)


def test_steps_are_counted_by_parameter():
    model, optimizer, twin, theirs = pair()
    state = copy.deepcopy(theirs.state_dict())
    train(twin, theirs)
    state = theirs.state_dict()
    state["state"][0]["step"] += 5  # the first weight's, not its bias'
    for trained, each in ((model, optimizer), (twin, theirs)):
        trained.load_state_dict(twin.state_dict())
        each.load_state_dict(copy.deepcopy(state))
    for trained, each in ((model, optimizer), (twin, theirs)):
        train(trained, each)
    assert_close(model, twin)
    assert_state_close(optimizer.state_dict(), theirs.state_dict())


# closures and accumulation


def test_a_closure_runs_with_gradients_and_its_loss_is_returned():
    model, optimizer, twin, theirs = pair()
    for trained, each in ((model, optimizer), (twin, theirs)):

        def closure(trained=trained, each=each):
            each.zero_grad()
            loss = trained(rows(9, 7)).square().mean()
            loss.backward()
            return loss

        with torch.no_grad():
            losses = [each.step(closure).item() for _ in range(3)]
        assert losses[0] > losses[2]
    assert_close(model, twin)


@pytest.mark.parametrize("groups", [lambda model: model.parameters(), two_groups])
def test_accumulate_adds_and_the_last_backward_updates(groups):
    model, optimizer, twin, theirs = pair(groups=groups)
    for k in range(3):
        theirs.zero_grad()
        with optimizer.accumulate():
            for seed in (k, k + 1):
                model(rows(9, 7, seed=seed)).square().mean().backward()
        if k == 0:
            assert model[0].weight.grad is not None and not optimizer.state
        for seed in (k, k + 1, k + 2):
            twin(rows(9, 7, seed=seed)).square().mean().backward()
        model(rows(9, 7, seed=k + 2)).square().mean().backward()
        optimizer.step()
        theirs.step()
        assert_close(model, twin)


def test_step_takes_what_the_last_backward_did_not_reach():
    model, optimizer, twin, theirs = pair()
    with optimizer.accumulate():
        model(rows(9, 7)).square().mean().backward()
    twin(rows(9, 7)).square().mean().backward()
    for trained in (model, twin):
        trained[0](rows(4, 7)).sum().backward()
    assert model[0].weight.grad is None and model[3].weight.grad is not None
    for each in (optimizer, theirs):
        each.step()
    assert_close(model, twin)


def test_accumulate_and_step_clip_norms_and_allow_a_second_use():
    model, optimizer, twin, theirs = pair(model=nn.Sequential(nn.Linear(7, 7)))
    layer, other = model[0], twin[0]
    with optimizer.accumulate():
        (layer(layer(rows(9, 7))).square().sum() + layer.weight.norm()).backward()
    (other(other(rows(9, 7))).square().sum() + other.weight.norm()).backward()
    for trained, each in ((model, optimizer), (twin, theirs)):
        nn.utils.clip_grad_norm_(trained.parameters(), 0.1)
        each.step()
    assert_close(model, twin)


def test_zero_grad_frees_what_was_accumulated():
    model, optimizer, twin, theirs = pair()
    with optimizer.accumulate():
        model(rows(9, 7, seed=5)).sum().backward()
    train(model, optimizer)
    train(twin, theirs)
    assert_close(model, twin)


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


def test_the_model_alone_keeps_its_updates_and_dies_with_them():
    model = network()
    optimizer = nk.OptimizerInBackward(model, torch.optim.AdamW(model.parameters()))
    train(model, optimizer, steps=1)
    del optimizer  # the model goes on without it
    gc.collect()
    model(rows(9, 7)).sum().backward()
    assert all(value.grad is None for value in model.parameters())
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
