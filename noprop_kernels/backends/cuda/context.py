"""One call on a table: its buffers and its records."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..gpu.buffers import Buffer
from ..gpu.context import Context
from ..gpu.stages import Table
from .buffers import Address, address

Fields = dict[str, Any]


def stage(kind: str, tiles: int, **fields: Any) -> Fields:
    """A stage of the program: its kind's fields by the names of program.h."""
    return {"kind": kind, "tiles": tiles, "first": 0, "barrier": 0, "once": -1, **fields}


@dataclass
class LaunchContext(Context):
    """The inputs from which a program's stages are made.

    Args:
        device: the tensors' device.
        index: (n,) int64, or (K, n): a slice's position in each step.
        at: addresses of the table's buffers, the call's tensors among them.
        table: its workspace is allocated when the number of groups is known.
        out_grads: gradients (n, ...) to write by parameter's name.
        held: tensors that live until the launch is on its stream.
    """

    device: torch.device
    K: int = 1
    at: dict[Buffer, Address] = field(default_factory=dict)
    table: Table | None = None
    out_grads: dict[str, Tensor] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)

    @property
    def n(self) -> int:
        return self.index.shape[-1]

    def hold(self, tensor: Tensor) -> Tensor:
        self.held.append(tensor)
        return tensor

    def parameter(self, name: str) -> tuple[int | None, ...]:
        """A stacked parameter, its moments and its gradient's buffer."""
        slices, value = self.slices, self.slices.params[name]
        state = (value, slices.m.get(name), slices.v.get(name), self.out_grads.get(name))
        return *map(address, state), value[0].numel()

    def counters(self) -> tuple[int | None, int | None]:
        return address(self.slices.draws), address(self.slices.updates)
