"""A layer that has trained finds a change of its tensors or options as a new one does."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode

import noprop_kernels as nk
from noprop_kernels.autograd import dense_ops
from noprop_kernels.autograd.layer import Layer
from support.blocks import assert_same
from support.linear import everything, linear, rows, step


class Other(torch.Tensor):
    pass


def result_of_others(layer: nk.Linear) -> None:
    with torch.no_grad():
        layer.weight.requires_grad_(False)
    layer.weight.mul_(torch.ones(1, requires_grad=True))


def set_data(name: str, value: torch.Tensor) -> Callable[[nk.Linear], None]:
    def change(layer: nk.Linear) -> None:
        getattr(layer, name).data = value

    return change


def set_buffer(name: str, value: object) -> Callable[[nk.Linear], None]:
    def change(layer: nk.Linear) -> None:
        layer._buffers[name] = value

    return change


def release(layer: nk.Linear) -> None:
    layer.weight.untyped_storage().resize_(0)


CHANGES = {
    "parametrized": nn.utils.parametrizations.weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "a subclass": lambda layer: setattr(
        layer, "weight", nn.Parameter(layer.weight.detach().as_subclass(Other))
    ),
    "another class": lambda layer: setattr(layer.bias, "__class__", type("P", (nn.Parameter,), {})),
    "a result": result_of_others,
    "transposed": set_data("weight", torch.ones(7, 5).T),
    "float64": set_data("weight", torch.ones(5, 7, dtype=torch.float64)),
    "another shape": set_data("weight", torch.ones(6, 7)),
    "one number": set_data("weight", torch.ones(1)),
    "a short bias": set_data("bias", torch.ones(4)),
    "released memory": release,
    "a short moment": set_buffer("weight_m", torch.zeros(5, 6)),
    "a moment of float64": set_buffer("bias_v", torch.zeros(5, dtype=torch.float64)),
    "a moment of another shape": set_data("weight_m", torch.zeros(7, 5)),
    "no moment": lambda layer: layer._buffers.pop("weight_v"),
    "no counter": set_buffer("updates", None),
    "a counter of float32": set_buffer("updates", torch.zeros(1)),
    "two features more": lambda layer: setattr(layer, "in_features", 9),
    "an unknown backend": lambda layer: setattr(layer, "backend", "tpu"),
    "an unknown precision": lambda layer: setattr(layer, "precision", "float16"),
}


def said(layer: nk.Linear, change: Callable[[nk.Linear], object]) -> str:
    change(layer)
    before = {k: v for k, v in layer._buffers.items() if isinstance(v, torch.Tensor)}
    copies = {name: value.clone() for name, value in before.items()}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        step(layer)
    assert_same(before, copies)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize("case", CHANGES)
def test_a_change_is_found_as_in_a_new_layer(case: str) -> None:
    fresh, trained = linear(7, 5), linear(7, 5)
    step(trained)
    step(trained)
    assert said(trained, CHANGES[case]) == said(fresh, CHANGES[case])


@pytest.mark.parametrize(
    "x", [torch.ones(4, 6), torch.ones(()), [1.0] * 7, torch.ones(4, 7).double()]
)
def test_an_input_that_does_not_fit_is_refused_in_the_same_words(x: object) -> None:
    fresh, trained = linear(7, 5), linear(7, 5)
    step(trained)
    texts = []
    for layer in (fresh, trained):
        with pytest.raises(ValueError, match="^Linear: input must ") as caught:
            layer(x)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


OPTIONS = {
    "activation": lambda layer: setattr(layer, "activation", "relu"),
    "precision": lambda layer: setattr(layer, "precision", "bfloat16"),
    "new weights": lambda layer: setattr(layer, "weight", nn.Parameter(rows(5, 7, seed=9))),
    "new memory": lambda layer: setattr(layer.weight, "data", rows(5, 7, seed=9)),
    "no bias": lambda layer: setattr(layer, "bias", None),
    "a frozen bias": lambda layer: layer.bias.requires_grad_(False),
    "rate": lambda layer: setattr(layer.optimizer, "lr", 0.5),
    "decay": lambda layer: setattr(layer.optimizer, "weight_decay", 0.5),
    "reference": lambda layer: setattr(layer, "backend", "reference"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_change_has_the_effect_that_it_has_on_a_loaded_layer(case: str) -> None:
    layer, loaded = linear(7, 5), linear(7, 5)
    step(layer)
    step(layer)
    loaded.load_state_dict(layer.state_dict())
    loaded.load_optimizer_state_dict(layer.optimizer_state_dict())
    for each in (layer, loaded):
        OPTIONS[case](each)
        step(each, seed=3)
        step(each, seed=4)
    assert_same(everything(layer), everything(loaded))


class Follows(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def run(layer: nk.Linear, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    y.square().sum().backward()
    return y.detach()


def run_followed(layer: nk.Linear, x: torch.Tensor) -> torch.Tensor:
    with Follows():
        return run(layer, x)


def run_in_bfloat16(layer: nk.Linear, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu"):
        return run(layer, x)


def run_backward_followed(layer: nk.Linear, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    with Follows():
        y.square().sum().backward()
    return y.detach()


def run_with_default_dtype(layer: nk.Linear, x: torch.Tensor) -> torch.Tensor:
    torch.set_default_dtype(torch.float64)
    try:
        return run(layer, x)
    finally:
        torch.set_default_dtype(torch.float32)


def run_frozen(layer: nk.Linear, x: torch.Tensor) -> torch.Tensor:
    y = layer(x.requires_grad_())
    torch.autograd.grad(y.sum(), x)
    return y.detach()


def run_strided_gradient(layer: nk.Linear, x: torch.Tensor) -> torch.Tensor:
    y = layer(x)
    y.backward(rows(5, 4, seed=2).T)
    return y.detach()


USES = {
    "as before": (run, rows(4, 7)),
    "other rows": (run, rows(2, 3, 7)),
    "no leading dimension": (run, rows(7)),
    "no rows": (run, rows(0, 7)),
    "strides": (run, rows(4, 14)[:, ::2]),
    "a parameter": (run, nn.Parameter(rows(4, 7))),
    "a subclass": (run, rows(4, 7).as_subclass(Other)),
    "negated": (run, torch._neg_view(rows(4, 7))),
    "a mode": (run_followed, rows(4, 7)),
    "a mode in backward": (run_backward_followed, rows(4, 7)),
    "autocast": (run_in_bfloat16, rows(4, 7)),
    "another default dtype": (run_with_default_dtype, rows(4, 7)),
    "a gradient of the input alone": (run_frozen, rows(4, 7)),
    "a gradient with strides": (run_strided_gradient, rows(4, 7)),
}


@pytest.mark.parametrize("case", USES)
def test_a_use_has_the_result_that_it_has_on_a_loaded_layer(case: str) -> None:
    use, x = USES[case]
    layer, loaded = linear(7, 5), linear(7, 5)
    step(layer)
    step(layer)
    loaded.load_state_dict(layer.state_dict())
    loaded.load_optimizer_state_dict(layer.optimizer_state_dict())
    found = [(use(each, x), each) for each in (layer, loaded)]
    assert torch.equal(found[0][0], found[1][0])
    for each in (layer, loaded):
        step(each, seed=4)
    assert_same(everything(layer), everything(loaded))


def test_a_repeated_step_makes_no_check_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, bare = linear(7, 5), linear(7, 5, bias=False)
    for each in (layer, bare, layer):  # a new owner of parameters has each layer checked once more
        step(each)
    assert layer.optimizer is not None

    def refuse(*_: object) -> None:
        raise AssertionError("a check by name")

    monkeypatch.setattr(nk.Linear, "checked_layer", refuse)
    monkeypatch.setattr(Layer, "backward", refuse)
    for seed, lead in enumerate([(6,), (1,), (2, 3), ()]):
        layer.optimizer.lr = 0.1 / (1 + seed)
        layer(rows(*lead, 7, seed=seed)).square().sum().backward()
        step(bare, seed=seed)
    assert (layer.updates.tolist(), bare.updates.tolist()) == ([6], [5])


def test_a_forward_that_trains_nothing_makes_no_check_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = linear(7, 5).eval(), rows(4, 7)
    want = layer(x)
    monkeypatch.setattr(dense_ops, "check_layer", None)
    with torch.no_grad():
        assert torch.equal(layer(x), want)
        assert torch.equal(nk.functional.dense(x, layer.weight, layer.bias), want)


def test_a_copy_of_a_layer_that_has_trained_has_tensors_of_its_own() -> None:
    layer = linear(7, 5)
    step(layer)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        before = everything(layer)
        step(copied)
        assert_same(everything(layer), before)
        assert copied.updates.tolist() == [2]


@pytest.mark.parametrize("first_rows", [6, 0])
def test_a_weight_that_moves_between_forward_and_backward_is_refused(first_rows: int) -> None:
    layer = linear(7, 5)
    step(layer, 0, first_rows)
    y = layer(rows(4, 7))
    layer.weight.data = layer.weight.detach().clone()
    before = everything(layer)
    with pytest.raises(ValueError, match="backward: weight must stay where it was in the forward"):
        y.sum().backward()
    assert_same(everything(layer), before)


def test_a_gradient_in_the_memory_of_a_weight_is_refused() -> None:
    layer = linear(7, 7)
    step(layer)
    y, before = layer(rows(7, 7)), everything(layer)
    with pytest.raises(ValueError, match="share no memory"):
        y.backward(layer.weight.detach())
    assert_same(everything(layer), before)


def test_a_forced_backend_runs_in_its_context(monkeypatch) -> None:
    layer, calls = linear(7, 5), []
    step(layer)
    with nk.use_backend("reference"):
        from noprop_kernels.backends.reference import backend as reference

        run = reference.forward
        monkeypatch.setattr(reference, "forward", lambda call: (calls.append(call), run(call)))
        step(layer)
    step(layer)
    assert len(calls) == 1 and layer.updates.tolist() == [3]


def test_a_weight_that_another_layer_took_is_refused() -> None:
    layer, other = linear(7, 7), linear(7, 7)
    step(layer)
    step(other)
    weight = layer.weight
    layer.weight = nn.Parameter(rows(7, 7))
    other.weight = weight  # handed on, before a forward of the layer saw its new one
    step(other)
    layer.weight = weight
    for _ in range(2):
        with pytest.raises(RuntimeError, match="weight must belong to one layer"):
            step(layer)
    step(other)
    assert other.updates.tolist() == [3]


def test_the_old_graph_of_a_layer_is_seen_beside_the_new_one() -> None:
    layer, x = linear(7, 7), rows(4, 7)
    step(layer)
    with pytest.raises(RuntimeError, match="must be used once in one graph"):
        layer(layer(x)).sum().backward()
    layer(x).sum().backward()
    assert layer.updates.tolist() == [2]
