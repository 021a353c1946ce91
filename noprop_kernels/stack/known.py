"""Calls that repeat an earlier one of the same object on other labels, so that a small one does not
pay again for the checks of what has not changed.

The CPU kernels check the memory of every tensor in each call. So a repeated call compares only
which tensors and options the object has. What does not fit it leaves to the whole call, which says
why, and nothing has changed.
"""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from ..backends import dispatch
from ..check import PLAIN, check_counter
from . import engine
from .module import Stack

TRAINABLE = attrgetter("requires_grad", "is_leaf")


@dataclass
class Known:
    """A call that has run.

    Args:
        seen: as of `what_is_seen`.
        held: tensors and the optimizer, so that no others get their ids.
        record: of the call.
    """

    seen: list
    held: Any
    record: Any


def keep(stack: Stack, key: tuple, record: Any, own: tuple[str, ...]) -> None:
    """Keeps the record of a call on all slices that has run, to be repeated, without the fields
    that are each call's own."""
    if repeats(stack):
        record = twin(record)
        for name in own:
            setattr(record, name, None)
        tensors = tensors_of(stack)
        known = Known(what_is_seen(stack, *tensors), (tensors, stack.optimizer), record)
        stack.layout.cache.keep(("known", *key), known)


def earlier(stack: Stack, key: tuple, y: Tensor) -> Any:
    """A copy of the record of an earlier call by this key, with the labels y (B,) and the present
    draws, where the object is as it was then and y has the kernels' form; else None.

    Raises:
        ValueError: a counter is out of range.
    """
    known = stack.layout.cache.get(("known", *key))
    if known is None or not repeats(stack):
        return None
    if known.seen != what_is_seen(stack, *tensors_of(stack)):
        return None
    for name in ("draws", "updates"):
        counter = stack._buffers[name]
        if not counter.is_cpu or counter.dtype != torch.int64 or counter.shape != (len(stack),):
            return None
        check_counter(type(stack).__name__, name, counter, 1)
    record = twin(known.record)
    noise = record.noise = twin(record.noise)
    noise.seeds = stack._buffers["seeds"]
    noise.draw = stack._buffers["draws"][None].clone()  # the call changes the original
    record.y = y.expand(1, len(stack), -1)
    return record


def twin(record: Any) -> Any:
    """A record with the same fields; `copy` takes as long as a small kernel."""
    made = object.__new__(type(record))
    made.__dict__.update(record.__dict__)
    return made


def has_form(y: Any) -> bool:
    """Whether y are labels (B,) as the kernels, which check the rest, take them."""
    if type(y) not in PLAIN or y.layout is not torch.strided or y.is_nested:
        return False
    return y.ndim == 1 and y.numel() > 0 and y.is_contiguous()


def repeats(stack: Stack) -> bool:
    """Whether the CPU kernels run the object's calls, and nothing but its own tensors changes."""
    if stack.shared is not None or stack.layout.goal.timed:
        return False
    try:
        return engine.backend_of(stack, head=stack.layout.goal.head) is dispatch.cpu
    except (ValueError, dispatch.BackendError):
        return False


def tensors_of(module: nn.Module) -> tuple[list[Any], list[Any]]:
    """The parameters and the buffers."""
    params = [value for value in module._parameters.values() if value is not None]
    buffers = [*module._buffers.values()]
    for child in module._modules.values():
        if child is not None:
            of_child = tensors_of(child)
            params += of_child[0]
            buffers += of_child[1]
    return params, buffers


def what_is_seen(stack: Stack, params: list[Any], buffers: list[Any]) -> list[object]:
    """What the checks depend on, but the tensors' memory."""
    options = id(stack.optimizer), stack.precision, stack.backend, stack.training
    return [*map(id, params), *map(id, buffers), *map(TRAINABLE, params), *options]


def noise_key(y: Tensor, with_eps: bool) -> tuple:
    return "add_noise", with_eps, y.shape[0]


def add_noise(stack: Stack, y: Any, with_eps: bool) -> tuple[Tensor, Tensor | None] | None:
    """z and eps of all slices as an earlier call made them, or None."""
    call = earlier(stack, noise_key(y, with_eps), y) if has_form(y) else None
    if call is None:
        return None
    z = call.z = engine.empty(stack, len(stack), y.shape[0], stack.D)
    eps = call.eps = torch.empty_like(z) if with_eps else None
    try:
        engine.run(stack, "add_noise", call, backend=dispatch.cpu)
    except ValueError:
        return None
    return z, eps
