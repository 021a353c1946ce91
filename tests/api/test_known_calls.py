"""A call that repeats an earlier one finds every change of its object since, and has its bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import noprop_kernels as nk
from support.blocks import assert_same

GOAL = nk.DT(nk.NoiseSchedule.cosine(T=3))
Object = nk.OutputHead | nk.DenoisingBlocks


def new_head() -> nk.OutputHead:
    embedding = torch.linspace(-1, 1, 12).view(4, 3)
    return nk.OutputHead(3, 4, goal=GOAL, embedding=embedding, optimizer=nk.AdamW(lr=0.1))


def new_blocks() -> nk.DenoisingBlocks:
    return nk.DenoisingBlocks(nk.plans.mlp(2, 4, 4, hidden=3), GOAL, optimizer=nk.AdamW(lr=0.1))


def step(head: Object, y: Any) -> list[torch.Tensor]:
    assert isinstance(head, nk.OutputHead)
    found = head.train_step(y, 2)
    return [found.loss, found.error, found.applied]


def noise(blocks: Object, y: Any) -> list[torch.Tensor]:
    assert isinstance(blocks, nk.DenoisingBlocks)
    return [blocks.add_noise(y)]


def new_gradients(blocks: nk.DenoisingBlocks) -> nk.Gradients:
    shapes, names = blocks.layout.shapes, blocks.layout.params
    grads = {name: torch.full(shapes[name], 0.1 * i) for i, name in enumerate(names)}
    ones = torch.ones(len(blocks))
    return nk.Gradients(grads, ones, ones[:, None], ones.bool(), torch.arange(len(blocks)), rows=1)


def update(blocks: Object, y: Any) -> list[torch.Tensor]:
    """With y a change of the gradients, if it is one."""
    assert isinstance(blocks, nk.DenoisingBlocks)
    grads = new_gradients(blocks)
    if callable(y):
        y(blocks, grads)
    return [blocks.update(grads)]


CALLS = {"step": (new_head, step), "noise": (new_blocks, noise), "update": (new_blocks, update)}
Y = torch.tensor([0, 3, 1, 1, 2])


def set_data(name: str, value: torch.Tensor) -> Callable[[Any], None]:
    def change(stack: Any) -> None:
        dict([*stack.named_parameters(), *stack.named_buffers()])[name].data = value

    return change


def set_buffer(name: str, value: torch.Tensor) -> Callable[[Any], None]:
    return lambda stack: stack._buffers.__setitem__(name, value)


EITHER: dict[str, Callable[[Any], object]] = {
    "other seeds in place": lambda stack: stack.seeds.add_(5),
    "other memory of seeds": lambda stack: setattr(stack.seeds, "data", stack.seeds + 5),
    "other draws": lambda stack: stack.draws.add_(5),
    "new draws": lambda stack: set_buffer("draws", stack.draws + 7)(stack),
    "too many draws": lambda stack: stack.draws.fill_(2**33),
    "short draws": lambda stack: setattr(stack.draws, "data", torch.zeros(9, dtype=torch.int64)),
    "square draws": lambda stack: setattr(stack.draws, "data", stack.draws[None].clone()),
    "seeds of float64": lambda stack: setattr(stack.seeds, "data", stack.seeds.double()),
    "t of float64": lambda stack: (
        "t" in stack._buffers and setattr(stack.t, "data", stack.t.double())
    ),
    "no backend": lambda stack: setattr(stack, "backend", "triton"),
    "reference": lambda stack: setattr(stack, "backend", "reference"),
    "an embedding where there was none": lambda stack: set_buffer("W_embed", torch.eye(4))(stack),
}
OF_A_STEP: dict[str, Callable[[Any], object]] = {
    "other embedding in place": lambda head: head.W_embed.mul_(2),
    "a rate": lambda head: setattr(head, "optimizer", nk.AdamW(lr=0.3)),
    "another precision": lambda head: setattr(head, "precision", "bfloat16"),
    "eval mode": lambda head: head.eval(),
    "no optimizer": lambda head: setattr(head, "optimizer", None),
    "a frozen weight": lambda head: head.logits.weight.requires_grad_(False),
    "a weight of another shape": set_data("logits.weight", torch.zeros(1, 4, 5)),
    "a weight of float64": set_data("logits.weight", torch.zeros(1, 4, 3, dtype=torch.float64)),
    "a new weight": lambda head: setattr(
        head.logits, "weight", nn.Parameter(torch.ones(1, 4, 3) / 3)
    ),
    "a short moment": set_data("logits.bias_m", torch.zeros(1, 3)),
    "a transposed weight": set_data("logits.weight", torch.zeros(1, 3, 4).mT),
}
CHANGES = [("step", name, change) for name, change in (EITHER | OF_A_STEP).items()] + [
    (call, name, change) for call in ("noise", "update") for name, change in EITHER.items()
]


def outcome(stack: Object, run: Callable[[Object, Any], list], y: Any) -> tuple[list | str, dict]:
    try:
        found: list | str = run(stack, y)
    except (ValueError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
    return found, {name: value for name, value in stack.state_dict().items()}


def check(call: str, change: Callable[[Any], object], y: Any = Y) -> None:
    make, run = CALLS[call]
    known, fresh = make(), make()
    for _ in range(3):
        run(known, Y)
    before = {name: value.clone() for name, value in known.state_dict().items()}
    fresh.load_state_dict(before)
    for stack in (known, fresh):
        change(stack)
    (ours, state), (theirs, other) = outcome(known, run, y), outcome(fresh, run, y)
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
    else:
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert_same(state, other)


@pytest.mark.parametrize("call, name, change", CHANGES, ids=[f"{c}, {n}" for c, n, _ in CHANGES])
def test_a_change_has_the_effect_that_it_has_on_a_new_object(
    call: str, name: str, change: Callable[[Any], object]
) -> None:
    check(call, change)


def test_memory_that_was_released_is_refused() -> None:
    head = new_head()
    for _ in range(2):
        step(head, Y)
    head.get_parameter("logits.weight").untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="logits.weight must have memory for its"):
        step(head, Y)


@pytest.mark.parametrize("call", ["step", "noise"])
@pytest.mark.parametrize(
    "y",
    [Y.flip(0), Y[:2], Y[:0], Y + 1, Y - 1, Y.double(), Y[None], Y.int(), [1, 2], None,
     torch.arange(4)[::2], Y.to("meta"), torch.zeros(2, 5, dtype=torch.int64).unbind()[0]],
)  # fmt: skip
def test_labels_have_the_effect_that_they_have_on_a_new_object(call: str, y: Any) -> None:
    check(call, lambda stack: None, y)


def put(name: str, make: Callable[[torch.Tensor], object]) -> Callable[..., None]:
    def change(blocks: Any, grads: Any) -> None:
        grads.by_name[name] = make(grads.by_name[name])

    return change


GRADIENTS: dict[str, Callable[[Any, Any], object]] = {
    "others": put("f.weight", lambda value: value + 1),
    "not finite": put("logits.bias", lambda value: value.fill_(torch.nan)),
    "another shape": put("f.weight", lambda value: value[:, :2]),
    "float64": put("f.weight", lambda value: value.double()),
    "transposed": put("f.weight", lambda value: value.mT.contiguous().mT),
    "a list": put("f.weight", lambda value: value.tolist()),
    "one that requires a gradient": put("f.weight", lambda value: value.requires_grad_()),
    "one too few": lambda blocks, grads: grads.by_name.pop("f.weight"),
    "one too many": lambda blocks, grads: grads.by_name.update(more=torch.zeros(3)),
    "the weights": lambda blocks, grads: grads.by_name.update(
        {"f.weight": blocks.get_parameter("f.weight").detach()}
    ),
    "not applied": lambda blocks, grads: grads.applied.fill_(False),
    "one not applied": lambda blocks, grads: grads.applied[1].fill_(False),
    "applied as numbers": lambda blocks, grads: setattr(grads, "applied", torch.ones(3)),
    "in another order": lambda blocks, grads: setattr(grads, "index", torch.tensor([2, 0, 1])),
    "twice the same": lambda blocks, grads: setattr(grads, "index", torch.tensor([0, 0, 1])),
    "fewer": lambda blocks, grads: setattr(grads, "index", torch.tensor([0, 1])),
    "a square index": lambda blocks, grads: setattr(grads, "index", torch.arange(3)[None]),
    "statistics": lambda blocks, grads: grads.stats.update(unknown=torch.ones(3, 2)),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_gradients_have_the_effect_that_they_have_on_a_new_object(case: str) -> None:
    check("update", lambda stack: None, GRADIENTS[case])


@pytest.mark.parametrize("call", CALLS)
def test_a_forced_backend_is_that_of_the_call(call: str) -> None:
    make, run = CALLS[call]
    known, fresh = make(), make()
    found = []
    for stack in (known, fresh):
        run(stack, Y)
        if stack is fresh:
            stack.layout.cache.clear()
        with nk.use_backend("reference"):
            found.append(run(stack, Y))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("call", CALLS)
def test_a_repeated_call_makes_no_record_anew(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from noprop_kernels.stack import call_arguments, engine, gradients

    make, run = CALLS[call]
    stack = make()
    first = [value.clone() for value in run(stack, Y)]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole call ran")

    monkeypatch.setattr(engine, "levels_of", refuse)
    monkeypatch.setattr(call_arguments, "check_state", refuse)
    monkeypatch.setattr(gradients, "check_state", refuse)
    second = run(stack, Y)
    assert torch.equal(first[0], second[0]) == (call != "step")  # which moves on
