"""The state: names, copies, files, devices and dtypes; ordinary tensors throughout."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.philox import initial_parameters
from noprop_kernels.stack import engine
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
    make,
    of_slices,
    snapshot,
)


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
    index = torch.arange(T)
    for device in ("cpu", "meta"):
        assert blocks.to(device).hx.weight.device.type == device
        block = engine.blocks_of(blocks, index, 1)
        noise = engine.noise_of(blocks, index, block)
        assert block.device.type == noise.draw.device.type == device
        assert engine.levels_of(blocks, index, noise, B)[0].signal.device.type == device


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


def new_hx(blocks: nk.DenoisingBlocks, value: torch.Tensor) -> None:
    """Replaces a layer's weight by `value` in a parameter of its own."""
    blocks.hx.weight = torch.nn.Parameter(value)


def change_data(blocks: nk.DenoisingBlocks, value: torch.Tensor) -> None:
    blocks.hx.weight.data = value


def change_storage(blocks: nk.DenoisingBlocks, value: torch.Tensor) -> None:
    with torch.no_grad():
        blocks.hx.weight.set_(value)


def change_module(blocks: nk.DenoisingBlocks, value: torch.Tensor) -> None:
    blocks.hx = copy.deepcopy(blocks.hx)
    blocks.hx.weight.data.copy_(value)


def assign_state(blocks: nk.DenoisingBlocks, value: torch.Tensor) -> None:
    blocks.load_state_dict({**snapshot(blocks), "hx.weight": value}, assign=True)


def move(blocks: nk.DenoisingBlocks, value: torch.Tensor) -> None:
    """As .to(device) does, whose copies have addresses of their own."""
    blocks._apply(torch.clone)
    blocks.hx.weight.data.copy_(value)


@pytest.mark.parametrize(
    "replace", [new_hx, change_data, change_storage, change_module, assign_state, move]
)
def test_a_step_takes_what_stands_there_now(backend, replace):
    x, y = batch()
    blocks, fresh = make("norm"), make("norm")
    blocks.train_step(x, y)
    fresh.load_state_dict(blocks.state_dict())
    value = torch.randn(T, 6, F)
    with torch.no_grad():
        fresh.hx.weight.copy_(value)
    old = blocks.hx.weight.detach()  # kept, so that no other tensor gets its address
    replace(blocks, value.clone())
    left = old.clone()
    for _ in range(2):
        assert torch.equal(blocks.train_step(x, y).loss, fresh.train_step(x, y).loss)
    assert_same(snapshot(blocks), snapshot(fresh))
    assert torch.equal(old, left)


@pytest.mark.parametrize("name", ["hx.weight_m", "hx.weight_v", "hx.norm.running_mean", "draws"])
def test_a_step_takes_the_buffers_that_stand_there_now(backend, name):
    x, y = batch()
    blocks, fresh = make("norm"), make("norm")
    blocks.train_step(x, y)
    fresh.load_state_dict(blocks.state_dict())
    old = blocks.get_buffer(name)
    path, _, key = name.rpartition(".")
    setattr(blocks.get_submodule(path), key, old + 3)
    fresh.get_buffer(name).add_(3)
    left = old.clone()
    assert torch.equal(blocks.train_step(x, y).loss, fresh.train_step(x, y).loss)
    assert_same(snapshot(blocks), snapshot(fresh))
    assert torch.equal(old, left)


def test_a_copy_has_addresses_of_its_own(backend):
    x, y = batch()
    blocks = make("norm")
    blocks.train_step(x, y)
    for other in (copy.deepcopy(blocks), pickle.loads(pickle.dumps(blocks))):
        before = snapshot(blocks)
        other.train_step(x, y, blocks=2)
        other.train_step(x, y)
        assert_same(snapshot(blocks), before)
        assert not torch.equal(other.hx.weight, blocks.hx.weight)


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda m: m.mT, r"\(3, 6, 6\) torch.float32 with strides \(36, 1, 6\)"),
        (lambda m: m[:2], r"got \(2, 6, 6\)"),
        (lambda m: m.view(torch.int32), "got .* torch.int32"),
        (lambda m: m.view(3, 36), r"got \(3, 36\)"),
    ],
    ids=["strides", "slices", "dtype", "shape"],
)
def test_a_tensor_spoilt_at_its_address_is_refused(backend, spoil, text):
    x, y = batch()
    blocks = nk.DenoisingBlocks(nk.plans.mlp(6, D, M, hidden=6), GOAL)
    blocks.train_step(x[:, :6], y)
    blocks.hx.weight_m.data = spoil(blocks.hx.weight_m)
    with pytest.raises(ValueError, match=f"hx.weight_m must be a contiguous .*{text}"):
        blocks.train_step(x[:, :6], y)
    blocks.hx.weight_m = torch.zeros(3, 6, 6, device="meta")
    with pytest.raises(ValueError, match="hx.weight_m must be a contiguous .* on meta"):
        blocks.train_step(x[:, :6], y)
    assert blocks.draws.eq(1).all()


def test_numbers_of_a_step_follow_the_object(backend):
    """The optimizer, its lr and the embedding as they are now, not as the step before had them."""
    x, y = batch()
    embedding, other = torch.randn(M, D), torch.randn(M, D)
    blocks, fresh = make(embedding=embedding), make(embedding=other)
    blocks.train_step(x, y, lr=0.1)
    fresh.load_state_dict({**blocks.state_dict(), "W_embed": other})
    blocks.W_embed = other.clone()
    blocks.optimizer = fresh.optimizer = nk.AdamW(lr=0.02, weight_decay=(0.1, 0.2, 0.3))
    for lr in (None, 0.1, 0.2, torch.tensor([0.1, 0.2, 0.3])):
        fresh.layout.cache.clear()
        assert torch.equal(blocks.train_step(x, y, lr=lr).loss, fresh.train_step(x, y, lr=lr).loss)
    assert_same(snapshot(blocks), snapshot(fresh))
    for lr in (-1.0, float("nan"), float("inf")):
        for _ in range(2):
            with pytest.raises(ValueError, match="lr must be finite"):
                blocks.train_step(x, y, lr=lr)


def test_what_gradients_return_is_the_callers(backend):
    x, y = batch()
    blocks, fresh = make(), make()
    blocks.gradients(x, y).index.zero_()
    blocks.gradients(x, y, blocks=2).index.zero_()
    for t in (None, 2):
        blocks.train_step(x, y, blocks=t)
        fresh.train_step(x, y, blocks=t)
    assert_same(snapshot(blocks), snapshot(fresh))
