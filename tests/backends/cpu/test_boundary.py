"""The extension checks each tensor where it takes its address: a call that does not fit is an error
before anything is written, whatever Python made of its tensors.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.calls import (
    AddNoiseCall,
    BackwardCall,
    ForwardCall,
    HeadCall,
    TrainCall,
    UpdateCall,
)
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.backends.cpu import extension
from support.calls import PLANS, make_train_call
from support.chains import make_chain_call, make_predict_call

pytestmark = pytest.mark.skipif(
    dispatch.native_gap() is not None, reason=f"no CPU kernels: {dispatch.native_gap()}"
)
ADAM = nk.AdamW(lr=1e-2)
F, D, M, B = 6, 4, 3, 5


class Subclass(torch.Tensor):
    pass


def longer(value: Tensor) -> Tensor:
    return torch.cat([value, value], -1)


def strided(value: Tensor) -> Tensor:
    return value.repeat_interleave(2, -1)[..., ::2]


def released(value: Tensor) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(value.itemsize)
    return value


def unaligned(value: Tensor) -> Tensor:
    memory = bytearray(b"\0" + value.contiguous().numpy().tobytes())
    return torch.frombuffer(memory, dtype=value.dtype, offset=1).view(value.shape)


def other_dtype(value: Tensor) -> Tensor:
    other = {torch.float32: torch.float64, torch.float64: torch.float32, torch.bool: torch.int8}
    return value.to(other.get(value.dtype, torch.int32))


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "other dtype": other_dtype,
    "half of the width": lambda value: value.to(torch.bfloat16),
    "one entry": lambda value: value.flatten()[:1].clone()[None, None, None],
    "longer": longer,
    "a dimension more": lambda value: value[None],
    "nine dimensions": lambda value: value.reshape(1, 1, 1, 1, 1, 1, 1, 1, -1),
    "strided": strided,
    "expanded": lambda value: value.flatten()[:1].expand(value.shape),
    "negated": lambda value: torch._neg_view(-value if value.dtype != torch.bool else value),
    "zeros without memory": lambda value: torch._efficientzerotensor(
        value.shape, dtype=value.dtype
    ),
    "on meta": lambda value: value.to("meta"),
    "sparse": lambda value: value.to_sparse(),
    "released": released,
    "unaligned": unaligned,
    "fake": lambda value: FakeTensorMode().from_tensor(value.clone()),
    "a subclass": lambda value: value.as_subclass(Subclass),
    "None": lambda value: None,
    "a text": lambda value: "value",
}
HARMLESS = {"a subclass", "negated", "strided", "expanded"}  # at least where they are read


def tensors(record: Any, path: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    """Every tensor of a call, with the path to it."""
    if isinstance(record, Tensor):
        yield path, record
    elif isinstance(record, dict):
        for key, value in record.items():
            yield from tensors(value, (*path, key))
    elif isinstance(record, list | tuple):
        for i, value in enumerate(record):
            yield from tensors(value, (*path, i))
    elif dataclasses.is_dataclass(record):
        for field in dataclasses.fields(record):
            yield from tensors(getattr(record, field.name), (*path, field.name))


def put(record: Any, path: tuple, value: Any) -> None:
    for step in path[:-1]:
        record = record[step] if isinstance(record, dict | list) else getattr(record, step)
    if isinstance(record, dict | list):
        record[path[-1]] = value
    else:
        setattr(record, path[-1], value)


def train_call(**options: Any) -> TrainCall:
    plan = PLANS[options.pop("plan", "branches")](F, D, M)
    return make_train_call(plan, 4, 3, B, options.pop("K", 1), optimizer=ADAM, **options)


def forward_call(call: TrainCall, save: bool) -> ForwardCall:
    n = len(call.slices.index)
    inputs = {name: value[0] for name, value in call.inputs.items()} | {"z": torch.rand(n, B, D)}
    return ForwardCall(call.slices, inputs, torch.zeros(n, B, M), True, save)


def backward_call(call: TrainCall, rule: bool) -> BackwardCall:
    made = forward_call(call, True)
    cpu.forward(made)
    n = len(call.slices.index)
    whole = torch.zeros(made.saved[0].numel() + 16)
    start = -whole.data_ptr() % 64 // 4
    whole = whole[start : start + made.saved[0].numel()].copy_(made.saved[0])
    grads = {name: torch.zeros(n, *s) for name, s in call.slices.plan.parameters().items()}
    return BackwardCall(
        slices=call.slices,
        saved=[whole, *made.saved[1:]],
        d_logits=torch.rand(n, B, M),
        grads=None if rule else grads,
        d_inputs={"x": torch.zeros(n, B, F), "z": torch.zeros(n, B, D)},
        rule=call.rule if rule else None,
        applied=torch.zeros(n, dtype=torch.bool) if rule else None,
    )


def made_calls() -> dict[str, Callable[[], tuple[str, Any]]]:
    """A function for each kind of call: the backend's function and a call of it."""

    def update() -> tuple[str, Any]:
        call = train_call()
        n = len(call.slices.index)
        grads = {name: torch.rand(n, *s) for name, s in call.slices.plan.parameters().items()}
        return "update", UpdateCall(call.slices, grads, torch.ones(n, dtype=torch.bool), call.rule)

    def head() -> tuple[str, Any]:
        call = train_call(flow=1.0)
        n = len(call.slices.index)
        made = HeadCall(
            objective=call.objective,
            embedding=call.embedding,
            y=call.y,
            logits=torch.rand(n, B, M),
            eps=torch.rand(n, B, D),
            loss=torch.zeros(n),
            error=torch.zeros(n, B),
            d_logits=torch.zeros(n, B, M),
            u_hat=torch.zeros(n, B, D),
        )
        return "head", made

    def add_noise() -> tuple[str, Any]:
        call = train_call()
        z, eps = torch.zeros(2, len(call.slices.index), B, D).unbind()
        records = (call.noise, call.noising, call.embedding)
        return "add_noise", AddNoiseCall(*records, call.y, z.clone(), eps.clone())

    def predict(keep_all: bool) -> Callable[[], tuple[str, Any]]:
        plan = PLANS["branches"](F, D, M)
        return lambda: ("predict", make_predict_call(plan, 2, 3, B, 2, keep_all=keep_all))

    return {
        "train": lambda: ("train", train_call(extras=True)),
        "train with z": lambda: ("train", train_call(extras=True, z_features=True)),
        "train, momentum": lambda: (
            "train",
            make_train_call(
                PLANS["mlp"](F, D, M), 4, 3, B, 2, optimizer=nk.SGD(momentum=0.5), per_row=True
            ),
        ),
        "train, gathered": lambda: ("train", train_call(gather=True, K=3)),
        "train, bytes": lambda: ("train", train_call(gather=True, data_dtype=torch.uint8, K=2)),
        "gradients": lambda: ("train", train_call(grads=True, extras=True)),
        "forward": lambda: ("forward", forward_call(train_call(), False)),
        "backward": lambda: ("backward", backward_call(train_call(), False)),
        "backward with the update": lambda: ("backward", backward_call(train_call(), True)),
        "update": update,
        "head": head,
        "add_noise": add_noise,
        "predict": predict(False),
        "predict, all kept": predict(True),
        "predict, a sampler": lambda: (
            "predict",
            make_chain_call(PLANS["two_inputs"](F, D, M), "mixed", 1, B, S=2, R=2),
        ),
    }


CALLS = made_calls()


def run(name: str, call: Any) -> None:
    with torch.no_grad():
        getattr(cpu, name)(call)


def values(call: Any) -> list[Tensor]:
    """Of every tensor but what a forward saved, parts of which are never written."""
    return [value.clone() for path, value in tensors(call) if path[0] != "saved"]


@pytest.mark.parametrize("kind", CALLS)
def test_a_call_runs_as_it_is_meant_or_writes_nothing(kind: str) -> None:
    check_changes(kind, CHANGES)


@pytest.mark.parametrize("kind", ["train", "train, bytes", "backward with the update"])
def test_without_the_exchange_interface(kind: str) -> None:
    extension.C.use_torch(**(extension.TORCH | {"exchange": None}))
    try:
        check_changes(kind, CHANGES)
    finally:
        extension.C.use_torch(**extension.TORCH)


def check_changes(kind: str, changes: dict[str, Callable[[Tensor], Any]]) -> None:
    name, done = made(kind)
    run(name, done)
    expected = values(done)
    for path, _ in tensors(made(kind)[1]):
        _, call = made(kind)
        before, originals = values(call), dict(tensors(call))
        for change, of in changes.items():
            put(call, path, of(originals[path]))
            try:
                run(name, call)
            except Exception as error:
                # a call's inputs are looked at by PyTorch first, which has words of its own
                checked = path[0] in ("inputs", "logits", "d_logits", "embedding", "y")
                fits = isinstance(error, ValueError) and str(error).startswith(name)
                assert checked or fits, (path, change, error)
                continue
            assert may_be(kind, path, change), f"{path} was taken: {change}"
            put(call, path, originals[path])
            if change in ("a subclass", "negated") and path[0] != "out":
                assert_equal(values(call), expected, (path, change))
            _, call = made(kind)
            originals = dict(tensors(call))
        put(call, path, originals[path])
        assert_equal(values(call), before, path)  # what was refused wrote nothing


def made(kind: str) -> tuple[str, Any]:
    torch.manual_seed(0)
    return CALLS[kind]()


def assert_equal(got: list[Tensor], want: list[Tensor], where: Any) -> None:
    for one, other in zip(got, want, strict=True):
        both_nan = (one != one) & (other != other)
        assert one.shape == other.shape and bool(((one == other) | both_nan).all()), where


UNREAD = {  # members of a record, by the kind of call
    "train": {"noise.seeds"},
    "gradients": {"noise.seeds", "slices.m", "slices.v", "slices.draws", "slices.updates", "rule"},
    "backward with the update": {"slices.seeds", "slices.draws"},
    "update": {"slices.seeds", "slices.draws"},
}
NO_COUNTERS = {"slices.m", "slices.v", "slices.seeds", "slices.draws", "slices.updates"}


def is_read(kind: str, path: tuple) -> bool:
    unread = UNREAD.get(kind) or UNREAD.get(kind.split(",")[0].split(" with")[0], NO_COUNTERS)
    return not {path[0], ".".join(map(str, path[:2]))} & unread


TAKEN = {  # beside what is HARMLESS, the end of a path and the change
    ("x", "data", "half of the width"),
    ("x", "data", "unaligned"),
    ("y", "data", "longer"),
}
OPTIONAL = {"z", "eps", "W_embed", "loss", "error", "d_logits", "u_hat", "d_signal", "d_noise"}
OPTIONAL |= {"d_W_embed"}


def may_be(kind: str, path: tuple, change: str) -> bool:
    if change == "None" and (path[-1] in OPTIONAL or "d_inputs" in path):
        return True
    if change == "unaligned" and path[-1] in ("apply", "applied", "ends"):  # bytes
        return True
    return change in HARMLESS or (*path[-2:], change) in TAKEN or not is_read(kind, path)


# which slices


@pytest.mark.parametrize("index", [[0, 0], [4], [-1], [2**40]])
def test_slices_are_distinct_and_there(index: list[int]) -> None:
    call = train_call(grads=True)
    call.slices.index = torch.tensor(index)
    n = len(index)
    for name, shape in call.slices.plan.parameters().items():
        call.out.grads[name] = torch.zeros(n, *shape)
    with pytest.raises(ValueError, match="distinct slices"):
        cpu.train(call)


def test_a_replica_that_is_not_there() -> None:
    call = train_call(gather=True)
    call.y.replica = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="replica must be in 0..1"):
        cpu.train(call)
