"""A CT's coupled step as PyTorch's experts would write it: one loss, one fused Adam, in float32.

`CoupledEager` by autograd, `CoupledCompiled` as one compiled function to the state in place.
"""

from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from ....problem import coupled
from ....problem.problem import Problem, Weights
from ..paper.network import Drops
from ..step_compiled import State, adamw, copy_state, rates, zeros_like
from .network import encode, logits, loss, noised
from .timed import Timed, adam

FIRST = 0  # the only replica


class Coupled(Timed):
    """What both forms have in common: all parameters, drawn t and noise, the loss of a step."""

    def __init__(self, problem: Problem, threads: int, *, maths: str) -> None:
        super().__init__(problem, threads, maths=maths)
        shared = {name: value.clone() for name, value in problem.coupled.items()}
        self.params = self.first_params(FIRST) | shared

    def check_eps(self, K: int, seed: int) -> tuple[Tensor | None, Tensor]:
        end = self.problem.eps(K, seed + 1)[..., : self.shape.D]
        eps = torch.cat([self.problem.eps(K, seed), end], dim=3)
        return eps, eps

    def noise(self, indices: Tensor, eps: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """t (K, B), eps and the head's (K, B, D)."""
        D = self.shape.D
        if eps is not None:
            e, t, end = eps[:, 0].split([D, 1, D], dim=2)
            return t[..., 0].contiguous(), e.contiguous(), end.contiguous()  # as if drawn
        t, e = self.drawn(indices, None)
        return t[:, 0], e[:, 0], self.draw(*indices.shape)[:, 0]

    def losses(
        self, p: Weights, x: Tensor, y: Tensor, u_y: Tensor, t: Tensor, noise: Tensor, drops: Drops
    ) -> tuple[Tensor, Tensor]:
        """Of a step, and of its block; noise (2, B, D), the head's behind."""
        e, end = noise
        s = coupled.scale(p, t)
        found = logits(p, encode(p, x, drops), noised(s.rows, u_y, e), self.embed(t))
        of_block = loss("ct", found, s.rows.weight, u_y, e)
        return of_block + coupled.rest_of_loss(p, s, y, u_y, end), of_block

    def drops(self) -> Drops:
        return {n: d[FIRST] if isinstance(d, Tensor) else d for n, d in self.dropout.items()}

    def weights(self) -> Weights:
        p = self.params
        shared = {name: p[name].detach().clone() for name in p if name not in self.problem.weights}
        own = {name: p[name].detach()[None].contiguous() for name in self.problem.weights}
        return own | shared


class CoupledEager(Coupled):
    def __init__(self, problem: Problem, threads: int, *, maths: str) -> None:
        super().__init__(problem, threads, maths=maths)
        self.optimizer = adam([p.requires_grad_() for p in self.params.values()], problem)

    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        t, e, end = self.noise(indices, eps)
        history = []
        for k, rows in enumerate(indices):
            x, u_y = self.batch(rows)
            noise = torch.stack([e[k], end[k]])
            of = self.losses(self.params, x, self.Y[rows], u_y, t[k], noise, self.drops())
            of[0].backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            history.append(of[1].detach()[None])
        return torch.stack(history)


class CoupledCompiled(Coupled):
    """
    Args:
        backend: of torch.compile.
    """

    def __init__(
        self, problem: Problem, threads: int, *, maths: str, backend: str = "inductor"
    ) -> None:
        super().__init__(problem, threads, maths=maths)
        zeros = zeros_like(self.params), zeros_like(self.params)
        self.state: State = (self.params, *zeros)
        self.updates, decay = 0, problem.weight_decay

        def step(state, x, y, u_y, t, noise, drops, rate, correction):
            def of(p: Weights) -> tuple[Tensor, Tensor]:
                return self.losses(p, x, y, u_y, t, noise, drops)

            grads, (_, of_block) = grad_and_value(of, has_aux=True)(state[0])
            # an L2 penalty, which is no decay beside the step
            grads = {name: g + decay * state[0][name] for name, g in grads.items()}
            copy_state(state, adamw(state, grads, rate, 1.0, correction))
            return of_block

        forced = {"force_layout_optimization": True} if self.shape.image is not None else None
        options: Any = forced if backend == "inductor" else None
        self.step: Any = torch.compile(
            step, fullgraph=True, dynamic=False, backend=backend, options=options
        )

    @torch.no_grad()
    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        t, e, end = self.noise(indices, eps)
        history = []
        for k, rows in enumerate(indices):
            self.updates += 1
            now = torch.tensor(rates(self.problem.lr, 0.0, self.updates)[::2]).unbind()
            x, u_y = self.batch(rows)
            noise = torch.stack([e[k], end[k]])
            given = (x, self.Y[rows], u_y, t[k], noise, self.drops())
            history.append(self.step(self.state, *given, *now)[None].clone())
        return torch.stack(history)
