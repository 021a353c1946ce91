"""Every number of the public calls: integers of any kind, no bools, and in range."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import noprop_kernels as nk
from noprop_kernels import functional
from support.blocks import GOAL, B, D, M, T, batch, data, indices, make

X, Y = batch()
ROWS = indices(2, B)
INTEGERS: dict[str, Callable[[Any], Any]] = {
    "blocks": lambda value: make().train_step(X, Y, blocks=value),
    "blocks, several": lambda value: make().gradients(X, Y, blocks=[value]),
    "held": lambda value: make(held=[value]),
    "seed": lambda value: make(seed=value),
    "blocks_per_launch": lambda value: make(blocks_per_launch=value),
    "step": lambda value: make().gradients(X, Y, step=value),
    "rows": lambda value: make().gradients(X, Y, rows=value),
    "first_row of gradients": lambda value: make().gradients(X, Y, first_row=value),
    "first_row of add_noise": lambda value: make().add_noise(Y, first_row=value),
    "first_row of predict": lambda value: make().predict(X, first_row=value),
    "samples": lambda value: make().predict(X, samples=value),
    "seed of predict": lambda value: make().predict(X, seed=value),
    "block": lambda value: make().block(value),
    "t of the head": lambda value: nk.OutputHead(D, M, goal=GOAL).train_step(Y, value),
    "D of the head": lambda value: nk.OutputHead(value, M, goal=GOAL, embedding=torch.ones(M, 1)),
    "features": lambda value: nk.Dense("x", value),
    "width": lambda value: nk.Plan({"x": (value,), "z": (1,)}, {"logits": nk.Dense(("x", "z"), 1)}),
    "hidden": lambda value: nk.plans.mlp(2, 2, 2, hidden=value),
    "T": lambda value: nk.NoiseSchedule.cosine(value),
    "draw": lambda value: noise_at(draw=value),
    "block of add_noise": lambda value: noise_at(block=value),
    "first_row of functional.add_noise": lambda value: noise_at(first_row=value),
    "seed of functional.add_noise": lambda value: noise_at(seed=value),
    "num_classes": lambda value: noise_at(num_classes=value + 4 if type(value) is int else value),
}


def noise_at(**options: Any) -> Any:
    return functional.add_noise(Y, 0.5, 0.5, **{"seed": 0, "num_classes": M, **options})


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True), 1.0, "1", math.nan, 1j])
@pytest.mark.parametrize("call", INTEGERS.values(), ids=INTEGERS)
def test_no_integer(call: Callable[[Any], Any], value: object) -> None:
    with pytest.raises(ValueError, match="must"):
        call(value)


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32])
@pytest.mark.parametrize("call", INTEGERS.values(), ids=INTEGERS)
def test_integers_of_numpy(call: Callable[[Any], Any], kind: type) -> None:
    call(kind(M) if call is INTEGERS["num_classes"] else kind(1))


@pytest.mark.parametrize("value", [2**64, -(2**64), 10**400], ids=["2^64", "-2^64", "10^400"])
@pytest.mark.parametrize("call", INTEGERS.values(), ids=INTEGERS)
def test_integers_beyond_every_range(call: Callable[[Any], Any], value: int) -> None:
    with pytest.raises(ValueError, match="must"):
        call(value)


def test_blocks_have_addresses_of_their_own() -> None:
    most = nk.NoiseSchedule.cosine(T=65_533)
    assert most.T == 65_533
    with pytest.raises(ValueError, match="T must be an integer of at most 65533, got 65534"):
        nk.NoiseSchedule.cosine(T=65_534)
    with pytest.raises(ValueError, match="T must be at most 65533"):
        nk.NoiseSchedule(torch.linspace(0, 0.9, 65_535, dtype=torch.float64))
    with pytest.raises(ValueError, match="block must be an integer of at most 65535"):
        noise_at(block=65_536)


@pytest.mark.parametrize("first_row", [2**32 - B + 1, 2**32])
def test_rows_have_addresses_of_their_own(first_row: int) -> None:
    blocks = make()
    for call in (blocks.gradients, blocks.add_noise, blocks.predict):
        arguments = {"gradients": (X, Y), "add_noise": (Y,), "predict": (X,)}[call.__name__]
        with pytest.raises(ValueError, match="first_row must be an integer of at most"):
            call(*arguments, first_row=first_row)
        call(*arguments, first_row=2**32 - B)


RATES = [math.nan, math.inf, -1e-3, 1e39, 10**400, True, "x", None.__class__, 1j, [1e-3, -1.0, 0.0]]


@pytest.mark.parametrize("lr", RATES, ids=repr)
def test_rates(lr: Any) -> None:
    blocks = make()
    weight, moments = torch.ones(M, D), {}
    for call in (
        lambda: blocks.train_step(X, Y, lr=lr),
        lambda: blocks.train_steps(*data(), ROWS, lr=lr),
        lambda: blocks.update(blocks.gradients(X, Y), lr=lr),
        lambda: nk.SGD(lr=lr),
        lambda: nk.AdamW(weight_decay=lr),
        lambda: functional.dense_update_(
            X[:, :D], torch.ones(B, M), weight, optimizer=nk.SGD(), state=moments, lr=lr
        ),
    ):
        with pytest.raises(ValueError, match="must"):
            call()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, True, "x", 10**400, 1e-50])
def test_numbers_of_optimizers_norms_and_goals(value: Any) -> None:
    for call in (
        lambda: nk.AdamW(eps=value),
        lambda: nk.BatchNorm(eps=value),
        lambda: nk.DT(nk.NoiseSchedule.cosine(T), eta=value) if value != 1e-50 else nk.SGD(lr="x"),
        lambda: nk.AdamW(betas=(value, 2.0)),
        lambda: nk.BatchNorm(momentum=value) if value not in (True, 1e-50) else nk.SGD(lr="x"),
        lambda: nk.SGD(momentum=value) if value != 1e-50 else nk.SGD(lr="x"),
    ):
        with pytest.raises(ValueError, match="must"):
            call()


def test_plans_of_other_kinds() -> None:
    dense = nk.Dense("z", 2)
    for call in (
        lambda: nk.Dense(None, 2),
        lambda: nk.Dense((1, 2), 2),
        lambda: nk.Dense("z", 2, norm=True),
        lambda: nk.Dense("z", 2, add=3),
        lambda: nk.Dense(("x", "z") * 65, 2),
        lambda: nk.Plan(["z"], {"a": dense}),
        lambda: nk.Plan({"z": (2,)}, {"a": "dense"}),
        lambda: nk.Plan({"z": 2}, {"a": dense}),
        lambda: nk.Plan({"z": (2,)}, {1: dense}),
        lambda: nk.DT("cosine"),
        lambda: nk.NoiseSchedule("cosine"),
        lambda: nk.NoiseSchedule.cosine(3, s=math.nan),
    ):
        with pytest.raises(ValueError, match="must|layer"):
            call()
    assert len(nk.Dense(("x", "z") * 64, 2).sources) == 128
