"""Addresses in the kernel's form, and the workspace of the groups of thread blocks.

Tensors are checked before a call is made; the call, or its `LaunchContext`, holds them until the
launch is on its stream.
"""

import torch
from torch import Tensor

from ..calls import Gather
from ..gpu.buffers import Buffer
from ..gpu.stages import ALIGNMENT, Table
from ..gpu.tiles import cdiv

Address = tuple[int, int, int, int]  # data, stride_k, stride_slice, by_group; in entries
PerRow = tuple[int, int, int, int]  # data, stride_k, stride_slice, stride_row

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.uint8: "uint8"}


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def of_slices(tensor: Tensor) -> Address:
    """(n, ...), an entry for each slice of the call, the first dimension expanded or not."""
    return tensor.data_ptr(), 0, tensor.stride(0), 0


def of_steps(tensor: Tensor) -> Address:
    """(K, n, ...), an entry for each step and slice, the first two dimensions expanded or not."""
    return tensor.data_ptr(), tensor.stride(0), tensor.stride(1), 0


def per_row(value: Tensor) -> PerRow:
    """(K, n, B), (K, n) or (n,), expanded or not."""
    strides = value.stride()
    if value.ndim == 1:
        return value.data_ptr(), 0, strides[0], 0
    return value.data_ptr(), strides[0], strides[1], strides[2] if value.ndim == 3 else 0


def per_slice(value: Tensor | None) -> tuple[int | None, int, int]:
    """float64 (K, n) or (n,), expanded or not."""
    return (None, 0, 0) if value is None else per_row(value)[:3]


def rows_of(value: Gather) -> tuple[int, int, int, int]:
    indices = value.indices
    assert indices.is_contiguous() and value.replica.is_contiguous()
    return indices.data_ptr(), value.replica.data_ptr(), indices.shape[1], len(value.data)


def workspace(
    table: Table, slots: int, device: torch.device, *, by_group: bool
) -> tuple[dict[Buffer, Address], Tensor]:
    """The buffers of a table for one slice, allocated once for each group or slice."""
    width = cdiv(table.floats, ALIGNMENT) * ALIGNMENT
    whole = torch.empty(slots, width, dtype=torch.float32, device=device)
    start = whole.data_ptr()
    views = {}
    for buffer, (_, dtype) in table.shapes.items():
        entries = width * 4 // dtype.itemsize
        views[buffer] = (start + 4 * table.offsets[buffer], 0, entries, int(by_group))
    return views, whole
