"""eager: the replicas one after the other, each with autograd and a fused Adam."""

from operator import itemgetter

import torch
from torch import Tensor

from ....problem.continuous import Levels, levels
from ....problem.problem import Problem, Weights
from ..paper.network import each
from .network import encode, logits, loss, noised
from .timed import Timed, adam, stacked


class Eager(Timed):
    """
    Args:
        block_major: each replica takes its K steps in turn, and stays in cache.
    """

    def __init__(
        self, problem: Problem, threads: int, *, maths: str, block_major: bool = False
    ) -> None:
        super().__init__(problem, threads, maths=maths)
        self.block_major = block_major
        self.params = [self.first_params(r) for r in range(self.shape.T)]
        for params in self.params:
            for param in params.values():
                param.requires_grad_()
        self.optimizers = [adam([*params.values()], problem) for params in self.params]

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        (K, _), R = indices.shape, self.shape.T
        t, eps = self.drawn(indices, eps)
        numbers = levels(self.maths, t)
        losses = torch.empty(K, R, device=self.device)

        def step(k: int, r: int, x: Tensor, u_y: Tensor) -> None:
            own = Levels(*(value[k, r] for value in numbers))
            losses[k, r] = self.step(r, x, u_y, own, self.embed(t[k, r]), eps[k, r])

        if self.block_major:
            batches = [self.batch(rows) for rows in indices]  # gathered once for all
            for r in range(R):
                for k, batch in enumerate(batches):
                    step(k, r, *batch)
            return losses
        for k, rows in enumerate(indices):
            batch = self.batch(rows)
            for r in range(R):
                step(k, r, *batch)
        return losses

    def step(
        self, r: int, x: Tensor, u_y: Tensor, levels: Levels, time: Tensor, eps: Tensor
    ) -> Tensor:
        """Replica r's loss, after its update."""
        p, drops = self.params[r], each(self.dropout, itemgetter(r))
        found = logits(p, encode(p, x, drops), noised(levels, u_y, eps), time)
        value = loss(self.maths, found, levels.weight, u_y, eps)
        value.backward()
        self.optimizers[r].step()
        self.optimizers[r].zero_grad(set_to_none=True)
        return value.detach()

    def gradient_bytes(self) -> int:
        return 4 * self.shape.parameters // self.shape.T  # each replica frees its own

    def weights(self) -> Weights:
        return stacked(self.params)
