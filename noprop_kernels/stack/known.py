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
from ..results import Gradients
from . import engine
from .module import Stack
from .state import updated

PLAIN_TYPES = frozenset(PLAIN)
FORM = attrgetter("dtype", "shape", "device")
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


def earlier(stack: Stack, key: tuple) -> Any:
    """A copy of the record of an earlier call by this key, where the object is as it was then; else
    None.

    Raises:
        ValueError: a counter is out of range.
    """
    known = stack.layout.cache.get(("known", *key))
    if known is None or not repeats(stack):
        return None
    if known.seen != what_is_seen(stack, *tensors_of(stack)):
        return None
    for name in ("draws", "updates"):
        check_counter(type(stack).__name__, name, stack._buffers[name], 1)
    return twin(known.record)


def on_labels(stack: Stack, key: tuple, y: Tensor) -> Any:
    """The same with the labels y (B,), which `has_form`, and the present draws."""
    record = earlier(stack, key)
    if record is None:
        return None
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
    own = [value for value in stack._buffers.values() if isinstance(value, Tensor)]
    forms = *map(FORM, own), *map(Tensor.is_contiguous, own)  # not every call of a kernel has them
    return [*map(id, params), *map(id, buffers), *map(TRAINABLE, params), *forms, *options]


def noise_key(y: Tensor, with_eps: bool) -> tuple:
    return "add_noise", with_eps, y.shape[0]


def add_noise(stack: Stack, y: Any, with_eps: bool) -> tuple[Tensor, Tensor | None] | None:
    """z and eps of all slices as an earlier call made them, or None."""
    call = on_labels(stack, noise_key(y, with_eps), y) if has_form(y) else None
    if call is None:
        return None
    z = call.z = engine.empty(stack, len(stack), y.shape[0], stack.D)
    eps = call.eps = torch.empty_like(z) if with_eps else None
    try:
        engine.run(stack, "add_noise", call, backend=dispatch.cpu)
    except ValueError:
        return None
    return z, eps


def update_key(stack: Stack, grads: Any, lr: object) -> tuple | None:
    """The key of an update of all slices in their order, without batch statistics; None: it is of
    another kind."""
    if not isinstance(grads, Gradients) or grads.stats or type(grads.by_name) is not dict:
        return None
    index, own = grads.index, (*grads.by_name.values(), grads.applied, grads.index)
    if not (lr is None or type(lr) is float) or not PLAIN_TYPES.issuperset(map(type, own)):
        return None
    if index.layout is not torch.strided or not index.is_cpu or index.dtype != torch.int64:
        return None
    if grads.by_name.keys() != {*stack.layout.params} or index.ndim != 1:
        return None
    return ("update", lr) if index.tolist() == [*range(len(stack))] else None


def update(stack: Stack, key: tuple, grads: Gradients) -> Tensor | None:
    """`applied` (n,) of an update as an earlier one, or None."""
    call = earlier(stack, key)
    if call is None:
        return None
    call.grads, call.apply = grads.by_name, grads.applied
    call.applied = engine.empty(stack, len(stack), dtype=torch.bool)
    try:
        engine.run(stack, "update", call, updated(call.slices), backend=dispatch.cpu)
    except ValueError:
        return None
    stack._buffers["draws"].add_(1)
    return call.applied
