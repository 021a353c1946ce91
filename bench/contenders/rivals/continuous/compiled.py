"""compiled: a whole step in one compiled function, from t and noise to the state written in place.

`step_compiled` compiles a replica's step and runs the replicas one after the other,
`stacked_compiled` that of all, as batched products.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value

from ....problem.continuous import levels
from ....problem.problem import Problem, Weights
from ..paper.network import Drops, each
from ..step_compiled import State, adamw, copy_state, rates, zeros_like
from .network import encode, logits, loss, noised
from .stacked import forward, join, split
from .timed import Timed, stacked


def block_logits(p: Weights, x: Tensor, z: Tensor, time: Tensor, drops: Drops) -> Tensor:
    return logits(p, encode(p, x, drops), z, time)


def stacked_logits(p: Weights, x: Tensor, z: Tensor, time: Tensor, drops: Drops) -> Tensor:
    return forward(p, x, z, time, shared=False)


class StepCompiled(Timed):
    """
    Args:
        all_replicas: as batched products, of the MLP.
        backend: of torch.compile.
    """

    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        maths: str,
        all_replicas: bool = False,
        backend: str = "inductor",
    ) -> None:
        super().__init__(problem, threads, maths=maths)
        self.all_replicas, self.updates = all_replicas, 0
        if all_replicas:
            first = [split(problem.weights)]
        else:
            first = [self.first_params(r) for r in range(self.shape.T)]
        self.states: list[State] = [(p, zeros_like(p), zeros_like(p)) for p in first]
        run: Callable[..., Tensor] = stacked_logits if all_replicas else block_logits
        decay = problem.weight_decay

        def step(state, x, u_y, t, eps, drops, rate, correction):
            own = levels(maths, t)
            z, time = noised(own, u_y, eps), self.embed(t)

            def total(p: Weights) -> tuple[Tensor, Tensor]:
                losses = loss(maths, run(p, x, z, time, drops), own.weight, u_y, eps)
                return losses.sum(), losses

            grads, (_, losses) = grad_and_value(total, has_aux=True)(state[0])
            # an L2 penalty, which is no decay beside the step
            grads = {name: g + decay * state[0][name] for name, g in grads.items()}
            copy_state(state, adamw(state, grads, rate, 1.0, correction))
            return losses

        # convolutions of channels last, as the eager rivals have them
        forced = {"force_layout_optimization": True} if self.shape.image is not None else None
        options: Any = forced if backend == "inductor" else None
        self.step: Any = torch.compile(
            step, fullgraph=True, dynamic=False, backend=backend, options=options
        )

    def numbers(self, K: int) -> Tensor:
        """(K, 2, 4) float32: Adam's rate and correction of the next K steps, 16 bytes apart."""
        first, self.updates = self.updates + 1, self.updates + K
        steps = [rates(self.problem.lr, 0.0, first + k)[::2] for k in range(K)]
        return torch.tensor(steps, device=self.device)[:, :, None].repeat(1, 1, 4)

    @torch.no_grad()
    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        t, eps = self.drawn(indices, eps)
        history = []
        for rows, t_k, e_k, numbers in zip(
            indices, t, eps, self.numbers(len(indices)), strict=True
        ):
            x, u_y = self.batch(rows)
            now = numbers[:, 0].unbind()
            if self.all_replicas:
                history.append(self.step(self.states[0], x, u_y, t_k, e_k, {}, *now))
                continue
            for r, state in enumerate(self.states):
                drops = each(self.dropout, itemgetter(r))
                history.append(self.step(state, x, u_y, t_k[r], e_k[r], drops, *now))
        return torch.stack(history).view(len(indices), self.shape.T)

    def weights(self) -> Weights:
        if self.all_replicas:
            return join(self.states[0][0])
        return stacked([state[0] for state in self.states])
