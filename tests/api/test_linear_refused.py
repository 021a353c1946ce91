"""nk.Linear refuses these uses before anything is written."""

import gc
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm

import noprop_kernels as nk
from support.blocks import assert_same
from support.linear import everything, linear, rows


def refused(layers, run, text):
    before = [everything(layer) for layer in layers]
    with pytest.raises(RuntimeError, match=text):
        run()
    for layer, state in zip(layers, before, strict=True):
        assert_same(everything(layer), state)
        assert all(value.grad is None for value in layer.parameters())


def test_twice_in_one_graph_is_refused(backend):
    layer, x = linear(7, 7), rows(4, 7)
    refused([layer], lambda: layer(layer(x)).sum().backward(), "must be used once in one graph")
    refused([layer], lambda: (layer(x) + layer(x)).sum().backward(), "must be used once")


def test_several_graphs_of_which_one_is_used(backend):
    layer, x = linear(7, 7), rows(4, 7)
    others = layer(x), layer(layer(x))
    layer(x).sum().backward()
    assert layer.updates.tolist() == [1]
    refused([layer], lambda: others[0].sum().backward(), "must be those of the forward")
    layer(layer(x).detach()).sum().backward()
    assert layer.updates.tolist() == [2]


def test_backward_twice_and_create_graph_are_refused(backend):
    layer, x = linear(7, 5), rows(4, 7, grad=True)
    y = layer(x).sum()
    refused([layer], lambda: torch.autograd.grad(y, x, create_graph=True), "create_graph")
    y.backward(retain_graph=True)
    refused([layer], y.backward, "must run once for each forward")


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_create_graph_of_backward_is_refused(backend):
    layer = linear(7, 5)
    refused([layer], lambda: layer(rows(4, 7)).sum().backward(create_graph=True), "create_graph")


def test_gradients_of_parameters_by_autograd_grad_are_refused(backend):
    layer, x = linear(7, 5), rows(4, 7, grad=True)
    for wanted in ([layer.weight], [layer.bias], [x, layer.weight]):
        refused(
            [layer],
            lambda wanted=wanted: torch.autograd.grad(layer(x).sum(), wanted),
            "must not ask for the gradient of a parameter",
        )


def test_what_changed_since_the_forward_is_refused(backend):
    layer, x = linear(7, 5), rows(4, 7)
    y = layer(x).sum()
    x += 1
    refused([layer], y.backward, "must be those of the forward")
    y = layer(x).sum()
    with torch.no_grad():
        layer.bias.add_(1)
    refused([layer], y.backward, "must be those of the forward")


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: linear(0, 5), "must be an integer of at least 1, got 0"),
        (lambda: nk.Linear(7, 5, optimizer="adam"), "optimizer must be SGD, Adam or AdamW"),
        (
            lambda: nk.Linear(7, 5, optimizer=nk.SGD(weight_decay=(0.1, 0.2))),
            "must have one weight_decay",
        ),
        (lambda: linear(7, 5, precision="float16"), "precision must be one of"),
        (lambda: linear(7, 5, backend="tpu"), "backend must be one of"),
        (lambda: linear(7, 5).half(), "parameters must stay torch.float32, got torch.float16"),
        (lambda: linear(7, 5)(torch.ones(4, 6)), r"input must have shape \(any, 7\), got"),
        (lambda: linear(7, 5)(torch.ones(())), r"input must have shape \(\*, 7\)"),
        (lambda: linear(7, 5)(torch.ones(4, 7).double()), "input must be torch.float32"),
        (lambda: linear(7, 5)([1.0] * 7), "input must be a tensor, got list"),
        (lambda: setattr(linear(7, 5).optimizer, "lr", -1), "lr must be at least 0"),
    ],
)
def test_wrong_arguments_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_parameters_that_cannot_be_updated_are_refused():
    layer = linear(7, 5)
    layer.weight.data = torch.randn(7, 5).T
    with pytest.raises(ValueError, match="weight must be contiguous"):
        layer(rows(4, 7))
    layer = linear(7, 5)
    nn.utils.parametrizations.weight_norm(layer)
    with pytest.raises(ValueError, match="weight must be a parameter"):
        layer(rows(4, 7))


def test_an_optimizer_is_asked_for():
    with pytest.raises(ValueError, match="optimizer must be given: SGD, Adam or AdamW"):
        nk.Linear(7, 5)


# wrappers that take over parameters or gradients


def fits_again(layer):
    """A refused call leaves nothing behind."""
    layer(rows(4, 7)).sum().backward()
    assert layer.updates.tolist() == [1]


def test_a_weight_of_two_layers_is_refused(backend):
    layer, tied, x = linear(7, 7), linear(7, 7), rows(4, 7)
    layer(x).sum().backward()
    first = tied.weight
    tied.weight = layer.weight
    refused([layer, tied], lambda: tied(x).sum().backward(), "weight must belong to one layer")
    tied.weight = first
    tied.bias = layer.bias
    refused([layer, tied], lambda: tied(layer(x)).sum().backward(), "bias must belong to one layer")
    tied.bias = None
    tied(x).sum().backward()
    heir = linear(7, 7)
    heir.weight, layer.weight = layer.weight, nn.Parameter(rows(7, 7))  # handed on
    heir(x).sum().backward()
    last = linear(7, 7)
    last.weight = heir.weight
    del heir
    gc.collect()
    last(x).sum().backward()
    assert last.updates.tolist() == [1]


def parametrized(layer):
    nn.utils.parametrizations.weight_norm(layer)


def masked(layer):
    prune.l1_unstructured(layer, "weight", amount=0.5)


def of_a_subclass(layer):
    class Other(torch.Tensor):
        pass

    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Other))


@pytest.mark.parametrize(
    "change, text",
    [
        (parametrized, "weight must be a parameter to be updated, got a result"),
        (masked, "weight must be a parameter to be updated, got a result"),
        (spectral_norm, "weight must be a parameter to be updated, got a result"),
        (of_a_subclass, "weight must be a plain parameter to be updated, got Other"),
    ],
)
def test_weights_that_are_no_plain_parameters_are_refused(change, text):
    layer = linear(7, 5)
    change(layer)
    bias = layer.bias.detach().clone()
    with pytest.raises(ValueError, match=text):
        layer(rows(4, 7)).sum().backward()
    assert layer.updates.item() == 0 and torch.equal(layer.bias, bias)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_func_is_refused():
    layer, x = linear(7, 5), rows(4, 7)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, x).sum()

    for call in (
        lambda: torch.func.grad(loss)(parameters, x),
        lambda: torch.func.vmap(layer)(x),
        lambda: torch.func.jvp(layer, (x,), (x,)),
    ):
        refused([layer], call, "autograd.Function with functorch transforms")
    fits_again(layer)


RANK = """
import json, os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import init_device_mesh
import noprop_kernels as nk
import warnings
warnings.simplefilter("ignore")
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))

def shard(model, **options):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)

def models(optimizer):
    torch.manual_seed(0)
    layer = nk.Linear(7, 5, optimizer=optimizer)
    return layer, nn.Sequential(nn.Linear(7, 7), layer)

WRAPPERS = {
    "ddp": nn.parallel.DistributedDataParallel,
    "fsdp": shard,
    "fsdp, original parameters": lambda model: shard(model, use_orig_params=True),
    "fully_shard": lambda model: fully_shard(model, mesh=mesh),
    "fully_shard, whole between": lambda model: fully_shard(
        model, mesh=mesh, reshard_after_forward=False
    ),
}
x = torch.randn(4, 7) + rank
for kind, wrap in WRAPPERS.items():
    layer, model = models(nk.SGD(lr=0.1))
    state = (layer.weight, layer.bias, layer.updates)
    before = [value.detach().clone() for value in state]
    wrapped = wrap(model)
    try:
        wrapped(x).sum().backward()
    except (RuntimeError, ValueError) as error:
        text = str(error)
    else:
        text = "not refused"
    same = kind != "ddp" or all(map(torch.equal, state, before))
    print(json.dumps([kind, text, layer.updates.item(), same]))

_, plain = models(None)  # with .grad it trains the same on all ranks
wrapped = WRAPPERS["ddp"](plain)
optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
wrapped(x).square().sum().backward()
optimizer.step()
weights = [torch.empty(5, 7) for _ in range(2)]
dist.all_gather(weights, plain[1].weight.detach())
print(json.dumps(["ddp without an optimizer", "", 0, torch.equal(*weights)]), flush=True)
os._exit(0)  # without waiting for the other rank's threads
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="gloo is not built in")
def test_wrappers_that_average_or_shard_are_refused_on_each_rank(tmp_path):
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=180) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    for lines, _ in said:
        *wrapped, alone = map(json.loads, lines.splitlines())
        assert len(wrapped) == 5 and alone[-1]
        for kind, text, updates, same in wrapped:
            assert "optimizer=None" in text and updates == 0 and same, (kind, text)


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("optimizer", [nk.AdamW(), nk.SGD(momentum=0.9)], ids=["AdamW", "SGD"])
def test_what_the_optimizer_keeps_must_be_there(backend, optimizer, used):
    for name in dict(linear(7, 5, optimizer=optimizer).named_buffers()):
        layer = linear(7, 5, optimizer=optimizer)
        if used:
            layer(rows(4, 7)).sum().backward()
        layer._buffers[name] = None
        before = everything(layer)
        with pytest.raises(ValueError, match=f"Linear: {name} must be a tensor, got NoneType"):
            layer(rows(4, 7))
        assert_same(everything(layer), before)
