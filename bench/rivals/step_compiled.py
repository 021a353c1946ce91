"""step_compiled: the whole step in one compiled function, gradients and AdamW written out.

Two forms, because inductor fuses the update into a product only where nothing is mutated: in
place, and returning new arrays; each with default settings or max-autotune. With bfloat16 the
weights are rounded once a step, and products add up in float32 and round their result, as
torch.bmm does; loss, optimizer and state are float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contender import Contender
from ..problem import Problem, Weights
from .stacked import join, split, stem

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


class Activations(NamedTuple):
    """What backward needs of forward, in the dtype of the products' operands."""

    x: Tensor  # (B, F)
    z: Tensor  # (T, B, D)
    hx: Tensor  # (T, B, H)
    hz: Tensor
    f: Tensor


def activations(p: Weights, x: Tensor, z: Tensor, shared: bool) -> tuple[Activations, Tensor]:
    """Activations and logits (T, B, M), of weights and inputs in the operands' dtype."""
    hx = stem(p["hx.weight"], p["hx.bias"], x, shared).relu()
    hz = torch.baddbmm(p["hz.bias"][:, None], z, p["hz.weight"].mT).relu()
    halves = torch.bmm(hx, p["f.x"].mT).float() + torch.bmm(hz, p["f.z"].mT).float()
    f = (p["f.bias"][:, None] + halves).relu().to(x.dtype)
    logits = torch.baddbmm(p["logits.bias"][:, None], f, p["logits.weight"].mT)
    return Activations(x, z, hx, hz, f), logits.float()


def head(logits: Tensor, u_y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (T,) and their gradient d_logits (T, B, M)."""
    u_hat = logits.softmax(dim=2)
    difference = u_hat - u_y
    losses = weight * difference.square().sum(dim=2).mean(dim=1)
    d_u_hat = (2 / logits.shape[1]) * weight[:, None, None] * difference
    return losses, u_hat * (d_u_hat - (d_u_hat * u_hat).sum(dim=2, keepdim=True))


def backward(p: Weights, a: Activations, d_logits: Tensor) -> Weights:
    """The gradient of each parameter, float32, of weights in the operands' dtype."""
    d_logits = d_logits.to(a.f.dtype)
    d_f = torch.bmm(d_logits, p["logits.weight"]) * (a.f > 0)
    d_hx = torch.bmm(d_f, p["f.x"]) * (a.hx > 0)
    d_hz = torch.bmm(d_f, p["f.z"]) * (a.hz > 0)
    x = a.x.expand(len(a.z), -1, -1)
    grads = {
        "hx.weight": torch.bmm(d_hx.mT, x),
        "hz.weight": torch.bmm(d_hz.mT, a.z),
        "f.x": torch.bmm(d_f.mT, a.hx),
        "f.z": torch.bmm(d_f.mT, a.hz),
        "logits.weight": torch.bmm(d_logits.mT, a.f),
    }
    for name, d_out in (("hx", d_hx), ("hz", d_hz), ("f", d_f), ("logits", d_logits)):
        grads[f"{name}.bias"] = d_out.float().sum(dim=1)
    return {name: grad.float() for name, grad in grads.items()}


def adamw(
    state: tuple[Weights, Weights, Weights], grads: Weights, rate: Any, keep: Any, correction: Any
) -> tuple[Weights, Weights, Weights]:
    """The weights and both moments after AdamW.

    rate = lr / (1 - beta1^k), keep = 1 - lr * weight_decay, correction = (1 - beta2^k)^(-1/2).
    """
    p, m, v = state
    new_p, new_m, new_v = {}, {}, {}
    for name, g in grads.items():
        new_m[name] = m[name] + (1 - BETA1) * (g - m[name])
        new_v[name] = BETA2 * v[name] + (1 - BETA2) * g * g
        root = new_v[name].sqrt() * correction + ADAM_EPS
        new_p[name] = keep * p[name] - rate * new_m[name] / root
    return new_p, new_m, new_v


def copy_state(state: tuple[Weights, ...], new: tuple[Weights, ...]) -> None:
    """Writes `new` into `state`, in place."""
    for old, now in zip(state, new, strict=True):
        for name, value in old.items():
            value.copy_(now[name])


def rates(lr: float, weight_decay: float, update: int) -> tuple[float, float, float]:
    """AdamW's rate, keep and correction in its update of this number, from 1."""
    rate, correction = lr / (1 - BETA1**update), (1 - BETA2**update) ** -0.5
    return rate, 1 - lr * weight_decay, correction


def zeros_like(params: Weights) -> Weights:
    return {name: torch.zeros_like(value) for name, value in params.items()}


class StepCompiled(Contender):
    """
    Attributes:
        lr: of the next step.
    """

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
        self.lr = problem.lr
        params = split(problem.weights)
        self.state = (params, zeros_like(params), zeros_like(params))
        self.updates = 0
        signal, noise = problem.signal[:, None, None], problem.noise[:, None, None]
        weight, dtype = problem.weight, getattr(torch, problem.precision)

        def new_state(state, x, u_y, eps, rate, keep, correction):
            z = signal * u_y + noise * eps
            p = {name: value.to(dtype) for name, value in state[0].items()}
            saved, logits = activations(p, x.to(dtype), z.to(dtype), shared)
            losses, d_logits = head(logits, u_y, weight)
            return losses, adamw(state, backward(p, saved, d_logits), rate, keep, correction)

        def update(state, *rest):
            losses, new = new_state(state, *rest)
            copy_state(state, new)
            return losses

        self.in_place = in_place
        self.step: Any = torch.compile(
            update if in_place else new_state,
            fullgraph=True,
            dynamic=False,
            backend=backend,
            mode="max-autotune" if tuned else None,
        )

    @torch.no_grad()
    def steps(self, indices: Tensor, eps: Tensor | None = None) -> Tensor:
        eps = self.draw(*indices.shape) if eps is None else eps
        history = []
        for rows, e in zip(indices, eps, strict=True):
            self.updates += 1
            # tensors, since each new Python number would compile anew
            now = map(torch.tensor, rates(self.lr, self.problem.weight_decay, self.updates))
            result = self.step(self.state, *self.batch(rows), e, *now)
            if self.in_place:
                history.append(result)
            else:
                losses, self.state = result
                history.append(losses)
        return torch.stack(history)

    def weights(self) -> Weights:
        return join(self.state[0])
