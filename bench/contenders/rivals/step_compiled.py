"""step_compiled: the whole step in one compiled function, gradients and AdamW written out.

Two forms, because inductor fuses the update into a product only where nothing is mutated: in
place, and returning new arrays; each with default settings, max-autotune or other options of the
compiler. With bfloat16 the weights are rounded once a step, and products add up in float32 and
round their result, as torch.bmm does; loss, optimizer and state are float32.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...problem.problem import Problem, Weights
from ..contender import Contender
from .stacked import join, split, stem

BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8


State = tuple[Weights, Weights, Weights]  # the weights and both moments


class Activations(NamedTuple):
    """Results of forward for backward, in the dtype of the products' operands."""

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


def head(
    logits: Tensor, u_y: Tensor, weight: Tensor, W_embed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Losses (T,) and their gradient d_logits (T, B, M); W_embed is (M, D), None for one-hot."""
    q = logits.softmax(dim=2)
    difference = (q if W_embed is None else q @ W_embed) - u_y
    losses = weight * difference.square().sum(dim=2).mean(dim=1)
    d_q = (2 / logits.shape[1]) * weight[:, None, None] * difference
    d_q = d_q if W_embed is None else d_q @ W_embed.T
    return losses, q * (d_q - (d_q * q).sum(dim=2, keepdim=True))


def factors(
    p: Weights, a: Activations, d_logits: Tensor
) -> tuple[dict[str, tuple[Tensor, Tensor]], Weights]:
    """The two factors of each weight's gradient, and each bias' gradient, float32.

    The weights are in the operands' dtype.
    """
    d_logits = d_logits.to(a.f.dtype)
    d_f = torch.bmm(d_logits, p["logits.weight"]) * (a.f > 0)
    d_hx = torch.bmm(d_f, p["f.x"]) * (a.hx > 0)
    d_hz = torch.bmm(d_f, p["f.z"]) * (a.hz > 0)
    weights = {
        "hx.weight": (d_hx.mT, a.x.expand(len(a.z), -1, -1)),
        "hz.weight": (d_hz.mT, a.z),
        "f.x": (d_f.mT, a.hx),
        "f.z": (d_f.mT, a.hz),
        "logits.weight": (d_logits.mT, a.f),
    }
    outputs = (("hx", d_hx), ("hz", d_hz), ("f", d_f), ("logits", d_logits))
    return weights, {f"{name}.bias": d_out.float().sum(dim=1) for name, d_out in outputs}


def backward(p: Weights, a: Activations, d_logits: Tensor) -> Weights:
    """The gradient of each parameter, float32, of weights in the operands' dtype."""
    weights, biases = factors(p, a, d_logits)
    return {name: torch.bmm(*pair).float() for name, pair in weights.items()} | biases


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
    Args:
        in_place: the state is written, else returned anew.
        tuned: by max-autotune.
        shared: the layer that reads x as one product for all blocks.
        options: of torch.compile.
        backend: of torch.compile.

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
        options: dict[str, Any] | None = None,
        backend: str = "inductor",
    ) -> None:
        super().__init__(problem, threads)
        self.lr = problem.lr
        params = split(problem.weights)
        self.state = (params, zeros_like(params), zeros_like(params))
        self.updates = 0
        signal, noise = problem.signal[:, None, None], problem.noise[:, None, None]
        weight, W_embed = problem.weight, problem.embedding
        # tf32 is a setting of the process, and no dtype
        dtype = torch.bfloat16 if problem.precision == "bfloat16" else torch.float32

        def new_state(state, x, u_y, eps, rate, keep, correction):
            z = signal * u_y + noise * eps
            p = {name: value.to(dtype) for name, value in state[0].items()}
            saved, logits = activations(p, x.to(dtype), z.to(dtype), shared)
            losses, d_logits = head(logits, u_y, weight, W_embed)
            return losses, self.updated(state, p, saved, d_logits, rate, keep, correction)

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
            options=options,
        )

    @staticmethod
    def updated(state: State, p: Weights, saved: Activations, d_logits: Tensor, *now: Any) -> State:
        """The state after AdamW with the numbers `now`."""
        return adamw(state, backward(p, saved, d_logits), *now)

    def numbers(self, K: int) -> Tensor:
        """(K, 3, 4) float32: AdamW's numbers of the next K steps, each 16 bytes from the next."""
        first, self.updates = self.updates + 1, self.updates + K
        steps = [rates(self.lr, self.problem.weight_decay, first + k) for k in range(K)]
        now = torch.tensor(steps)[:, :, None].repeat(1, 1, 4)
        if self.device.type == "cuda":
            now = now.pin_memory()
        return now.to(self.device, non_blocking=True)

    @torch.no_grad()
    def steps(
        self, indices: Tensor, eps: Tensor | None = None, numbers: Tensor | None = None
    ) -> Tensor:
        eps = self.draw(*indices.shape) if eps is None else eps
        numbers = self.numbers(len(indices)) if numbers is None else numbers
        history = []
        for rows, e, step in zip(indices, eps, numbers, strict=True):
            # tensors, since each new Python number would compile anew
            now = step[:, 0].unbind()
            result = self.step(self.state, *self.batch(rows), e, *now)
            if self.in_place:
                history.append(result)
            else:
                losses, self.state = result
                history.append(losses)
        return torch.stack(history)

    def weights(self) -> Weights:
        return join(self.state[0])
