"""Layout of expanded tensors, and the memory of a table's workspace."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .buffers import Buffer
from .stages import Table, floats


def as_bytes(flags: Tensor | None) -> Tensor | None:
    return None if flags is None else flags.view(torch.uint8)


def stored(value: Tensor) -> Tensor:
    """The entries of an expanded tensor that memory holds, each once."""
    return value[tuple(slice(0, 1 if stride == 0 else None) for stride in value.stride())]


def differs(value: Tensor, dim: int) -> bool:
    return value.shape[dim] > 1 and value.stride(dim) != 0


def compact(value: Tensor) -> Tensor:
    """An expanded tensor with contiguous entries, so that no launch has to copy them."""
    kept = stored(value)
    return value if kept.is_contiguous() else kept.contiguous().expand(value.shape)


@dataclass
class Workspace:
    """Memory for workspaces used one at a time; allocated again where it is too small."""

    whole: Tensor | None = None

    def take(self, size: int, device: torch.device) -> Tensor:
        if self.whole is None or self.whole.numel() < size:
            self.whole = torch.empty(size, dtype=torch.float32, device=device)
        return self.whole


def allocate(
    table: Table, device: torch.device, workspace: Workspace | None = None
) -> dict[Buffer, Tensor]:
    """The buffers of a table's workspace, views of one tensor."""
    whole = (Workspace() if workspace is None else workspace).take(table.floats, device)
    views = {}
    for buffer, shape in table.shapes.items():
        start = table.offsets[buffer]
        views[buffer] = whole[start : start + floats(shape)].view(shape[1]).view(shape[0])
    return views
