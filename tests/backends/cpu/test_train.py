"""The whole step on the CPU kernels: every plan with every kind of call, threads, long tasks."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import TrainCall
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.backends.cpu import extension
from noprop_kernels.optimizers import SGD, Adam, AdamW, Optimizer
from noprop_kernels.plan import Dense, Plan
from support.calls import PLANS, clone_call, make_train_call, one_slice, one_step
from support.compare import assert_calls_match, results, run_three

VARIANTS = {
    "dt": {},
    "one_hot": {"one_hot": True},
    "ct": {"per_row": True},
    "fm": {"head": "linear", "flow": 1.0, "sigma": 0.1, "per_row": True},
    "cross_entropy": {"head": "cross_entropy", "per_row": True},
    "gather": {"gather": True},
    "gather_uint8": {"gather": True, "data_dtype": torch.uint8},
    "gather_bfloat16": {"gather": True, "data_dtype": torch.bfloat16},
    "z_features": {"z_features": True, "D": 4},
    "micro_batch": {"first_row": 11, "rows": 300},
}
OPTIMIZERS: list[Optimizer] = [SGD(momentum=0.9), Adam(weight_decay=0.1), AdamW(weight_decay=0.1)]


# every plan with every variant, and either batch with each of both
STEPS = [
    (plan, variant, (40, 130)[(p + v) % 2])
    for p, plan in enumerate(PLANS)
    for v, variant in enumerate(VARIANTS)
]


@pytest.mark.parametrize("plan, variant, B", STEPS)
def test_step(kernels: ModuleType, plan: str, variant: str, B: int) -> None:
    kwargs = VARIANTS[variant]
    D, M = 5, 5 if kwargs.get("one_hot") else 6
    for mode in ("update", "grads", "extras"):
        call = make_train_call(
            PLANS[plan](17, D, M), 4, 3, B, 1,
            optimizer=None if mode == "grads" else OPTIMIZERS[B % 3],
            extras=mode == "extras" and not kwargs.get("gather", False),
            grads=mode == "grads",
            # with B for a seed a unit of paper_dt is so near its ReLU's 0 that rounding decides
            seed=B + 1, **kwargs,
        )  # fmt: skip
        assert_calls_match(*run_three(kernels, "train", call), terms=B + 64)


@pytest.mark.parametrize("B", [1, 2, 7, 1023])
@pytest.mark.parametrize("plan", ["mlp", "two_inputs", "one_layer"])
def test_odd_batches(kernels: ModuleType, plan: str, B: int) -> None:
    call = make_train_call(PLANS[plan](17, 5, 6), 3, 2, B, 1, optimizer=AdamW(), extras=True)
    assert_calls_match(*run_three(kernels, "train", call), terms=B + 64)


@pytest.mark.parametrize("grads", [True, False])
@pytest.mark.parametrize("F", [1021, 1600])
def test_rows_of_a_weight_longer_than_their_buffer(
    kernels: ModuleType, F: int, grads: bool
) -> None:
    """Two sources, the second from a column that begins no vector, and fewer rows than a tile."""
    plan = Plan(
        {"x": (F,), "z": (5,)},
        {"h": Dense(("x", "z"), 15, activation="relu"), "logits": Dense("h", 6)},
    )
    optimizer = None if grads else AdamW(weight_decay=0.1)
    call = make_train_call(plan, 2, 2, 9, 1, optimizer=optimizer, grads=grads)
    assert_calls_match(*run_three(kernels, "train", call), terms=F)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_a_bit(kernels: ModuleType, threads: int, monkeypatch) -> None:
    call = make_train_call(PLANS["paper_dt"](17, 5, 6), 5, 5, 70, 3, optimizer=AdamW())
    other = clone_call(call)
    monkeypatch.setattr(extension, "threads", lambda: threads)
    kernels.train(call)
    monkeypatch.setattr(extension, "threads", lambda: 1)
    kernels.train(other)
    for (name, got), (_, expected) in zip(results(call), results(other), strict=True):
        assert torch.equal(got, expected), name


def test_units_that_died_do_not_slow_a_step(kernels: ModuleType) -> None:
    """Moments never enter the subnormal range, where they would stay, three times as slow."""
    call = make_train_call(PLANS["mlp"](17, 5, 6), 2, 2, 9, 1, optimizer=AdamW(weight_decay=0.0))
    for name in ("weight", "bias"):
        call.slices.params[f"hx.{name}"].fill_(-1.0)
        call.slices.m[f"hx.{name}"].fill_(1.2e-38)
    call.inputs["x"] = call.inputs["x"].abs()  # so that no unit of hx is ever on
    kernels.train(call)
    for name in ("weight", "bias"):
        m = call.slices.m[f"hx.{name}"].abs()
        assert ((m == 0) | (m >= torch.finfo(torch.float32).tiny)).all()


def long_task_call() -> TrainCall:
    """Rows of 2.7 MB a step in both orders: those of seven steps are never packed at once."""
    plan = PLANS["mlp"](1201, 5, 6)
    return make_train_call(plan, 3, 3, 130, 7, optimizer=AdamW(), gather=True, seed=3)


def test_the_length_of_a_task_does_not_change_a_bit(kernels: ModuleType) -> None:
    call = long_task_call()
    step_by_step, alone = clone_call(call), clone_call(call)
    kernels.train(call)
    for k in range(call.K):
        kernels.train(one_step(step_by_step, k, slice(None)))
    for i in range(3):
        for k in range(call.K):
            kernels.train(one_slice(alone, i, k))
    for group in ("params", "m", "v"):
        for name, value in getattr(call.slices, group).items():
            assert torch.equal(value, getattr(step_by_step.slices, group)[name]), name
            assert torch.equal(value, getattr(alone.slices, group)[name]), name


def test_a_bad_row_of_a_later_task_is_found_before_any_write(kernels: ModuleType) -> None:
    call = long_task_call()
    x = call.inputs["x"]
    x.indices[:] = x.indices.clamp(min=1)
    x.indices[6, :, 129], x.data[0, 400] = 0, torch.nan
    before = clone_call(call)
    with pytest.raises(ValueError, match="x must be finite"):
        kernels.train(call)
    for (name, after), (_, old) in zip(results(call), results(before), strict=True):
        assert torch.equal(after.nan_to_num(7), old.nan_to_num(7)), name


def test_rows_are_packed_for_as_many_steps_as_a_cache_holds() -> None:
    plan = PLANS["mlp"](784, 5, 6)
    step = cpu.packed_bytes(plan, 3, 128, 1)
    assert step == 4 * 2 * 784 * 128  # in both orders
    assert cpu.packed_bytes(plan, 3, 128, 2) == 2 * step
    most = cpu.packed_bytes(plan, 3, 128, 1 << 30)
    assert most % step == 0 and (4 << 20) - step < most <= 16 << 20
    assert cpu.packed_bytes(plan, 1, 128, 2) == 0  # a slice alone gathers its own
