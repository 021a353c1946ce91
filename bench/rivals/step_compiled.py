"""step_compiled: the whole step in one compiled function, gradients and AdamW written out.

Two forms, because inductor fuses the update into a product only where nothing is mutated: in
place, and returning new arrays; each with default settings or max-autotune.
"""

from typing import Any

import torch
from torch import Tensor

from ..contender import Contender
from ..problem import Problem, Weights
from .stacked import join, split, stem

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


def gradients(
    p: Weights, x: Tensor, z: Tensor, u_y: Tensor, weight: Tensor, shared: bool
) -> tuple[Tensor, Weights]:
    """Losses (T,) and the gradient of each parameter."""
    hx = stem(p["hx.weight"], p["hx.bias"], x, shared).relu()
    hz = torch.baddbmm(p["hz.bias"][:, None], z, p["hz.weight"].mT).relu()
    f = (p["f.bias"][:, None] + torch.bmm(hx, p["f.x"].mT) + torch.bmm(hz, p["f.z"].mT)).relu()
    logits = torch.baddbmm(p["logits.bias"][:, None], f, p["logits.weight"].mT)
    u_hat = logits.softmax(dim=2)
    difference = u_hat - u_y
    losses = weight * difference.square().sum(dim=2).mean(dim=1)

    d_u_hat = (2 / x.shape[0]) * weight[:, None, None] * difference
    d_logits = u_hat * (d_u_hat - (d_u_hat * u_hat).sum(dim=2, keepdim=True))
    d_f = torch.bmm(d_logits, p["logits.weight"]) * (f > 0)
    d_hx = torch.bmm(d_f, p["f.x"]) * (hx > 0)
    d_hz = torch.bmm(d_f, p["f.z"]) * (hz > 0)
    T = len(weight)
    return losses, {
        "hx.weight": torch.bmm(d_hx.mT, x.expand(T, -1, -1)),
        "hx.bias": d_hx.sum(dim=1),
        "hz.weight": torch.bmm(d_hz.mT, z),
        "hz.bias": d_hz.sum(dim=1),
        "f.x": torch.bmm(d_f.mT, hx),
        "f.z": torch.bmm(d_f.mT, hz),
        "f.bias": d_f.sum(dim=1),
        "logits.weight": torch.bmm(d_logits.mT, f),
        "logits.bias": d_logits.sum(dim=1),
    }


class StepCompiled(Contender):
    def __init__(
        self,
        problem: Problem,
        threads: int,
        *,
        in_place: bool,
        tuned: bool = False,
        shared: bool = False,
        backend: str = "inductor",
    ) -> None:
        super().__init__(problem, threads)
        self.params: Weights = split(problem.weights)
        self.m = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.v = {name: torch.zeros_like(value) for name, value in self.params.items()}
        self.updates = 0
        signal, noise = problem.signal[:, None, None], problem.noise[:, None, None]
        weight, keep = problem.weight, 1 - problem.lr * problem.weight_decay

        def new_state(p, m, v, x, u_y, eps, rate, correction):
            z = signal * u_y + noise * eps
            losses, grads = gradients(p, x, z, u_y, weight, shared)
            new_p, new_m, new_v = {}, {}, {}
            for name, g in grads.items():
                new_m[name] = m[name] + (1 - BETA1) * (g - m[name])
                new_v[name] = BETA2 * v[name] + (1 - BETA2) * g * g
                root = new_v[name].sqrt() * correction + ADAM_EPS
                new_p[name] = keep * p[name] - rate * new_m[name] / root
            return losses, (new_p, new_m, new_v)

        def update(p, m, v, *rest):
            losses, new = new_state(p, m, v, *rest)
            for old, now in zip((p, m, v), new, strict=True):
                for name, value in old.items():
                    value.copy_(now[name])
            return losses

        self.in_place = in_place
        self.step = torch.compile(
            update if in_place else new_state,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            mode="max-autotune-no-cudagraphs" if tuned else None,
        )

    @torch.no_grad()
    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        eps = self.draw(len(indices)) if eps is None else eps
        history = []
        for rows, e in zip(indices, eps, strict=True):
            self.updates += 1
            # tensors, since each new Python number would compile anew
            rate = torch.tensor(self.problem.lr / (1 - BETA1**self.updates))
            correction = torch.tensor((1 - BETA2**self.updates) ** -0.5)
            state = (self.params, self.m, self.v)
            result: Any = self.step(*state, *self.batch(rows), e, rate, correction)
            if self.in_place:
                history.append(result)
            else:
                losses, (self.params, self.m, self.v) = result
                history.append(losses)
        return torch.stack(history)

    def weights(self) -> Weights:
        return join(self.params)
