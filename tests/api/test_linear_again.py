"""A layer that has trained finds a change of its tensors or options as a new one does."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import noprop_kernels as nk
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
