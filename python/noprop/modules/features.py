"""What the slices of a step read of x: x itself, or the features of an encoder that they share.

A shared encoder runs once for all slices of a replica. Each slice's loss leaves its gradient in a
leaf of that slice alone, and their sum goes through the encoder: no graph joins two blocks.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from noprop_kernels import philox

from .networks import autocast, trained
from .randomness import seeded, torch_seeds

if TYPE_CHECKING:
    from .stack import NetworkStack


class Features:
    """The features of the slices at `positions`.

    Args:
        rows: x (B, ...) of each slice.
        dtype: of the encoders' autocast.
    """

    def __init__(
        self,
        blocks: "NetworkStack",
        positions: list[int],
        rows: list[Tensor],
        dtype: torch.dtype | None,
    ) -> None:
        self.blocks, self.positions, self.leaves = blocks, positions, rows
        self.results: dict[int, Tensor] = {}  # by replica
        if not blocks.share_encoder:
            return
        for i, x in zip(positions, rows, strict=True):
            r = i // blocks.T
            if r in self.results:
                continue
            at = (blocks.seeds[i : i + 1], philox.STREAM_DROPOUT, blocks.draws[i : i + 1])
            (seed,) = torch_seeds(*at, philox.BLOCK_SHARED)
            with seeded(seed, blocks.device), autocast(blocks.device, dtype):
                self.results[r] = blocks.encode("train_steps", r, x)
        self.leaves = [
            self.results[r].detach().requires_grad_(self.learns(r)) for r in self.replicas()
        ]

    def replicas(self) -> list[int]:
        """The replica of each slice."""
        return [i // self.blocks.T for i in self.positions]

    def learns(self, r: int) -> bool:
        """Whether replica r's shared encoder gets a gradient."""
        return self.results[r].requires_grad

    def of(self, j: int) -> Tensor:
        """What the j-th slice reads."""
        return self.leaves[j]

    def backward(self, finite: Tensor) -> None:
        """The encoders' gradients, by the sum of the losses (n,) that are finite."""
        for r, result in self.results.items():
            if not self.learns(r):
                continue
            total = torch.zeros_like(result)
            for j, replica in enumerate(self.replicas()):
                grad = self.leaves[j].grad
                if replica == r and grad is not None:
                    total += torch.where(finite[j], grad, 0)
            torch.autograd.backward(result, total, inputs=trained(self.blocks.encoders[r]))

    def moved(self, applied: list[bool]) -> dict[int, int | None]:
        """Of each shared encoder the first of its slices that is updated; None: none is."""
        pairs = [*enumerate(self.replicas())]
        return {
            r: next((j for j, replica in pairs if replica == r and applied[j]), None)
            for r in self.results
        }
