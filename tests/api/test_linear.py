"""nk.Linear against torch.nn.Linear and torch.optim."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import noprop_kernels as nk
from noprop_kernels.autograd.layer import plan_of
from noprop_kernels.backends import dispatch
from support.blocks import assert_same
from support.linear import everything, linear, rows, step

# ours, torch's, and the options that give the second the first's numbers
OPTIMIZERS = {
    "sgd": (nk.SGD(lr=0.05), torch.optim.SGD, {}),
    "momentum": (
        nk.SGD(lr=0.05, momentum=0.9, weight_decay=0.01),
        torch.optim.SGD,
        {"momentum": 0.9, "weight_decay": 0.01},
    ),
    "nesterov": (
        nk.SGD(lr=0.02, momentum=0.8, nesterov=True),
        torch.optim.SGD,
        {"momentum": 0.8, "nesterov": True},
    ),
    "adam": (nk.Adam(lr=0.01, weight_decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    "adamw": (nk.AdamW(lr=0.01, betas=(0.8, 0.99)), torch.optim.AdamW, {"betas": (0.8, 0.99)}),
}


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fifty_steps_are_those_of_torch(backend, name, bias):
    """The learning rate falls; x has other leading dimensions at each step."""
    ours, optimizer_class, options = OPTIMIZERS[name]
    layer, twin = nk.Linear(7, 5, bias, optimizer=ours), nn.Linear(7, 5, bias)
    twin.load_state_dict(layer.state_dict())
    optimizer = optimizer_class(twin.parameters(), lr=ours.lr, **options)
    for k in range(50):
        optimizer.param_groups[0]["lr"] = layer.optimizer.lr = ours.lr * 0.98**k
        lead = [(9,), (2, 3), (1, 5, 1), ()][k % 4]
        target = rows(*lead, 5, seed=100 + k)
        x, x_twin = rows(*lead, 7, seed=k, grad=True), rows(*lead, 7, seed=k, grad=True)
        y, y_twin = layer(x), twin(x_twin)
        close(y, y_twin)
        (y - target).square().mean().backward()
        optimizer.zero_grad()
        (y_twin - target).square().mean().backward()
        optimizer.step()
        close(x.grad, x_twin.grad)
    assert layer.weight.grad is None and layer.updates.tolist() == [50]
    assert_state_close(layer, twin)
    want = optimizer.state_dict()["state"]
    for i, entry in layer.optimizer_state_dict()["state"].items():
        for key, value in entry.items():
            if key in want.get(i, {}):  # plain SGD has none
                close(value, want[i][key])


def assert_state_close(layer, twin):
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("B, F, H", [(1, 1, 1), (1, 7, 3), (129, 33, 17), (3, 1023, 2)])
def test_odd_sizes(backend, B, F, H):
    layer, twin = nk.Linear(F, H, optimizer=nk.SGD(lr=0.1)), nn.Linear(F, H)
    twin.load_state_dict(layer.state_dict())
    x = rows(2 * B, F + 3)[::2, 1:-2]  # no contiguous rows
    d_y = rows(B, H, seed=1)
    close(layer(x), twin(x))
    layer(x).backward(d_y)
    twin(x).backward(d_y)
    close(layer.weight, twin.weight - 0.1 * twin.weight.grad)
    close(layer.bias, twin.bias - 0.1 * twin.bias.grad)


def test_state_dict_and_first_weights_are_those_of_torch():
    torch.manual_seed(3)
    twin = nn.Linear(4, 3)
    torch.manual_seed(3)
    layer = linear(4, 3)
    assert isinstance(layer, nn.Linear)
    assert_same(layer.state_dict(), twin.state_dict())
    assert [*linear(4, 3, bias=False).state_dict()] == ["weight"]
    twin.load_state_dict(linear(4, 3).state_dict())


def test_inside_sequential_beside_other_layers(backend):
    model = nn.Sequential(linear(7, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), linear(6, 2))
    twin = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    twin.load_state_dict(model.state_dict())
    ours = torch.optim.AdamW(model[2].parameters())
    theirs = torch.optim.AdamW(twin.parameters())
    for k in range(5):
        for network, optimizer in ((model, ours), (twin, theirs)):
            optimizer.zero_grad()
            network(rows(9, 7, seed=k)).square().sum().backward()
            optimizer.step()
    for name, value in twin.state_dict().items():
        close(model.state_dict()[name], value)


@pytest.mark.parametrize("grad", [False, True], ids=["frozen input", "input with gradient"])
def test_no_gradient_array_and_no_unasked_input_gradient(backend, grad, monkeypatch):
    layer, seen = linear(7, 5), []
    module = dispatch.choose(plan_of(7, 5, None), torch.device("cpu"))
    if hasattr(module, "backward_layer"):
        run = module.backward_layer
        monkeypatch.setattr(
            module, "backward_layer", lambda *a, **call: (seen.append(call), run(*a, **call))
        )
    else:
        run = module.backward
        monkeypatch.setattr(module, "backward", lambda call: (seen.append(vars(call)), run(call)))
    layer(rows(4, 7, grad=grad)).sum().backward()
    (call,) = seen
    assert call["grads"] is None and call["rule"] is not None
    d_x = call.get("d_x", call.get("d_inputs", {}).get("z"))
    assert (d_x is not None) == grad


# a copy or a loaded layer continues the run


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumes_bit_for_bit(backend, name):
    layer = nk.Linear(7, 5, optimizer=OPTIMIZERS[name][0])
    step(layer)
    layer.optimizer.lr = 0.003
    file = io.BytesIO()
    torch.save((layer.state_dict(), layer.optimizer_state_dict()), file)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    loaded = nk.Linear(7, 5, optimizer=OPTIMIZERS[name][0])
    weights, optimizer = torch.load(io.BytesIO(file.getvalue()))
    loaded.load_state_dict(weights)
    loaded.load_optimizer_state_dict(optimizer)
    for other in (layer, loaded, *copies):
        step(other, seed=1)
    for other in (loaded, *copies):
        assert_same(everything(other), everything(layer))
        assert other.optimizer.lr == 0.003


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_goes_to_torch_s_optimizer_and_back(name):
    ours, optimizer_class, options = OPTIMIZERS[name]
    layer, twin = nk.Linear(7, 5, optimizer=ours), nn.Linear(7, 5)
    twin.load_state_dict(layer.state_dict())
    optimizer = optimizer_class(twin.parameters(), lr=ours.lr, **options)

    def torch_step(seed):
        optimizer.zero_grad()
        twin(rows(6, 7, seed=seed)).square().sum().backward()
        optimizer.step()

    layer.load_optimizer_state_dict(optimizer.state_dict())  # one that has done nothing
    step(layer, seed=0)
    twin.load_state_dict(layer.state_dict())
    optimizer.load_state_dict(copy.deepcopy(layer.optimizer_state_dict()))
    for seed in (1, 2):
        torch_step(seed)
        step(layer, seed=seed)
    assert_state_close(layer, twin)
    optimizer.param_groups[0]["lr"] = 0.007
    other = nk.Linear(7, 5, optimizer=ours)
    other.load_state_dict(twin.state_dict())
    other.load_optimizer_state_dict(optimizer.state_dict())
    assert other.optimizer.lr == 0.007
    torch_step(3)
    step(other, seed=3)
    assert_state_close(other, twin)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda s: s["param_groups"].append(s["param_groups"][0]), "must have one group"),
        (lambda s: s["param_groups"][0].update(params=[0]), "got groups of"),
        (lambda s: s["param_groups"][0].update(amsgrad=True), "amsgrad=True"),
        (lambda s: s["param_groups"][0].update(decoupled_weight_decay=False), "decoupled_w"),
        (lambda s: s["param_groups"][0].pop("betas"), "betas=None"),
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr must be at least 0"),
        (lambda s: s["state"][1].update(exp_avg=torch.zeros(4)), "bias's exp_avg must have shape"),
        (lambda s: s["state"][0].update(step=torch.tensor(2.0)), "one step for all"),
    ],
)
def test_other_optimizer_states_are_refused(change, text):
    layer = linear(7, 5)
    step(layer)
    state, before = copy.deepcopy(layer.optimizer_state_dict()), everything(layer)
    change(state)
    with pytest.raises(ValueError, match=text):
        layer.load_optimizer_state_dict(state)
    assert_same(everything(layer), before)
    with pytest.raises(ValueError, match="state_dict must be of SGD"):
        nk.Linear(7, 5, optimizer=nk.SGD(momentum=0.9)).load_optimizer_state_dict(
            nk.Linear(7, 5, optimizer=nk.SGD()).optimizer_state_dict()
        )


def test_reset_parameters_starts_afresh():
    layer = linear(7, 5)
    step(layer)
    layer.reset_parameters()
    assert all(not value.any() for value in layer.buffers())


# calls that do not update


def test_nothing_moves_without_gradients_or_in_eval_mode(backend):
    layer, x = linear(7, 5), rows(4, 7, grad=True)
    before = everything(layer)
    with torch.no_grad():
        assert not layer(x).requires_grad
    layer.eval()
    y = layer(x)
    y.backward(torch.ones_like(y))
    close(x.grad, layer.weight.detach().sum(0).expand(4, 7))
    assert not layer(x.detach()).requires_grad and layer.weight.grad is None
    assert_same(everything(layer), before)


def test_input_gradients_alone_update_nothing(backend):
    layer, x = linear(7, 5), rows(4, 7, grad=True)
    before = everything(layer)
    y = layer(x)
    (once,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (twice,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    y.sum().backward(inputs=[x], retain_graph=True)
    assert torch.equal(once, twice) and torch.equal(once, x.grad)
    assert_same(everything(layer), before)
    y.sum().backward()
    assert layer.updates.tolist() == [1]


@pytest.mark.parametrize("parts", [("weight",), ("bias",), ("weight", "bias")])
def test_frozen_parameters_stay(backend, parts):
    layer, free = linear(7, 5), linear(7, 5)
    free.load_state_dict(layer.state_dict())
    before = everything(layer)
    for part in parts:
        layer.get_parameter(part).requires_grad_(False)
    for network in (layer, free):
        network(rows(4, 7, grad=True)).square().sum().backward()
    for name, value in everything(layer).items():
        if name == "updates":
            assert value.item() == (0 if len(parts) == 2 else 1)
        else:
            still = name.split("_")[0] in parts
            assert torch.equal(value, before[name] if still else everything(free)[name]), name


def test_what_is_not_finite_updates_nothing(backend):
    layer, x = linear(7, 5), rows(4, 7, grad=True)
    step(layer)
    before = everything(layer)
    d_y = torch.ones(4, 5)
    d_y[2, 3] = torch.nan
    layer(x).backward(d_y)
    assert x.grad[2].isnan().all() and x.grad[[0, 1, 3]].isfinite().all()
    assert_same(everything(layer), before)
    step(layer)
    assert layer.updates.tolist() == [2]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_rows_are_a_gradient_of_zero_as_in_torch(backend, name):
    ours, theirs, options = OPTIMIZERS[name]
    layer, twin = nk.Linear(7, 5, optimizer=ours), nn.Linear(7, 5)
    twin.load_state_dict(layer.state_dict())
    optimizer = theirs(twin.parameters(), lr=ours.lr, **options)
    for k, count in enumerate((4, 0, 0, 3)):
        x, x_twin = rows(2, count, 7, seed=k, grad=True), rows(2, count, 7, seed=k, grad=True)
        y = layer(x)
        y.square().sum().backward()
        optimizer.zero_grad()
        twin(x_twin).square().sum().backward()
        optimizer.step()
        assert y.shape == (2, count, 5) and x.grad.shape == (2, count, 7)
    assert layer.updates.tolist() == [4]
    assert_state_close(layer, twin)


@pytest.mark.parametrize("optimizer", [None, nk.SGD(lr=0.1)], ids=["gradients", "updates"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activation(backend, activation, optimizer):
    layer = nk.Linear(7, 5, activation=activation, optimizer=optimizer)
    assert f"activation={activation!r}" in repr(layer)
    twin = nn.Sequential(nn.Linear(7, 5), nn.ReLU() if activation == "relu" else nn.GELU())
    twin[0].load_state_dict(layer.state_dict())
    x, x_twin = rows(9, 7, grad=True), rows(9, 7, grad=True)
    before = [value.detach().clone() for value in layer.parameters()]
    y, y_twin = layer(x), twin(x_twin)
    close(y, y_twin)
    y.square().sum().backward()
    y_twin.square().sum().backward()
    close(x.grad, x_twin.grad)
    for value, old, other in zip(layer.parameters(), before, twin.parameters(), strict=True):
        if optimizer is None:
            close(value.grad, other.grad)
        else:
            close(value.detach(), old - 0.1 * other.grad)


@pytest.mark.parametrize("optimizer", [None, nk.SGD(lr=0.1)], ids=["gradients", "updates"])
def test_inside_autocast_dtypes_and_values_are_torch_s(optimizer):
    layer, twin = nk.Linear(64, 32, optimizer=optimizer), nn.Linear(64, 32)
    twin.load_state_dict(layer.state_dict())
    before = layer.weight.detach().clone()
    x, x_twin = rows(9, 64, grad=True), rows(9, 64, grad=True)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16):
            y, y_twin = layer(x.to(dtype)), twin(x_twin.to(dtype))
        assert y.dtype == y_twin.dtype == torch.bfloat16
        torch.testing.assert_close(y, y_twin, rtol=2e-2, atol=2e-2)
    y.float().square().sum().backward()
    y_twin.float().square().sum().backward()
    assert x.grad.dtype == layer.weight.dtype == torch.float32
    torch.testing.assert_close(x.grad, x_twin.grad, rtol=2e-2, atol=5e-2)
    moved = layer.weight.grad if optimizer is None else (before - layer.weight.detach()) / 0.1
    torch.testing.assert_close(moved, twin.weight.grad, rtol=2e-2, atol=5e-2)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="torch.float32"):
        layer(rows(9, 64).double())


def test_without_an_optimizer_gradients_are_torch_s(backend):
    layer, twin = nk.Linear(7, 5, optimizer=None), nn.Linear(7, 5)
    twin.load_state_dict(layer.state_dict())
    x, x_twin = rows(4, 7, grad=True), rows(4, 7, grad=True)
    for network, value in ((layer, x), (twin, x_twin)):
        (network(value).square().sum() + network(2 * value).sum()).backward()
    close(x.grad, x_twin.grad)
    for name, value in twin.named_parameters():
        close(layer.get_parameter(name).grad, value.grad)
    with pytest.raises(ValueError, match="optimizer must not be None"):
        layer.optimizer_state_dict()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_updates_once(backend, reentrant):
    layer, plain = linear(7, 7), linear(7, 7)
    plain.load_state_dict(layer.state_dict())
    x = rows(4, 7, grad=True)
    checkpoint(lambda x: layer(x).relu(), x, use_reentrant=reentrant).sum().backward()
    plain(x).relu().sum().backward()
    assert_same(everything(layer), everything(plain))


def test_the_graph_dies_with_its_result(backend):
    layer = linear(7, 5)
    gc.disable()
    try:
        y = layer(rows(4, 7))
        node = weakref.ref(y.grad_fn)
        del y
        assert node() is None
    finally:
        gc.enable()


def test_a_forward_of_constants_is_the_layer_s_and_refuses_what_does_not_fit():
    layer = nk.Linear(5, 4, optimizer=nk.AdamW(), activation="relu").eval()
    x = torch.randn(3, 5)
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias).relu()
    torch.testing.assert_close(layer(x), expected.detach())
    assert not layer(x).requires_grad
    for wrong in ([1.0], None, torch.randn(3, 6), torch.randn(3, 5).double()):
        with pytest.raises(ValueError, match="Linear: input must"):
            layer(wrong)
    with torch.no_grad():
        layer.weight.zero_()
    assert torch.equal(layer(x), layer.bias.detach().relu().expand(3, 4))
