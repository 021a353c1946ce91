"""nk.OptimizerInBackward refuses these uses before anything is written."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import noprop_kernels as nk
from support.in_backward import network, train
from support.linear import rows


def adamw(model, **options):
    return nk.OptimizerInBackward(model, torch.optim.AdamW(model.parameters(), **options))


def refused(model, optimizer, run, text, error=RuntimeError):
    """Nothing has moved, and the model trains on as one that was never refused."""
    train(model, optimizer, steps=1)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    with pytest.raises(error, match=text):
        run()
    after = model.state_dict(), optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(value.grad is None for value in model.parameters())


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad must be False"),
        (lambda p: torch.optim.Adam(p, maximize=True), "maximize must be False"),
        (lambda p: torch.optim.SGD(p, differentiable=True), "differentiable must be False"),
        (lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.1), "dampening must be 0"),
        (lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3)), "lr must be numbers, got a tensor"),
        (lambda p: torch.optim.AdamW(p, eps=0), "eps must be above 0"),
        (lambda p: torch.optim.RMSprop(p), "SGD, Adam or AdamW of torch.optim, got RMSprop"),
        (lambda p: torch.optim.LBFGS(p), "got LBFGS"),
        (lambda p: nk.AdamW(), "of torch.optim, got AdamW"),
    ],
)
def test_optimizers_that_the_kernels_do_not_have(make, text):
    model = network()
    with pytest.raises(ValueError, match=f"OptimizerInBackward: .*{text}|{text}"):
        nk.OptimizerInBackward(model, make(model.parameters()))
    assert type(model[0]) is nn.Linear and not model._forward_pre_hooks
    adamw(model)


@pytest.mark.parametrize(
    "name, value", [("amsgrad", True), ("maximize", True), ("lr", torch.tensor(0.1)), ("lr", -1.0)]
)
def test_options_that_are_set_later(name, value):
    model = network()
    optimizer = adamw(model)

    def run():
        optimizer.param_groups[0][name] = value
        model(rows(9, 7)).sum().backward()

    refused(model, optimizer, run, name, ValueError)


def test_a_layer_twice_in_one_graph():
    model = nn.Sequential(nn.Linear(7, 7), nn.LayerNorm(7), nn.Linear(7, 7))
    optimizer = adamw(model)
    refused(
        model,
        optimizer,
        lambda: model[2](model(model(rows(9, 7)))).sum().backward(),
        "[02] must be used once in one graph.* accumulate",
    )


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_weight_that_other_code_uses_in_the_graph(part):
    model = network()
    optimizer = adamw(model)
    # the last layer's backward would be first: nothing of it may have moved
    refused(
        model,
        optimizer,
        lambda: (model(rows(9, 7)).sum() + getattr(model[0], part).norm()).backward(),
        "0 must be used once in one graph.*got 2 uses",
    )


def test_other_graphs_do_not_count():
    model = network()
    optimizer = adamw(model)
    other = model(rows(9, 7))
    train(model, optimizer)
    refused(model, optimizer, other.sum().backward, "weight must be that of the forward")
    weight = model[0].weight.detach().clone()
    model[0].weight.norm().backward()  # by torch's own step
    assert model[0].weight.grad is None and not torch.equal(model[0].weight, weight)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
@pytest.mark.parametrize("model", [network(), nn.Sequential(nn.LayerNorm(7))], ids=["Linear", "no"])
def test_create_graph(model):
    optimizer = adamw(model)

    def run():
        model(rows(9, 7)).square().sum().backward(create_graph=True)

    refused(model, optimizer, run, "create_graph")
    with pytest.raises(RuntimeError, match="create_graph"), optimizer.accumulate():
        run()


def test_backward_twice():
    model = network()
    optimizer = adamw(model)
    train(model, optimizer, steps=1)
    loss = model(rows(9, 7)).sum()
    loss.backward(retain_graph=True)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="modified by an inplace operation|weight must be that"):
        loss.backward()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_gradients_of_parameters_by_autograd_grad():
    model = network()
    optimizer = adamw(model)
    refused(
        model,
        optimizer,
        lambda: torch.autograd.grad(model(rows(9, 7)).sum(), [*model.parameters()]),
        "not have been used in the graph",
    )


def test_two_on_one_model_and_layers_that_update_themselves():
    model = network()
    optimizer = adamw(model)
    with pytest.raises(ValueError, match="another OptimizerInBackward; restore"):
        adamw(model)
    optimizer.restore()
    mixed = nn.Sequential(model, nk.Linear(5, 3, optimizer=nk.SGD()))
    with pytest.raises(ValueError, match="'1', an nk.Linear that updates them itself"):
        adamw(mixed)
    nk.OptimizerInBackward(mixed, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match="model must be a torch.nn.Module, got list"):
        nk.OptimizerInBackward([], torch.optim.SGD(network().parameters()))


def test_a_gradient_scaler_is_told_after_one_update():
    model = network()
    optimizer = adamw(model)
    for unscale in (False, True):
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(rows(9, 7)).sum()).backward()
        if unscale:
            scaler.unscale_(optimizer)
        with pytest.raises(RuntimeError, match="scaler.* one update by scaled gradients has hap"):
            scaler.step(optimizer)
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    disabled.step(optimizer)


def test_compiling_the_whole_is_refused_with_the_reason():
    model = network()
    adamw(model)
    run = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="moves state|weights inside backward"):
        run(rows(9, 7))
    torch._dynamo.reset()


WRAPPED = """
import sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import init_device_mesh
import noprop_kernels as nk
import warnings
warnings.simplefilter("ignore")
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
DDP = nn.parallel.DistributedDataParallel
WRAPPERS = {
    "DDP": DDP,
    "FSDP": lambda model: FullyShardedDataParallel(
        model, device_id=torch.device("cpu"), use_orig_params=True
    ),
    "fully_shard": lambda model: fully_shard(model, mesh=mesh),
}

def ours(model):
    return nk.OptimizerInBackward(model, torch.optim.SGD(model.parameters(), lr=0.1))

def told(name, run, model):
    before = {k: v.clone() for k, v in model.state_dict().items()} if model else None
    try:
        run()
    except RuntimeError as error:
        assert "OptimizerInBackward: m" in str(error), (name, error)
    else:
        raise AssertionError(name + " was not refused")
    if before:
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), name

x = torch.randn(4, 7)
for name, wrap in WRAPPERS.items():
    model = wrap(nn.Sequential(nn.Linear(7, 7), nn.LayerNorm(7)))
    told(name + " before", lambda: ours(model), None)
for last in (nn.Linear(7, 5), nn.LayerNorm(7)):
    model = nn.Sequential(nn.LayerNorm(7), last)
    optimizer = ours(model)
    told("DDP after", lambda: DDP(model)(x).sum().backward(), model)
model = nn.Sequential(nn.Linear(7, 7))
optimizer = ours(model)
told("fully_shard after", lambda: fully_shard(model, mesh=mesh)(x).sum().backward(), None)
print("refused", flush=True)
import os
os._exit(0)
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo is not built in")
def test_wrappers_that_average_or_shard(tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-c", WRAPPED, str(tmp_path / "store")]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, timeout=180)
    assert done.stdout.strip() == "refused", done.stderr


@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
def test_a_state_without_a_part_is_refused_as_by_torch(name, part):
    model = network()
    optimizer = adamw(model)
    train(model, optimizer, steps=1)
    state = optimizer.state[getattr(model[0], part)]
    kept = state.pop(name)
    text = f"OptimizerInBackward: the optimizer's state must have a tensor '{name}'"
    before = copy.deepcopy(model[0].state_dict())
    with pytest.raises(ValueError, match=text):
        train(model, optimizer, steps=1)
    assert name not in state
    torch.testing.assert_close(model[0].state_dict(), before, rtol=0, atol=0)
    state[name] = kept
    train(model, optimizer, steps=1)
