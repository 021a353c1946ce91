"""A stack's tensors in the form that a backend's call addresses.

A kernel reads and writes addresses, so every call first compares the object's current tensors with
their original layout.
"""

from operator import attrgetter

import torch
from torch import Tensor

from ..backends.calls import Slices
from ..check import check_counter, check_stored
from .layout import dtype_of
from .named_tensors import all_names, find
from .strict import StrictModule

PROPERTIES = (Tensor.is_contiguous, *map(attrgetter, ("dtype", "shape", "device")))


def find_tensors(stack: StrictModule, names: tuple[str, ...]) -> list[Tensor]:
    """The stack's current tensors by these names."""
    op = type(stack).__name__
    try:
        tensors = find(stack, names)
    except AttributeError as error:
        raise ValueError(f"{op}: {error.name} must stay, got it deleted") from None
    for name, value in zip(names, tensors, strict=True):
        if not isinstance(value, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    return tensors


def checked_tensors(
    stack: StrictModule, names: tuple[str, ...], device: torch.device | None = None
) -> list[Tensor]:
    """The stack's current tensors, checked so that a kernel can address them."""
    tensors, layout = find_tensors(stack, names), stack.layout
    device = stack.device if device is None else device
    properties = [[*map(read, tensors)] for read in PROPERTIES]
    if properties == layout.cache.get((names, device)):
        return tensors
    for name, value in zip(names, tensors, strict=True):
        shape = layout.shapes[name]
        check_stored(type(stack).__name__, name, value, shape, dtype_of(name), device)
    layout.cache.keep((names, device), properties)  # those of tensors that passed the checks
    return tensors


def check_state(stack: StrictModule, steps: int = 1) -> None:
    """Raises where kernels could not read a buffer, whoever set it.

    Counters beyond the 32 bits of noise's draw are detected on the CPU only, where that needs no
    synchronisation.
    """
    if torch.compiler.is_compiling():
        return
    op, layout, buffers = type(stack).__name__, stack.layout, stack._buffers
    (first,) = find_tensors(stack, layout.params[:1])
    checked_tensors(stack, layout.buffers, first.device)
    own = stack.shared is None and "W_embed" not in layout.shapes
    if own and buffers.get("W_embed", op) is not None:
        got = "a tensor" if "W_embed" in buffers else "it deleted"
        raise ValueError(f"{op}: W_embed must stay None, got {got}")
    for name in ("draws", "updates"):
        if buffers[name].device.type == "cpu":
            check_counter(op, name, buffers[name], steps)


def slices_of(stack: StrictModule, index: Tensor) -> Slices:
    """The state, and the positions (n,) of the slices that a call runs."""
    layout, buffers = stack.layout, stack._buffers
    moments, params, stats = layout.moments, layout.params, layout.stats
    tensors = iter(checked_tensors(stack, all_names(params, moments, stats)))
    return Slices(
        plan=stack.plan,
        params=dict(zip(params, tensors, strict=False)),
        m=dict(zip(params, tensors, strict=False)) if "m" in moments else {},
        v=dict(zip(params, tensors, strict=False)) if "v" in moments else {},
        stats=dict(zip(stats, tensors, strict=True)),
        seeds=buffers["seeds"],
        draws=buffers["draws"],
        updates=buffers["updates"],
        index=index,
        precision=stack.precision,
    )


def updated(slices: Slices) -> list[Tensor]:
    """The tensors that an update writes."""
    params, stats = slices.params.values(), slices.stats.values()
    return [*params, *slices.m.values(), *slices.v.values(), *stats, slices.updates]
