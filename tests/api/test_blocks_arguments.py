"""Bad input: the argument is named, and nothing has changed."""

import dataclasses
import math

import pytest
import torch

import noprop_kernels as nk
from support.blocks import (
    GOAL,
    PLANS,
    B,
    D,
    F,
    M,
    T,
    assert_same,
    batch,
    data,
    indices,
    make,
    snapshot,
)

X, Y = batch()
NAN = X.clone()
NAN[3, 2] = math.nan
ROWS = indices(2, B)
FAR = ROWS.clone()
FAR[1, 0] = 20
NEGATIVE = ROWS.clone()
NEGATIVE[0, 0] = -1
LARGE = Y.clone()
LARGE[-1] = M

STEP = {
    "x of another width": ({"x": X[:, :-1]}, r"x must have shape \(any, 7\), got \(6, 6\)"),
    "x of four dimensions": (
        {"x": X.view(B, 1, 1, F)},
        r"x must have shape \(B, 7\) or \(3, B, 7\)",
    ),
    "x of other slices": ({"x": X.expand(2, B, F)}, r"x must have shape \(3, any, 7\), got \(2, 6"),
    "x in float64": ({"x": X.double()}, "x must be torch.float32, got torch.float64"),
    "x sparse": ({"x": X.to_sparse()}, "x must be dense, got torch.sparse_coo"),
    "x of oneDNN": ({"x": X.to_mkldnn()}, "x must be dense, got torch._mkldnn"),
    "y sparse": ({"y": Y.to_sparse()}, "y must be dense, got torch.sparse_coo"),
    "x no tensor": ({"x": X.tolist()}, "x must be a tensor, got list"),
    "x on another device": ({"x": X.to("meta")}, "x must be on cpu, got meta"),
    "x by another name": ({"x": {"image": X}}, r"x must be tensors by the names \['x'\]"),
    "x not a number": ({"x": NAN}, "x must be finite"),
    "y of other rows": ({"y": Y[1:]}, r"y must have shape \(6,\), got \(5,\)"),
    "y in int32": ({"y": Y.int()}, "y must be torch.int64, got torch.int32"),
    "y out of range": ({"y": LARGE}, r"train_step: labels must be in 0\.\.4, got 5 at row \d"),
    "y negative": ({"y": Y - M}, r"train_step: labels must be in 0\.\.4, got -\d at row \d"),
    "block not there": ({"blocks": [1, 4]}, r"blocks must be distinct t in 1..3.* got \[1, 4\]"),
    "block zero": ({"blocks": 0}, "blocks must be distinct t in 1..3"),
    "block twice": ({"blocks": [2, 2]}, "blocks must be distinct t in 1..3"),
    "no block": ({"blocks": []}, "blocks must be distinct t in 1..3, at least one"),
    "lr negative": ({"lr": -1e-3}, "lr must be finite and at least 0, got -0.001"),
    "lr not a number": ({"lr": math.nan}, "lr must be finite and at least 0"),
    "lr of other slices": (
        {"lr": torch.ones(2)},
        r"lr must be a number or have shape \(1,\) or \(1, 3",
    ),
    "z of other slices": (
        {"z": torch.zeros(2, B, D)},
        r"z must have shape \(3, 6, 5\), got \(2, 6",
    ),
}
STEPS = {
    "X of another width": ({"X": data()[0][:, 1:]}, r"X must have shape \(any, 7\), got \(20, 6\)"),
    "X not flat": (
        {"X": data()[0].view(20, F, 1)},
        r"X must have shape \(any, 7\), got \(20, 7, 1\)",
    ),
    "X in int32": (
        {"X": data()[0].int()},
        "X must be torch.float32 or torch.bfloat16 or torch.uint8",
    ),
    "X not a number": ({"X": torch.full((20, F), math.nan)}, "x must be finite"),
    "Y of other rows": ({"Y": data()[1][1:]}, "X and Y must have the same rows in every input"),
    "Y out of range": ({"Y": data()[1] + M}, r"must (be|lie) in"),
    "indices in int32": ({"indices": ROWS.int()}, "indices must be torch.int64"),
    "indices out of range": ({"indices": FAR}, "indices"),
    "indices negative": ({"indices": NEGATIVE}, "indices"),
    "indices flat": ({"indices": ROWS[0]}, r"indices must have shape \(any, any\), got \(6,\)"),
    "indices of replicas": (
        {"indices": ROWS.expand(2, 2, B)},
        r"indices must have shape \(any, 1, any\), got \(2, 2, 6\)",
    ),
    "no indices": ({"indices": None}, r"X must have shape \(any, any, 7\), got \(20, 7\)"),
    "lr of other steps": (
        {"lr": torch.ones(4)},
        r"lr must be a number or have shape \(2,\) or \(2, 3",
    ),
    "normalize one number": ({"normalize": 0.5}, r"normalize must be \(mean, std\), got 0.5"),
    "normalize of 10^400": ({"normalize": (10**400, 1)}, "must have numbers that float64 can hold"),
    "normalize complex": ({"normalize": (1j, 1)}, "must have numbers that float64 can hold"),
    "normalize texts": ({"normalize": ("0", 1)}, "must have numbers that float64 can hold"),
    "normalize channels": ({"normalize": ([0.1] * 3, 1.0)}, "one per feature of 7, got 3"),
    "normalize std 0": ({"normalize": (0.0, 0.0)}, "normalize must have a std above 0, got 0.0"),
    "normalize by a name": ({"normalize": {"image": (0, 1)}}, "normalize must name inputs"),
}


@pytest.mark.parametrize("options, text", STEP.values(), ids=STEP)
def test_train_step(backend, options, text):
    blocks = make()
    blocks.train_step(X, Y)
    before = snapshot(blocks)
    with pytest.raises(ValueError, match=text):
        blocks.train_step(**({"x": X, "y": Y} | options))
    assert_same(snapshot(blocks), before)


def test_train_step_of_a_nested_tensor(backend):
    # made here: it imports Triton, which at its import finds out whether it is interpreted
    x = torch.nested.nested_tensor([*X], layout=torch.jagged)
    with pytest.raises(ValueError, match="x must be dense, got a nested tensor"):
        make().train_step(x, Y)


@pytest.mark.parametrize("options, text", STEPS.values(), ids=STEPS)
def test_train_steps(backend, options, text):
    blocks = make()
    before = snapshot(blocks)
    arguments = dict(zip(("X", "Y"), data(), strict=True)) | {"indices": ROWS}
    with pytest.raises(ValueError, match=text):
        blocks.train_steps(**(arguments | options))
    assert_same(snapshot(blocks), before)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"x": X[1:]}, r"y must have shape \(5,\), got \(6,\)"),
        ({"y": LARGE}, r"^gradients: labels must be in 0\.\.4, got 5 at row \d"),
        ({"step": -1}, "step must be an integer of at least 0, got -1"),
        ({"rows": 0}, "rows must be an integer of at least 1, got 0"),
        ({"first_row": -2}, "first_row must be an integer of at least 0, got -2"),
    ],
)
def test_gradients(options, text):
    with pytest.raises(ValueError, match=text):
        make().gradients(**({"x": X, "y": Y} | options))


def test_forward_loss_and_noise():
    blocks = make("norm")
    before = snapshot(blocks)
    z = torch.zeros(B, D)
    for call, text in [
        (lambda: blocks(X, z[1:]), "x and z must have the same rows in every input"),
        (lambda: blocks(X, z[:, 1:]), r"z must have shape \(any, 5\), got \(6, 4\)"),
        (lambda: blocks(X[:1], z[:1]), "at least 2 rows in training with batch norm, got 1"),
        (lambda: blocks.loss(X[:1], Y[:1]), "at least 2 rows in training with batch norm, got 1"),
        (lambda: blocks.loss(X[:0], Y[:0]), "at least 2 rows in training with batch norm, got 0"),
        (
            lambda: blocks.loss(X, LARGE),
            r"^loss: labels must be in 0\.\.4, got 5 at row \d",
        ),
        (
            lambda: blocks.add_noise(LARGE),
            r"^add_noise: labels must be in 0\.\.4, got 5 at row \d",
        ),
        (lambda: blocks.add_noise(Y, first_row=-1), "first_row must be an integer of at least 0"),
        (lambda: make("two_inputs")(X, z), r"x must be a dict with \['x', 't'\], got Tensor"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    assert_same(snapshot(blocks), before)
    assert blocks.eval()(X[:1], z[:1]).shape == (T, 1, M)
    assert blocks.add_noise(Y[:0]).shape == (T, 0, D)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_inputs_that_are_not_finite(backend, value):
    """On the CPU they are found at once, wherever a call takes x, and `check` finds nothing."""
    x = X.clone()
    x[-1, -1] = value
    blocks, z = make(), torch.zeros(B, D)
    before = snapshot(blocks)
    own = X.expand(T, B, F).clone()
    own[1, 0, 0] = value
    for op, call in [
        ("predict", lambda: blocks.predict(x)),
        ("forward", lambda: blocks(x, z)),
        ("forward", lambda: blocks(own, z)),
        ("forward", lambda: blocks.loss(x, Y)),
        ("gradients", lambda: blocks.gradients(x, Y)),
    ]:
        with pytest.raises(ValueError, match=f"{op}: x must be finite, got NaN or infinity"):
            call()
    assert_same(snapshot(blocks), before)
    blocks.check()
    nk.check_device()
    nk.check_device("cpu")
    assert blocks(X, torch.full((B, D), value)).shape == (T, B, M)  # z is a result of the caller's


def elsewhere(value: torch.Tensor) -> torch.Tensor:
    return value.to("meta")


Z = torch.zeros(B, D)
DEVICES = {
    "train_step x": ("x", lambda b: b.train_step(elsewhere(X), Y)),
    "train_step y": ("y", lambda b: b.train_step(X, elsewhere(Y))),
    "train_step z": ("z", lambda b: b.train_step(X, Y, z=elsewhere(Z.expand(T, B, D)))),
    "train_steps X": ("X", lambda b: b.train_steps(elsewhere(data()[0]), data()[1], ROWS)),
    "train_steps Y": ("Y", lambda b: b.train_steps(data()[0], elsewhere(data()[1]), ROWS)),
    "train_steps indices": ("indices", lambda b: b.train_steps(*data(), elsewhere(ROWS))),
    "gradients x": ("x", lambda b: b.gradients(elsewhere(X), Y)),
    "gradients y": ("y", lambda b: b.gradients(X, elsewhere(Y))),
    "forward x": ("x", lambda b: b.forward(elsewhere(X), Z)),
    "forward z": ("z", lambda b: b.forward(X, elsewhere(Z))),
    "loss y": ("y", lambda b: b.loss(X, elsewhere(Y))),
    "predict x": ("x", lambda b: b.predict(elsewhere(X))),
    "add_noise y": ("y", lambda b: b.add_noise(elsewhere(Y))),
    "backward_update d_logits": (
        "d_logits",
        lambda b: b.backward_update(b.eval()(X, Z), elsewhere(torch.ones(T, B, M))),
    ),
    "update applied": (
        "applied",
        lambda b: b.update(
            dataclasses.replace(b.gradients(X, Y), applied=elsewhere(torch.ones(T).bool()))
        ),
    ),
    "update stats": (
        "hx.norm.running_mean",
        lambda b: b.update(
            dataclasses.replace(
                b.gradients(X, Y), stats={"hx.norm.running_mean": elsewhere(torch.ones(T, 6))}
            )
        ),
    ),
    "load_state_dict seeds": (
        "seeds",
        lambda b: b.load_state_dict(
            {name: elsewhere(value) for name, value in b.state_dict().items()}, assign=True
        ),
    ),
}


@pytest.mark.parametrize("name, call", DEVICES.values(), ids=DEVICES)
def test_tensors_on_another_device(name, call):
    blocks = make("norm")
    before = snapshot(blocks)
    with pytest.raises(ValueError, match=rf"{name} must be on cpu, got meta"):
        call(blocks)
    assert_same(snapshot(blocks), before)


@pytest.mark.parametrize("call", ["train_step", "train_steps", "update", "backward_update"])
def test_a_plain_module_does_not_update(call):
    blocks = make(optimizer=None)
    logits = blocks(X, torch.zeros(B, D))
    arguments = {
        "train_step": (X, Y),
        "train_steps": (*data(), ROWS),
        "update": (blocks.gradients(X, Y),),
        "backward_update": (logits, torch.ones_like(logits)),
    }
    before = snapshot(blocks)
    with pytest.raises(ValueError, match=f"{call}: optimizer must not be None.*advance"):
        getattr(blocks, call)(*arguments[call])
    assert_same(snapshot(blocks), before)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"plan": "mlp"}, "plan must be a Plan, got str"),
        (
            {"plan": nk.Plan({"z": (D,)}, {"logits": nk.Dense("z", M)})},
            "plan must have an input beside",
        ),
        ({"goal": nk.NoiseSchedule.cosine(3)}, "goal must be a DT, CT or FM, got NoiseSchedule"),
        (
            {"embedding": torch.zeros(M + 1, D)},
            r"embedding must have shape \(5, any\), got \(6, 5\)",
        ),
        ({"embedding": torch.zeros(M, D).double()}, "embedding must be torch.float32"),
        ({"embedding": torch.zeros(M, D, device="meta")}, "embedding must be on cpu, got meta"),
        ({"optimizer": torch.optim.AdamW}, "optimizer must be SGD, Adam or AdamW"),
        (
            {"optimizer": nk.SGD(weight_decay=(0.1, 0.2))},
            "optimizer must have one weight_decay or 3, got 2",
        ),
        ({"seed": []}, "seed must be an int64 or a list of at least one"),
        ({"seed": 2**63}, "seed must be an int64"),
        ({"held": [1, 1]}, "held must be distinct t in 1..3"),
        ({"held": [4]}, "held must be distinct t in 1..3"),
        ({"held": []}, "held must be distinct t in 1..3, at least one"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"backend": "gpu"}, "backend must be one of"),
    ],
)
def test_construction(options, text):
    arguments = {"plan": PLANS["mlp"], "goal": GOAL} | options
    with pytest.raises(ValueError, match=f"DenoisingBlocks: {text}"):
        nk.DenoisingBlocks(**arguments)
