"""The whole step: everything it writes, against the reference."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import TrainCall
from noprop_kernels.backends.gpu import checks, errors
from noprop_kernels.backends.reference import backend as reference
from noprop_kernels.optimizers import SGD, Adam, AdamW, Optimizer
from support.calls import PLANS, clone_call, make_train_call
from support.compare import assert_calls_match, results, run_three
from support.kernels import COMPILED, CPU, CUDA, EVERY, GPUS, TRITON, on, with_precision

VARIANTS = {
    "dt": {"plan": "mlp", "optimizer": AdamW(weight_decay=0.1), "B": 7},
    "one_hot": {"plan": "branches", "one_hot": True, "optimizer": Adam(weight_decay=0.1)},
    "ct": {"plan": "two_inputs", "per_row": True, "optimizer": SGD(momentum=0.9)},
    "fm": {
        "plan": "mlp", "head": "linear", "flow": 1.0, "sigma": 0.1, "per_row": True,
        "optimizer": AdamW(), "B": 40,
    },
    "cross_entropy": {"plan": "branches", "head": "cross_entropy", "optimizer": AdamW()},
    "gather": {"plan": "two_inputs", "gather": True, "optimizer": AdamW(), "K": 2},
    "gather_uint8": {"plan": "mlp", "gather": True, "data_dtype": torch.uint8, "grads": True},
    "gather_bfloat16": {
        "plan": "one_layer", "gather": True, "data_dtype": torch.bfloat16, "optimizer": AdamW(),
    },
    "one row": {"plan": "one_layer", "optimizer": AdamW(), "B": 1, "extras": True},
    "two chunks": {"plan": "branches", "grads": True, "B": 130, "n": 1},
    "extras": {"plan": "branches", "extras": True, "optimizer": AdamW()},
    "extras, fm": {
        "plan": "two_inputs", "extras": True, "optimizer": AdamW(), "head": "linear", "flow": 1.0,
        "per_row": True, "one_hot": True,
    },
    "extras, cross entropy": {
        "plan": "one_layer", "extras": True, "optimizer": AdamW(), "head": "cross_entropy",
        "B": 130, "n": 1,
    },
    "z_features": {
        "plan": "mlp", "z_features": True, "D": 4, "extras": True, "optimizer": AdamW(),
    },
    "z_features, flow": {
        "plan": "one_layer", "z_features": True, "D": 3, "flow": 1.0, "optimizer": AdamW(),
    },
    "grads": {"plan": "branches", "grads": True, "first_row": 11, "rows": 300},
    "row weights": {
        "plan": "mlp", "row_weight": True, "gather": True, "optimizer": AdamW(), "K": 2, "B": 7,
    },
    "row weights, cross entropy": {
        "plan": "one_layer", "row_weight": True, "head": "cross_entropy", "grads": True, "n": 1,
    },
}  # fmt: skip


def make(variant: dict) -> TrainCall:
    options = dict(variant)
    plan, n, B, K = (
        options.pop(key, other) for key, other in (("plan", 0), ("n", 2), ("B", 17), ("K", 1))
    )
    D, M = 5, 5 if options.get("one_hot") else 6
    return make_train_call(PLANS[plan](9, D, M), n + 1, n, B, K, seed=B, **options)


@pytest.mark.parametrize("variant", VARIANTS)
def test_step(kernels: ModuleType, variant: str) -> None:
    call = make(VARIANTS[variant])
    assert_calls_match(*run_three(kernels, "train", call), terms=call.B + 64)


@with_precision(
    (CPU, "bfloat16"), *((gpu, p) for gpu in (TRITON, CUDA) for p in ("tf32", "bfloat16"))
)
def test_precisions_in_units_of_what_they_keep(kernels: ModuleType, precision: str) -> None:
    """A hidden value on a rounding's border falls to either side: gradients to 2 of its units."""
    call = make({"plan": "mlp", "grads": True, "B": 40})
    call.slices.precision = precision
    exact, full = clone_call(call, torch.float64), clone_call(call)
    full.slices.precision = "float32"
    kernels.train(call)
    reference.train(exact)
    reference.train(full)
    unit = 2**-8 if precision == "bfloat16" else 2**-11
    for name, value in call.out.grads.items():
        scale = exact.out.grads[name].abs().max()
        error = (value - exact.out.grads[name]).abs().max() / scale
        assert error <= 2 * unit, f"{name}: {error:.1e}"
        # the rounding is there: float32 is further away
        if name == "hx.weight":
            assert (full.out.grads[name] - exact.out.grads[name]).abs().max() / scale > error


def check_steps(kernels: ModuleType, optimizer: Optimizer) -> None:
    call = make_train_call(PLANS["branches"](9, 5, 6), 3, 2, 9, 3, optimizer=optimizer, gather=True)
    assert_calls_match(*run_three(kernels, "train", call), terms=400)


def test_several_steps(kernels: ModuleType) -> None:
    check_steps(kernels, SGD(momentum=0.9))


@on(*COMPILED)
@pytest.mark.parametrize("optimizer", [Adam(weight_decay=0.1), AdamW(weight_decay=0.1)])
def test_several_steps_of_adam(kernels: ModuleType, optimizer: Optimizer) -> None:
    check_steps(kernels, optimizer)


STATE = ("params", "m[", "v[", "stats")


@on(*EVERY)
def test_slices_that_were_not_asked_for_stay(kernels: ModuleType) -> None:
    call = make_train_call(PLANS["branches"](9, 5, 6), 4, 2, 9, 1, optimizer=AdamW())
    before = clone_call(call)
    kernels.train(call)
    chosen = call.slices.index.tolist()
    others = [i for i in range(4) if i not in chosen]
    for (name, after), (_, old) in zip(results(call), results(before), strict=True):
        if name.startswith(STATE):
            assert torch.equal(after[others], old[others]), name
            assert not torch.equal(after[chosen], old[chosen]) or name.endswith("left.bias]"), name


@on(*EVERY)
def test_a_loss_that_is_not_finite_leaves_its_slice(kernels: ModuleType) -> None:
    call = make_train_call(PLANS["branches"](9, 5, 6), 2, 2, 9, 2, optimizer=AdamW())
    call.slices.index[:] = torch.arange(2)
    call.slices.params["h.weight"][1, 2, 2] = torch.nan
    before = clone_call(call)
    kernels.train(call)
    assert call.out.applied.tolist() == [[True, False]] * 2
    assert call.out.loss[:, 1].isnan().all() and call.out.loss[:, 0].isfinite().all()
    assert torch.equal(call.slices.updates - before.slices.updates, torch.tensor([2, 0]))
    assert torch.equal(call.slices.draws - before.slices.draws, torch.tensor([2, 2]))
    for (name, after), (_, old) in zip(results(call), results(before), strict=True):
        if name.startswith(STATE):
            assert torch.equal(after[1].nan_to_num(7), old[1].nan_to_num(7)), name


def make_gathering_call() -> TrainCall:
    """Slice 1 alone reads row 3, in step 1 alone."""
    call = make_train_call(PLANS["mlp"](9, 5, 6), 2, 2, 9, 2, optimizer=AdamW(), gather=True)
    indices = call.inputs["x"].indices
    indices[indices == 3] = 4
    indices[1, 1, 4] = 3
    call.y.indices = indices.clone()
    call.inputs["x"].indices = indices
    return call


def spoil_label(value: int) -> Callable[[TrainCall], None]:
    return lambda call: call.y.data.__setitem__(3, value)


def spoil_index(value: int) -> Callable[[TrainCall], None]:
    return lambda call: call.inputs["x"].indices.__setitem__((1, 1, 4), value)


def spoil_input(value: float) -> Callable[[TrainCall], None]:
    return lambda call: call.inputs["x"].data.__setitem__((3, 8), value)


CONTENTS = {
    "label": (spoil_label(6), r"labels must be in 0\.\.5, got 6 at row \d"),
    "negative label": (spoil_label(-1), r"labels must be in 0\.\.5, got -1 at row \d"),
    "index": (spoil_index(10**6), r"indices must name rows of the data, got 1000000 at \d+"),
    "negative index": (spoil_index(-1), r"indices must name rows of the data, got -1 at \d+"),
    "nan": (spoil_input(torch.nan), "x must be finite, got NaN or infinity"),
    "inf": (spoil_input(-torch.inf), "x must be finite, got NaN or infinity"),
}


@on(*EVERY)
@pytest.mark.parametrize("case", CONTENTS)
def test_bad_contents_are_found_before_any_write(kernels: ModuleType, case: str) -> None:
    call = make_gathering_call()
    spoil, text = CONTENTS[case]
    spoil(call)
    before = clone_call(call)
    with pytest.raises(ValueError, match=f"train: {text}"):
        kernels.train(call)
    assert torch.equal(call.slices.draws, before.slices.draws)
    for (name, after), (_, old) in zip(results(call), results(before), strict=True):
        assert torch.equal(after.nan_to_num(7), old.nan_to_num(7)), name


@on(*EVERY)
def test_a_bad_row_that_no_step_reads_does_no_harm(kernels: ModuleType) -> None:
    call = make_gathering_call()
    call.inputs["x"].indices[1, 1, 4] = 4
    call.inputs["x"].data[3] = torch.nan
    kernels.train(call)
    assert call.out.applied.all()


FLAGS = {  # the errors that kernels flag where nothing waits
    "labels must be in 0..M-1": spoil_label(6),
    "indices must name rows": spoil_index(-1),
    "inputs must be finite": spoil_input(torch.inf),
}


@on(*GPUS)
@pytest.mark.parametrize("text", FLAGS)
def test_where_nothing_waits_bad_contents_skip_the_step(
    kernels: ModuleType, text: str, monkeypatch
) -> None:
    """As on a GPU: flags of the kernels, an error at the next call."""
    call, good = make_gathering_call(), make_gathering_call()
    FLAGS[text](call)
    monkeypatch.setattr(kernels, "check_train", lambda call: None)
    monkeypatch.setattr(checks, "contents_are_checked", lambda device: False)
    kernels.train(good)
    kernels.train(call)
    assert good.out.applied.all()
    assert call.out.applied.tolist() == [[True, True], [True, False]]
    for name, value in call.slices.params.items():
        first = call.slices.index[0]
        assert torch.equal(value[first], good.slices.params[name][first]), name
        assert value.isfinite().all()
    with pytest.raises(ValueError, match=f"train_steps or gradients: in an earlier call {text}"):
        kernels.train(call)
    errors.raise_found(call.slices.updates)  # once
    errors.raise_found(good.slices.updates)


@on(*EVERY)
@pytest.mark.parametrize("B, rows", [(0, 1), (1, 2)])
def test_too_few_rows(kernels: ModuleType, B: int, rows: int) -> None:
    call = make_train_call(PLANS["branches"](9, 5, 6), 2, 1, 2, 1, optimizer=AdamW())
    call.B = B
    with pytest.raises(ValueError, match=f"at least {rows} row"):
        kernels.train(call)
