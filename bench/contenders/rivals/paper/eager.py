"""eager: the blocks one after the other, each a module with a fused AdamW.

Channels last or contiguous, on cropped or whole images, compiled or not; compiled code gets
channels last from inductor, where its layout optimization is forced.
"""

from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from ....problem.problem import Problem, Weights
from ..block_major import BlockMajor
from ..sequential import Sequential
from .network import PaperBlock, each, images, without_counts


class Eager(Sequential):
    """
    Args:
        memory_format: of images, maps and the weights of convolutions.
        cropped: whether the images are.
        compiled: whether a block's forward and backward are.
        backend: of torch.compile.
    """

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        memory_format: torch.memory_format = torch.channels_last,
        cropped: bool = True,
        compiled: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.memory_format, self.cropped = memory_format, cropped
        super().__init__(problem, threads)
        self.run: Any = PaperBlock.__call__
        if compiled:
            forced = {"force_layout_optimization": True}
            options: Any = forced if backend == "inductor" else None
            self.run = torch.compile(
                self.run, fullgraph=True, dynamic=False, backend=backend, options=options
            )

    def make_block(self, t: int) -> nn.Module:
        return PaperBlock(self.problem, t).to(memory_format=self.memory_format)  # type: ignore

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, u_y = super().batch(rows)
        x = images(self.problem, x, self.cropped)
        return x.contiguous(memory_format=self.memory_format), u_y

    def u_hat(self, t: int, x: Tensor, z: Tensor) -> Tensor:
        return self.run(self.blocks[t], x, z, each(self.dropout, itemgetter(t)))

    def weights(self) -> Weights:
        return without_counts(super().weights())


class EagerBlockMajor(Eager, BlockMajor):
    """Of one process: each block runs its K steps in turn."""
