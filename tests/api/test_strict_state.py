"""Whatever is set, loaded or deleted on an object: refused by name before a write, or it works."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from support.blocks import (
    GOAL,
    PLANS,
    B,
    D,
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
ROWS = indices(2, B)
EMBEDDING = torch.randn(M, D)
N = 2 * T


def blocks_of() -> nk.DenoisingBlocks:
    return make("norm", embedding=EMBEDDING, seed=[1, 2])


def strided(value: Tensor) -> Tensor:
    """The same numbers, every second of a tensor twice as large."""
    wide = value.repeat_interleave(2, -1)
    return wide[..., ::2]


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "strided": strided,
    "expanded": lambda value: value[:1].expand(value.shape),
    "short": lambda value: value[:1].clone(),
    "empty": lambda value: value[:0],
    "another dtype": lambda value: value.double() if value.is_floating_point() else value.int(),
    "another kind": lambda value: value.long() if value.is_floating_point() else value.float(),
    "another device": lambda value: value.to("meta"),
    "sparse": lambda value: value.to_sparse(),
}
NAMES = ("draws", "updates", "seeds", "t", "W_embed", "hx.weight", "hx.weight_m", "hx.bias_v")
NAMES += ("hx.norm.running_var",)
CALLS: dict[str, Callable[[nk.DenoisingBlocks], Any]] = {
    "train_step": lambda b: b.train_step(X, Y),
    "train_steps": lambda b: b.train_steps(*data(), ROWS),
    "gradients": lambda b: b.gradients(X, Y),
    "forward": lambda b: b(X, torch.zeros(B, D)),
    "loss": lambda b: b.loss(X, Y),
    "predict": lambda b: b.predict(X),
    "add_noise": lambda b: b.add_noise(Y),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("name", NAMES)
def test_load_state_dict_assigns_what_fits(name: str, wrong: Callable[[Tensor], Any]) -> None:
    blocks = blocks_of()
    before = snapshot(blocks)
    state = snapshot(blocks)
    state[name] = wrong(state[name])
    with pytest.raises((ValueError, RuntimeError), match=name):
        blocks.load_state_dict(state, assign=True)
    assert_same(snapshot(blocks), before)
    blocks.load_state_dict(snapshot(blocks), assign=True)
    assert blocks.train_step(X, Y).applied.all()


@pytest.mark.parametrize("wrong", [*WRONG.values(), lambda _: None], ids=[*WRONG, "None"])
@pytest.mark.parametrize("name", ["draws", "updates", "seeds", "t", "W_embed"])
def test_buffers_set_later(name: str, wrong: Callable[[Tensor], Any]) -> None:
    blocks = blocks_of()
    others = {key: value for key, value in snapshot(blocks).items() if key != name}
    setattr(blocks, name, wrong(getattr(blocks, name)))
    for call in CALLS.values():
        with pytest.raises((ValueError, RuntimeError)):
            call(blocks)
    for key, value in others.items():
        assert torch.equal(blocks.state_dict()[key], value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", ["draws", "hx.weight", "W_embed"])
def test_deleted(name: str, call: Callable[[nk.DenoisingBlocks], Any]) -> None:
    blocks = blocks_of()
    path, _, key = name.rpartition(".")
    delattr(blocks.get_submodule(path), key)
    with pytest.raises(ValueError, match=f"{key} must stay, got it deleted"):
        call(blocks)


@pytest.mark.parametrize("name", ["draws", "W_embed", "logits.weight"])
def test_deleted_of_a_head(name: str) -> None:
    head = nk.OutputHead(D, M, goal=GOAL)
    path, _, key = name.rpartition(".")
    delattr(head.get_submodule(path), key)
    for call in (lambda: head(torch.zeros(B, D)), lambda: head.train_step(Y, 1), head.advance):
        with pytest.raises(ValueError, match=f"{key} must stay.*got it deleted"):
            call()


@pytest.mark.parametrize("name", ["draws", "updates"])
@pytest.mark.parametrize("count", [-1, 2**32, 2**62])
def test_counters_stay_in_the_words_of_noise(backend: str, name: str, count: int) -> None:
    blocks = blocks_of()
    state = snapshot(blocks)
    getattr(blocks, name)[1] = count
    with pytest.raises(ValueError, match=rf"{name} must be in 0..4294967295"):
        blocks.train_step(X, Y)
    state[name][1] = count - 1 if count < 0 else count + 1
    with pytest.raises(ValueError, match=rf"{name} must be in 0..4294967295"):
        make("norm", embedding=EMBEDDING, seed=[1, 2]).load_state_dict(state)


def test_the_last_draw_is_used_and_none_after_it(backend: str) -> None:
    blocks = make()
    blocks.draws.fill_(2**32 - 2)
    with pytest.raises(ValueError, match="draws must be in 0..4294967295 for each of 3 steps"):
        blocks.train_steps(*data(), indices(3, B))
    assert blocks.train_steps(*data(), indices(2, B)).isfinite().all()
    assert blocks.draws.tolist() == [2**32] * T
    with pytest.raises(ValueError, match="draws must be in"):
        blocks.train_step(X, Y)


@pytest.mark.parametrize(
    "name, value",
    [
        ("plan", PLANS["mlp"]),
        ("goal", GOAL),
        ("M", 7),
        ("D", 7),
        ("held", (1,)),
        ("replicas", 2),
        ("shared", 7),
    ],
)
def test_what_is_fixed(name: str, value: object) -> None:
    for made in (
        make("norm"),
        copy.deepcopy(make("norm")),
        pickle.loads(pickle.dumps(make("norm"))),
    ):
        with pytest.raises(ValueError, match=f"{name} must stay what it was made with"):
            setattr(made, name, value)
        with pytest.raises(ValueError, match=f"{name} must stay, got del"):
            delattr(made, name)
        assert made.train_step(X, Y).applied.all()


@pytest.mark.parametrize(
    "name, value, text",
    [
        ("optimizer", nk.SGD(), r"optimizer must keep the moments \('m', 'v'\)"),
        ("optimizer", "adam", "optimizer must be SGD, Adam or AdamW"),
        ("optimizer", nk.Adam(weight_decay=(1, 2)), "optimizer must have one weight_decay or 3"),
        ("precision", "float16", "precision must be one of"),
        ("precision", ["float32"], "precision must be one of"),
        ("backend", "gpu", "backend must be one of"),
        ("blocks_per_launch", 0, "blocks_per_launch must be an integer of at least 1"),
        ("blocks_per_launch", True, "blocks_per_launch must be an integer of at least 1"),
    ],
)
def test_options_are_checked_where_they_are_set(name: str, value: object, text: str) -> None:
    blocks = make()
    before = getattr(blocks, name)
    with pytest.raises(ValueError, match=text):
        setattr(blocks, name, value)
    assert getattr(blocks, name) == before


def test_an_optimizer_of_the_same_moments_takes_over(backend: str) -> None:
    blocks, other = make(optimizer=nk.Adam(lr=1e-2)), make(optimizer=nk.AdamW(lr=1e-3))
    blocks.optimizer = nk.AdamW(lr=1e-3)
    blocks.train_step(X, Y)
    other.train_step(X, Y)
    assert_same(snapshot(blocks), snapshot(other))


# gradients that were edited


@pytest.mark.parametrize(
    "index",
    [
        torch.arange(T).int(),
        torch.arange(2 * T)[::2],
        torch.zeros(T, dtype=torch.int64),
        torch.arange(T) - 1,
        torch.arange(T) + 1,
        torch.arange(T).float(),
        torch.arange(T)[None],
        torch.arange(T, device="meta"),
        [0, 1, 2],
    ],
)
def test_update_looks_at_the_index(backend: str, index: Any) -> None:
    blocks = make()
    grads = replace(blocks.gradients(X, Y), index=index)
    before = snapshot(blocks)
    with pytest.raises(ValueError, match="update: (index|grads) must"):
        blocks.update(grads)
    assert_same(snapshot(blocks), before)


def test_update_takes_a_strided_index(backend: str) -> None:
    blocks, other = make(), make()
    grads = blocks.gradients(X, Y)
    other.update(grads)
    blocks.update(replace(grads, index=torch.arange(T).repeat_interleave(2)[::2]))
    assert_same(snapshot(blocks), snapshot(other))


def test_gradients_that_lie_in_the_weights_are_copied(backend: str) -> None:
    blocks, other = make(), make()
    grads = blocks.gradients(X, Y)

    def crossed(made: nk.DenoisingBlocks) -> dict[str, Tensor]:
        """The weights, of which the kernel writes one before it reads it as another's gradient."""
        own = {name: value.detach() for name, value in made.named_parameters()}
        return own | {"hx.bias": own["f.bias"], "hz.bias": own["hx.bias"]}

    apart = {name: value.clone() for name, value in crossed(other).items()}
    other.update(replace(grads, by_name=apart))
    blocks.update(replace(grads, by_name=crossed(blocks)))
    assert_same(snapshot(blocks), snapshot(other))


@pytest.mark.parametrize("field", ["by_name", "stats", "applied"])
def test_update_looks_at_the_kinds(field: str) -> None:
    blocks = make("norm")
    with pytest.raises(ValueError, match="update: "):
        blocks.update(replace(blocks.gradients(X, Y), **{field: [1]}))


# frozen parameters, and tensors of a graph

UPDATES: dict[str, Callable[[nk.DenoisingBlocks], Any]] = {
    "train_step": CALLS["train_step"],
    "train_steps": CALLS["train_steps"],
    "update": lambda b: b.update(b.gradients(X, Y)),
    "backward_update": lambda b: b.backward_update(
        b(X, torch.zeros(B, D, requires_grad=True)), torch.ones(len(b), B, M)
    ),
}


@pytest.mark.parametrize("op", UPDATES)
def test_frozen_parameters_are_not_updated(backend: str, op: str) -> None:
    for freeze in (lambda b: b.requires_grad_(False), lambda b: b.hz.bias.requires_grad_(False)):
        blocks = make()
        freeze(blocks)
        before = snapshot(blocks)
        with pytest.raises(ValueError, match=f"{op}: parameters must all .*'hz.bias'"):
            UPDATES[op](blocks)
        assert_same(snapshot(blocks), before)


@pytest.mark.parametrize("op", UPDATES)
def test_eval_mode_is_not_trained(backend: str, op: str) -> None:
    blocks = make().eval()
    before = snapshot(blocks)
    with pytest.raises(ValueError, match=rf"{op}: mode must be that of train\(\)"):
        UPDATES[op](blocks)
    assert_same(snapshot(blocks), before)


def test_inputs_of_a_graph(backend: str) -> None:
    blocks = make()
    x, z = X.clone().requires_grad_(), torch.zeros(T, B, D, requires_grad=True)
    before = snapshot(blocks)
    for call in (
        lambda: blocks.train_step(x, Y),
        lambda: blocks.train_step(X, Y, z=z),
        lambda: blocks.gradients(x, Y),
        lambda: blocks.train_steps(x, Y, torch.zeros(1, B, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=r"inputs must not require a gradient.*x.detach\(\)"):
            call()
    assert_same(snapshot(blocks), before)
    step = blocks.train_step(x, Y, input_grad=True)
    assert step.d_x is not None
    with torch.no_grad():
        assert blocks.train_step(x, Y).applied.all()


@pytest.mark.parametrize("size", [1e20, 1e25])
def test_statistics_that_are_not_finite_apply_nothing(backend: str, size: float) -> None:
    blocks = make("norm")
    before = snapshot(blocks)
    x = X * size
    assert x.isfinite().all()
    assert not blocks.train_step(x, Y).applied.any()
    grads = blocks.gradients(x, Y)
    assert not grads.applied.any() and not blocks.update(grads).any()
    after = snapshot(blocks)
    assert after.pop("draws").tolist() == [2] * T
    assert_same(after, {name: value for name, value in before.items() if name != "draws"})
    assert blocks.train_step(X, Y).applied.all()


def test_repr_tells_what_it_is() -> None:
    text = repr(make("norm", held=[1, 3]))
    assert "Node" not in text
    assert "T=3, held=(1, 3), replicas=1, M=5, D=5" in text and "logits: hz + x -> 5" in text
    assert "parameters" in repr(nk.OutputHead(D, M, goal=GOAL))
