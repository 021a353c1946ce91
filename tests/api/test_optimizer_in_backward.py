"""nk.OptimizerInBackward against torch.optim on the same model."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

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
    """What every layer's backward asks of the CPU kernels."""
    seen, module = [], dispatch.choose(plan_of(7, 5, None), torch.device("cpu"))
    run = module.backward_layer
    monkeypatch.setattr(
        module, "backward_layer", lambda *a, **call: (seen.append(call), run(*a, **call))
    )
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
    assert [call["grads"] for call in calls] == [None, None]
    assert all(call["rule"] is not None for call in calls)
    assert [call["d_x"] is not None for call in calls] == [True, False]  # the input needs none
    moments = [call["moments"][0].data_ptr() for call in calls]
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
    model(rows(9, 7)).sum().backward()  # without a step
    assert model[1].weight.grad is None and model[0].bias.grad is None


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
