"""What every contender of a part is given, and how it is called."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..contenders.contender import Contender
from ..contenders.rivals import stacked
from ..contenders.rivals.step_compiled import head
from ..problem.problem import Problem, Weights

UPDATES = 5  # done already, so that the moments count
GRADIENT = 1e-3  # size of the gradients that are given to `update`

PartCall = Callable[[], Weights]


class Part(Contender):
    """Does one part again and again; `once` is made of the inputs that all are given.

    Args:
        part: which one, and what its result is compared as.
        make: of this object, makes what does the part once and returns its result by name.
        backend: of torch.compile.
    """

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        part: str,
        make: "Callable[[Part], PartCall]",
        backend: str = "inductor",
    ) -> None:
        super().__init__(problem, threads)
        s, self.maths = self.shape, part
        self.compile = partial(torch.compile, fullgraph=True, dynamic=False, backend=backend)
        self.x, self.y = self.X[: s.B].clone(), self.Y[: s.B].clone()
        self.u_y = one_hot(self.y, s.M).float()
        self.signal, self.noise = problem.signal[:, None, None], problem.noise[:, None, None]
        self.z = self.signal * self.u_y + self.noise * problem.eps(1, seed=4)[0]
        self.params = stacked.split(problem.weights)
        self.logits = stacked.forward(self.params, self.x, self.z, shared=True)
        self.d_logits = head(self.logits, self.u_y, problem.weight)[1]
        generator = torch.Generator().manual_seed(6)
        shapes = {name: value.shape for name, value in problem.weights.items()}
        draw = partial(torch.randn, generator=generator)
        self.grads = {name: GRADIENT * draw(shape) for name, shape in shapes.items()}
        self.m = {name: GRADIENT * draw(shape) for name, shape in shapes.items()}
        self.v = {name: GRADIENT**2 * draw(shape).square() for name, shape in shapes.items()}
        self.once = make(self)

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        for _ in indices:
            self.once()
        return torch.empty(0)

    def flop(self) -> int:
        s, forward = self.shape, self.shape.forward_flop
        layer = 2 * s.B * s.F * s.H  # of one product of `layers`' layer
        both = {"backward": self.shape.flop - forward, "backward_update": self.shape.flop - forward}
        one = {"linear": 2 * layer, "dense_update": layer, "dense": layer}
        return ({"forward": forward} | both | one).get(self.maths, 0)

    def traffic(self) -> int:
        arrays = {"forward": 1, "backward": 2, "update": 7, "backward_update": 6}
        one = {"linear": 7, "dense_update": 6, "dense": 1}
        layer = (self.shape.F + 1) * self.shape.H * one.get(self.maths, 0)
        return 4 * (self.shape.parameters * arrays.get(self.maths, 0) + layer)

    def step_bytes(self, indices: Tensor) -> None:
        return None

    def state(self) -> tuple[Weights, Weights, Weights]:
        """Copies of the weights and moments to begin with, as the rivals split them."""
        return stacked.split(self.problem.weights), stacked.split(self.m), stacked.split(self.v)

    def optimizer(self, params: Weights, **how: Any) -> torch.optim.AdamW:
        """AdamW on `params`, in place, with the moments to begin with."""
        _, m, v = self.state()
        owners = {name: torch.nn.Parameter(value) for name, value in params.items()}
        lr, weight_decay = self.problem.lr, self.problem.weight_decay
        optimizer = torch.optim.AdamW(owners.values(), lr=lr, weight_decay=weight_decay, **how)
        for name, owner in owners.items():
            step = torch.tensor(float(UPDATES))
            optimizer.state[owner] = {"step": step, "exp_avg": m[name], "exp_avg_sq": v[name]}
        return optimizer
