"""Positions of slices, on the device of the tensors."""

from functools import lru_cache

import torch
from torch import Tensor

from ..calls import Slices
from .guard import where


@lru_cache(maxsize=256)
def placed(index: tuple[int, ...], device: torch.device) -> Tensor:
    """(n,) int64 on a device, copied from pinned memory without a synchronisation."""
    pinned = device.type == "cuda"
    host = torch.tensor(index, dtype=torch.int64, device="cpu", pin_memory=pinned)
    return host.to(device, non_blocking=True)


def index_on(index: Tensor, device: torch.device) -> Tensor:
    """Positions, (n,) int64 on the CPU, moved to the tensors' device."""
    return index if device.type == "cpu" else placed(tuple(index.tolist()), device)


def index_of(slices: Slices) -> Tensor:
    return index_on(slices.index, where(slices))
