"""block_major: the modules of `sequential`; each block runs its K steps in turn and stays in
cache."""

import torch
from torch import Tensor

from .sequential import Sequential


class BlockMajor(Sequential):
    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        K, T = len(indices), self.shape.T
        eps = self.draw(*indices.shape) if eps is None else eps
        losses = torch.empty(K, T)
        batches = [self.batch(rows) for rows in indices]  # gathered once for all blocks
        for t in range(T):
            for k, (x, u_y) in enumerate(batches):
                losses[k, t] = self.step(t, x, u_y, eps[k, t])
        return losses
