"""Our step of a CT's block and output head together, with a learned gamma or a fixed one."""

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import philox

from ..problem.problem import Problem, Weights
from .ours import Ours


class OursCoupled(Ours):
    """Coupled.step a step, on rows that torch gathers. In the maths "apart" gamma is fixed, and a
    step is train_step of the block and of the head: the difference is what the coupling costs.

    Args:
        maths: "coupled" or "apart".
    """

    def __init__(self, problem: Problem, threads: int, *, maths: str) -> None:
        self.learns = maths == "coupled"
        network = nk.GammaNetwork(problem.coupled["gamma.w1"].shape[1])
        self.ct = nk.CT(network) if self.learns else nk.CT()
        optimizer = nk.Adam(lr=problem.lr, weight_decay=problem.weight_decay)
        self.made = nk.Shared(self.ct, optimizer=optimizer)
        super().__init__(problem, threads, maths=maths)
        options = {"goal": self.ct, "shared": self.made, "optimizer": optimizer}
        self.head = nk.OutputHead(self.shape.D, self.shape.M, backend=self.backend, **options)
        self.coupled = nk.Coupled(self.blocks, self.head, self.made)
        params = self.own_params()
        with torch.no_grad():
            for name, value in params.items():
                value.copy_(problem.coupled[name])

    def goal(self) -> nk.CT:
        return self.ct

    def shared(self) -> nk.Shared:
        return self.made

    def own_params(self) -> Weights:
        """The head's and gamma's, by the twin's names."""
        head = {"head.weight": self.head.logits.weight, "head.bias": self.head.logits.bias}
        return head | dict(self.made.named_parameters())

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        self.refuse(eps)
        losses = []
        for rows in indices:
            x, y = self.X.index_select(0, rows), self.Y.index_select(0, rows)
            losses.append(self.step(x, y).loss)
        return torch.stack(losses)

    def step(self, x: Tensor, y: Tensor) -> nk.CoupledStep | nk.Step:
        if self.learns:
            return self.coupled.step(x, y)
        step = self.blocks.train_step(x, y)
        self.head.train_step(y, 1)
        return step

    def weights(self) -> Weights:
        own = {name: value.detach().clone() for name, value in self.own_params().items()}
        return super().weights() | own

    def check_eps(self, K: int, seed: int) -> tuple[None, Tensor]:
        s, seeds = self.shape, self.head.get_buffer("seeds")
        end = [philox.normal(seeds, philox.STREAM_HEAD, 0, k, 0, s.B, s.D) for k in range(K)]
        return None, torch.cat([super().check_eps(K, seed)[1], torch.stack(end)], dim=3)
