"""What networks of one's own take: as much of an nk.Plan as the trainer reads."""

import math
from dataclasses import dataclass

from torch import nn

Shape = tuple[int, ...]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Signature:
    """The inputs of a network of one's own.

    Args:
        inputs: shapes of a row by name; "x" is among them where its shape is known.
        norm: whether there is batch norm, which trains on two rows at least.
        parameters: of one block, with its own encoder.
    """

    inputs: dict[str, Shape]
    norm: bool
    parameters: int

    @property
    def shapes(self) -> dict[str, Shape]:
        return self.inputs

    @property
    def widths(self) -> dict[str, int]:
        return {name: math.prod(shape) for name, shape in self.inputs.items()}

    def has_norm(self) -> bool:
        return self.norm

    def num_parameters(self) -> int:
        return self.parameters


def has_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(part, BATCH_NORMS) for part in module.modules())
