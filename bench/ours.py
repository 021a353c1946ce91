"""Our contender: noprop_kernels on the problem, through the names that every user has."""

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import native, noise

from .contender import PRECISIONS, Contender, Entry
from .problem import Problem, Weights

SEED = 0


class Ours(Contender):
    """K steps in one call of train_steps, which gathers the rows itself."""

    def __init__(self, problem: Problem, threads: int) -> None:
        super().__init__(problem, threads)
        s = self.shape
        make = nk.SGD if self.maths == "sgd" else nk.AdamW
        self.plan = nk.plans.mlp(s.F, s.D, s.M, hidden=s.H)
        self.blocks = nk.DenoisingBlocks(
            self.plan,
            nk.DT(nk.NoiseSchedule.cosine(T=s.T)),
            optimizer=make(lr=problem.lr, weight_decay=problem.weight_decay),
            seed=SEED,
            precision=problem.precision,
            backend="cpu",  # or none: the reference, which runs anything, is no contender
        )
        params = dict(self.blocks.named_parameters())
        with torch.no_grad():
            for name, value in problem.weights.items():
                params[name].copy_(value)

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        self.refuse(eps)
        return self.blocks.train_steps(self.X, self.Y, indices)

    @staticmethod
    def refuse(eps: Tensor | None) -> None:
        if eps is not None:
            raise ValueError("ours: eps must be None, the noise is a function of the seed")

    def weights(self) -> Weights:
        return {name: p.detach().clone() for name, p in self.blocks.named_parameters()}

    def check_eps(self, K: int, seed: int) -> tuple[None, Tensor]:
        s = self.shape
        seeds, block = torch.full((s.T,), SEED), torch.arange(s.T)
        drawn = [
            noise.normal(seeds, noise.STREAM_EPS, 0, draw, block, s.B, s.D) for draw in range(K)
        ]
        return None, torch.stack(drawn)

    def resident(self) -> dict[str, int]:
        """Of the object's own tensors; the counters are seeds, draws, updates and the like."""
        buffers = {name: buffer.nbytes for name, buffer in self.blocks.named_buffers()}
        moments = sum(size for name, size in buffers.items() if name.endswith(("_m", "_v")))
        weights = sum(parameter.nbytes for parameter in self.blocks.parameters())
        counters = sum(buffers.values()) - moments
        return {"weights": weights, "optimizer": moments, "counters": counters}

    def gradient_bytes(self) -> int:
        return 0  # a tile's gradient is used in registers, or in the workspace

    def step_bytes(self, indices: Tensor) -> int:
        return self.threads * native.workspace_bytes(self.plan, self.shape.B, self.shape.D)


class OursTrainStep(Ours):
    """One train_step a step, on rows that torch gathers: a user's own loop."""

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        self.refuse(eps)
        losses = []
        for rows in indices:
            x, y = self.X.index_select(0, rows), self.Y.index_select(0, rows)
            losses.append(self.blocks.train_step(x, y).loss)
        return torch.stack(losses)


class OursSGD(Ours):
    maths = "sgd"


OURS = (
    Entry("ours", Ours, precisions=PRECISIONS),
    Entry("ours_train_step", OursTrainStep, single=True, precisions=PRECISIONS),
    Entry("ours_sgd", OursSGD, slow=True),
)
