"""The chain of blocks, for replicas and samples."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.chain_calls import PredictCall
from support.calls import PLANS, clone_call, nan
from support.chains import make_predict_call
from support.compare import assert_matches, run_three
from support.kernels import CPU, EVERY, on

FIELDS = ("logits", "u_hat", "z")


def check(kernels: ModuleType, call: PredictCall) -> None:
    made = run_three(kernels, "predict", call)
    for name in FIELDS:
        assert_matches(*(getattr(call, name) for call in made), terms=200, name=name)


@pytest.mark.parametrize(
    "plan, options",
    [
        ("mlp", {"keep_all": True}),
        ("branches", {"one_hot": True, "add_noise": False}),
        ("two_inputs", {"head": "linear", "first_row": 5}),
    ],
)
def test_predict(kernels: ModuleType, plan: str, options: dict) -> None:
    M = 5 if options.get("one_hot") else 6
    check(kernels, make_predict_call(PLANS[plan](9, 5, M), 2, 2, 9, 2, **options))


@on(CPU)
@pytest.mark.parametrize("add_noise", [True, False])
@pytest.mark.parametrize("keep_all", [True, False])
@pytest.mark.parametrize(
    "head, one_hot", [("softmax", False), ("softmax", True), ("linear", False)]
)
@pytest.mark.parametrize("plan", ["mlp", "paper_dt", "two_inputs"])
def test_more_rows(
    kernels: ModuleType, plan: str, head: str, one_hot: bool, keep_all: bool, add_noise: bool
) -> None:
    options = {"head": head, "one_hot": one_hot, "keep_all": keep_all, "add_noise": add_noise}
    made = PLANS[plan](17, 5, 5 if one_hot else 6)
    check(kernels, make_predict_call(made, 2, 3, 150, 2, **options))


@on(CPU)
@pytest.mark.parametrize("add_noise", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("plan", ["mlp", "two_inputs"])
def test_a_sampler_of_one_block(
    kernels: ModuleType, plan: str, stages: int, add_noise: bool
) -> None:
    options = {"stages": stages, "add_noise": add_noise, "keep_all": True, "head": "linear"}
    check(kernels, make_predict_call(PLANS[plan](9, 5, 6), 2, 1, 20, 2, **options))


@on(*EVERY)
def test_one_block_keeps_its_only_result(kernels: ModuleType) -> None:
    last, kept = (
        make_predict_call(PLANS["mlp"](17, 5, 6), 2, 1, 9, 2, keep_all=keep_all)
        for keep_all in (False, True)
    )
    kernels.predict(last)
    kernels.predict(kept)
    assert last.z.isfinite().all() and torch.equal(last.z, kept.z)


def check_parts(kernels: ModuleType, whole: PredictCall, parts: tuple) -> None:
    kernels.predict(whole)
    for first, rows in parts:
        part = clone_call(whole)
        part.first_row = first
        part.inputs = {"x": whole.inputs["x"][:, first : first + rows].contiguous()}
        for name in FIELDS:
            _, S, R, _, width = getattr(whole, name).shape
            setattr(part, name, nan(1, S, R, rows, width))
        kernels.predict(part)
        for name in FIELDS:
            expected = getattr(whole, name)[:, :, :, first : first + rows]
            assert torch.equal(getattr(part, name), expected), name


def test_parts_of_a_batch_give_the_same_bits(kernels: ModuleType) -> None:
    check_parts(kernels, make_predict_call(PLANS["mlp"](9, 5, 6), 1, 2, 40, 1), ((5, 2),))


@on(CPU)
def test_parts_of_a_large_batch_give_the_same_bits(kernels: ModuleType) -> None:
    whole = make_predict_call(PLANS["mlp"](17, 5, 6), 2, 3, 300, 2)
    check_parts(kernels, whole, ((0, 1), (5, 100), (128, 172)))
