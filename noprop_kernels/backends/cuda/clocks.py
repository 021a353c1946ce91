"""Cycles of a program's stages, in a build with NOPROP_CUDA_CLOCKS; `python -m bench clocks`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from . import extension
from .buffers import address
from .context import Fields


@dataclass(frozen=True)
class Counted:
    """A launch's cycles.

    Args:
        kinds, tiles: those of its stages, in order.
        cycles: (stages, 2) int64 on the device: cycles that thread block 0 spent in a stage's tiles
            over all its steps and slices, and in the barrier after them.
    """

    kinds: tuple[str, ...]
    tiles: tuple[int, ...]
    cycles: Tensor


_taken: ContextVar[list[Counted] | None] = ContextVar("noprop_kernels_clocks", default=None)


def gap() -> str | None:
    """The reason why no cycles can be counted, or None."""
    if reason := extension.unavailable():
        return reason
    if not extension.module.counts_cycles:
        return "the extension _cuda counts no cycles; NOPROP_CUDA_CLOCKS=ON builds one that does"
    return None


@contextmanager
def count() -> Iterator[list[Counted]]:
    """Records the launches inside the `with`, each with its cycles once the device has run it.

    Raises:
        RuntimeError: the extension counts no cycles.
    """
    if reason := gap():
        raise RuntimeError(f"clocks.count: {reason}")
    token = _taken.set(found := [])
    try:
        yield found
    finally:
        _taken.reset(token)


def counters(stages: Sequence[Fields], device: torch.device) -> int | None:
    """The address to which a launch adds its cycles; None where they are not recorded."""
    found = _taken.get()
    if found is None:
        return None
    cycles = torch.zeros(len(stages), 2, dtype=torch.int64, device=device)
    kinds, tiles = (tuple(stage[name] for stage in stages) for name in ("kind", "tiles"))
    found.append(Counted(kinds, tiles, cycles))
    return address(cycles)
