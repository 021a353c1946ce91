"""The state: names, copies, files, devices and dtypes; ordinary tensors throughout."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch

import noprop_kernels as nk
from blocks_for_tests import (
    GOAL,
    PLANS,
    B,
    D,
    F,
    M,
    T,
    assert_same,
    batch,
    make,
    of_slices,
    snapshot,
)
from noprop_kernels.noise import initial_parameters


def test_names_and_shapes_are_the_plans():
    blocks = make("norm", seed=[0, 1], held=[3, 1], embedding=torch.randn(M, D))
    state = blocks.state_dict()
    shapes = PLANS["norm"].parameters()
    for name, shape in shapes.items():
        for suffix in ("", "_m", "_v"):
            assert state[name + suffix].shape == (4, *shape)
    assert (
        state["hx.norm.running_mean"].shape == (4, 6) and state["hx.norm.running_var"].eq(1).all()
    )
    assert state["t"].tolist() == [1, 3, 1, 3] and state["seeds"].tolist() == [0, 0, 1, 1]
    assert blocks.held == (1, 3) and blocks.replicas == 2 and len(blocks) == 4
    others = {"t", "seeds", "draws", "updates", "W_embed"}
    assert set(state) == others | {n + s for n in shapes for s in ("", "_m", "_v")} | set(
        PLANS["norm"].statistics()
    )
    assert [name for name, _ in blocks.named_parameters()] == list(shapes)


@pytest.mark.parametrize(
    "optimizer, moments",
    [(None, ""), (nk.SGD(), ""), (nk.SGD(momentum=0.9), "m"), (nk.Adam(), "mv")],
)
def test_moments_are_those_of_the_optimizer(optimizer, moments):
    state = make(optimizer=optimizer).state_dict()
    assert "".join(m for m in "mv" if f"hx.weight_{m}" in state) == moments


def test_a_slice_starts_the_same_whatever_is_held():
    whole, part = make(seed=[7, 8]), make(seed=8, held=[2])
    assert_same(of_slices(part.state_dict(), [0]), of_slices(whole.state_dict(), [4]))


def test_parameters_start_at_their_own_addresses():
    blocks = make(seed=[7, 8], held=[2, 3])
    seeds, t = torch.tensor([7, 7, 8, 8]), torch.tensor([2, 3, 2, 3])
    want = initial_parameters(PLANS["mlp"], seeds, t - 1)
    assert_same({name: p.detach() for name, p in blocks.named_parameters()}, want)


def test_copies_go_on_alone(backend):
    x, y = batch()
    blocks = make("norm", embedding=torch.randn(M, D))
    blocks.train_step(x, y)
    buffer = io.BytesIO()
    torch.save(blocks, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(blocks),
        pickle.loads(pickle.dumps(blocks)),
        torch.load(buffer, weights_only=False),
    ]
    before = snapshot(blocks)
    done = [other.train_step(x, y) for other in copies]
    assert_same(snapshot(blocks), before)
    loss = blocks.train_step(x, y).loss
    for other, step in zip(copies, done, strict=True):
        assert torch.equal(step.loss, loss)
        assert_same(snapshot(other), snapshot(blocks))


def test_safetensors(backend, tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    x, y = batch()
    blocks, other = make("norm"), make("norm")
    blocks.train_step(x, y)
    safetensors.save_file(blocks.state_dict(), tmp_path / "blocks.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "blocks.safetensors"))
    assert torch.equal(other.train_step(x, y).loss, blocks.train_step(x, y).loss)


def test_to_keeps_the_state_and_refuses_other_dtypes(backend):
    x, y = batch()
    blocks = make()
    assert blocks.to("cpu") is blocks and blocks.to(torch.float32) is blocks
    before = snapshot(blocks)
    for convert in (blocks.half, blocks.double, blocks.bfloat16):
        with pytest.raises(ValueError, match="parameters must stay torch.float32, got torch."):
            convert()
    assert_same(snapshot(blocks), before)
    assert blocks.to("meta").hx.weight.device.type == "meta"
    assert blocks._signal.device.type == "meta"


def test_loading_keeps_every_address(backend):
    x, y = batch()
    source, target = make("norm"), make("norm")
    source.train_step(x, y)
    addresses = {name: value.data_ptr() for name, value in target.state_dict().items()}
    target.load_state_dict(source.state_dict())
    assert {name: value.data_ptr() for name, value in target.state_dict().items()} == addresses
    assert_same(snapshot(target), snapshot(source))


@pytest.mark.parametrize(
    "source, text",
    [
        (lambda: make(seed=1), r"seeds must be \[0, 0, 0\], got \[1, 1, 1\]"),
        (
            lambda: nk.DenoisingBlocks(
                PLANS["mlp"], nk.DT(nk.NoiseSchedule.cosine(4)), held=[1, 2, 4]
            ),
            r"t must be \[1, 2, 3\], got \[1, 2, 4\]",
        ),
        (
            lambda: nk.DenoisingBlocks(nk.plans.mlp(F, D, M, hidden=8), GOAL),
            r"hx.weight must have shape \(3, 6, 7\), got \(3, 8, 7\)",
        ),
        (lambda: make(held=[1, 2]), r"must have shape \(3,\), got \(2,\)"),
        (lambda: make(optimizer=None), "without .*hx.weight_m"),
        (lambda: make("norm"), "without .*with .*norm.running_mean"),
    ],
    ids=["seeds", "t", "widths", "held", "moments", "plan"],
)
def test_a_state_of_other_slices_is_refused_whole(source, text):
    target = make()
    before = snapshot(target)
    outer = torch.nn.ModuleDict({"inner": target})
    state = source().state_dict()
    with pytest.raises(ValueError, match=text):
        target.load_state_dict(state)
    assert_same(snapshot(target), before)
    if "without" not in text:  # keys are torch's to compare where the object is a part of another
        with pytest.raises(ValueError, match=text):
            outer.load_state_dict({f"inner.{name}": value for name, value in state.items()})
        assert_same(snapshot(target), before)


def test_loading_in_part_where_asked():
    target = make()
    target.load_state_dict({"hx.bias": torch.ones(T, 6)}, strict=False)
    assert target.hx.bias.eq(1).all()


def test_a_tensor_that_no_kernel_can_address_is_refused(backend):
    x, y = batch()
    blocks = make()
    blocks.hx.weight.data = blocks.hx.weight.data.mT.contiguous().mT
    before = snapshot(blocks)
    with pytest.raises(ValueError, match="hx.weight must be a contiguous torch.float32 tensor"):
        blocks.train_step(x, y)
    assert_same(snapshot(blocks), before)


def test_a_layer_may_not_take_a_name_of_the_object():
    for name in ("forward", "seeds", "goal", "plan", "t"):
        layers = {name: nk.Dense(("x", "z"), 4), "logits": nk.Dense(name, M)}
        plan = nk.Plan({"x": (F,), "z": (D,)}, layers)
        with pytest.raises(ValueError, match=f"plan must not name a layer '{name}'"):
            nk.DenoisingBlocks(plan, GOAL)


def test_another_optimizer_of_the_same_moments_may_be_set(backend):
    x, y = batch()
    blocks, other = make(), make(optimizer=nk.AdamW(lr=0.1))
    blocks.optimizer = nk.AdamW(lr=0.1)
    blocks.train_step(x, y)
    other.train_step(x, y)
    assert_same(snapshot(blocks), snapshot(other))


def test_batches_of_any_layout_leave_the_caller_alone(backend):
    x, y = batch()
    kept = x.clone(), y.clone()
    make().train_step(x, y, input_grad=True)
    assert torch.equal(x, kept[0]) and torch.equal(y, kept[1]) and x.shape == (B, F)
