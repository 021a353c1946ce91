"""Steps of the CUDA backend on the host: plans and sizes that its stages and tiles care about."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import TrainCall
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD, Adam, AdamW
from noprop_kernels.plan import ACTIVATION_NAMES, Dense, Plan
from support.calls import PLANS, clone_call, make_train_call
from support.compare import assert_calls_match, run_three
from support.tables import random_plan

pytestmark = pytest.mark.cuda_host


def compare(kernels: ModuleType, call: TrainCall, terms: int) -> None:
    assert_calls_match(*run_three(kernels, "train", call), terms)


OPTIMIZERS = {
    "sgd": SGD(lr=0.05, weight_decay=0.1),
    "nesterov": SGD(lr=0.05, momentum=0.9, nesterov=True),
    "adam": Adam(lr=0.01, weight_decay=0.1),
    "adamw": AdamW(lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_over_steps(kernels: ModuleType, optimizer: str) -> None:
    """Moments in shared memory from step to step, weights through memory."""
    call = make_train_call(PLANS["mlp"](9, 5, 6), 3, 2, 9, 4, optimizer=OPTIMIZERS[optimizer])
    compare(kernels, call, terms=400)


@pytest.mark.parametrize("head", ["softmax", "linear", "cross_entropy"])
@pytest.mark.parametrize("B, F, D, M", [(1, 1, 1, 1), (17, 113, 7, 10), (65, 40, 33, 70)])
def test_odd_sizes(kernels: ModuleType, B: int, F: int, D: int, M: int, head: str) -> None:
    flow = 1.0 if head == "linear" else 0.0
    options = {"head": head, "flow": flow, "extras": True, "per_row": True}
    call = make_train_call(PLANS["mlp"](F, D, M), 2, 1, B, 1, optimizer=AdamW(), **options)
    compare(kernels, call, terms=B + F + 64)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
@pytest.mark.parametrize("plan", ["one_layer", "added_input", "activations"])
def test_rounded_operands_of_a_step(kernels: ModuleType, plan: str, precision: str) -> None:
    """To a unit of the operands; the loss and what is not a product keep float32's digits."""
    call = make_train_call(PLANS[plan](33, 5, 6), 2, 1, 40, 1, grads=True)
    call.slices.precision = precision
    exact = clone_call(call, torch.float64)
    kernels.train(call)
    reference.train(exact)
    unit = 2**-8 if precision == "bfloat16" else 2**-11
    torch.testing.assert_close(call.out.loss.double(), exact.out.loss, rtol=unit, atol=0)
    for name, value in call.out.grads.items():
        truth = exact.out.grads[name]
        error = (value - truth).abs().max()
        assert error <= 2 * unit * truth.abs().max() + 1e-7, f"{name}: {error:.1e}"


def test_slices_with_their_own_inputs_and_rows(kernels: ModuleType) -> None:
    """An input for each slice and step; more slices than the two groups."""
    call = make_train_call(PLANS["two_inputs"](9, 5, 6), 6, 5, 7, 2, optimizer=SGD(lr=0.1))
    compare(kernels, call, terms=200)


def test_the_paper_s_network(kernels: ModuleType) -> None:
    """Seven layers, six norms, a skip: as many stages as any plan of the library has."""
    call = make_train_call(PLANS["paper_dt"](9, 5, 6), 2, 1, 9, 1, optimizer=AdamW(), extras=True)
    compare(kernels, call, terms=400)


def read_often(times: int, activation: str | None) -> Plan:
    """ "h" has so many readers and an `add`; "x" and "z" have as many."""
    layers = {"h": Dense(("x", "z"), 4, activation=activation)}
    for i in range(times):
        sources = ("h", "x", "z") if i == 0 else ("h", f"r{i - 1}", "x", "z")
        layers[f"r{i}"] = Dense(sources, 4, add="h" if i == 1 else None)
    return Plan({"x": (3,), "z": (5,)}, layers)


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("times", [4, 7, 8])
def test_gradients_of_many_readers(kernels: ModuleType, times: int, activation: str | None) -> None:
    options = {"extras": True, "one_hot": False}
    call = make_train_call(read_often(times, activation), 2, 1, 9, 1, optimizer=AdamW(), **options)
    compare(kernels, call, terms=400)


MODES = (
    {"optimizer": AdamW(), "extras": True, "flow": 1.0, "head": "linear", "per_row": True},
    {"optimizer": SGD(lr=0.01, momentum=0.9), "gather": True},
    {"grads": True, "head": "cross_entropy"},
)


def has_gradients(plan: Plan) -> bool:
    """Whether no gradient is zero but for rounding, which errors could not be measured by: those
    behind a norm of the logits are, and a norm takes back the scale of its layer's only weight.
    """
    normed = {name for name, layer in plan.layers.items() if layer.norm is not None}
    return "logits" not in normed and all(plan.fan_in(name) > 1 for name in normed)


SEEDS = [seed for seed in range(60) if has_gradients(random_plan(seed))]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_plans(kernels: ModuleType, seed: int) -> None:
    plan, B = random_plan(seed), [5, 19, 40, 130][seed % 4]
    call = make_train_call(plan, 3, 2, B, 1, seed=seed, **MODES[seed // 4 % 3])
    compare(kernels, call, terms=400)
