"""A layer and a loss by the public functions, against torch.nn.Linear, torch.optim and autograd.

The layer is hx of the first block: B rows of F features to H, with AdamW's state to begin with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import noprop_kernels as nk

from ..contenders.rivals.step_compiled import adamw, rates
from ..problem.problem import Weights
from .given import GRADIENT, UPDATES, Part, PartCall

MOVING = ("linear", "dense_update")  # whose results are weights


class Layer:
    """Weights, moments and the gradient of the layer's result, those of every contender."""

    def __init__(self, given: Part) -> None:
        p = given.problem
        self.x, self.lr, self.weight_decay = given.x, p.lr, p.weight_decay
        self.w, self.m, self.v = (
            {part: tensors[f"hx.{part}"][0].clone() for part in ("weight", "bias")}
            for tensors in (p.weights, given.m, given.v)
        )
        generator = torch.Generator().manual_seed(7)
        self.d_y = GRADIENT * torch.randn(given.shape.B, given.shape.H, generator=generator)

    def grads(self) -> Weights:
        return {"weight": self.d_y.T @ self.x, "bias": self.d_y.sum(0)}

    def rule(self) -> nk.AdamW:
        return nk.AdamW(lr=self.lr, weight_decay=self.weight_decay)

    def optimizer(self, module: torch.nn.Module) -> torch.optim.AdamW:
        options: Any = {"lr": self.lr, "weight_decay": self.weight_decay, "fused": True}
        optimizer = torch.optim.AdamW(module.parameters(), **options)
        for name, value in module.named_parameters():
            step = torch.tensor(float(UPDATES))
            moments = {"exp_avg": self.m[name].clone(), "exp_avg_sq": self.v[name].clone()}
            optimizer.state[value] = {"step": step, **moments}
        return optimizer

    def module(self, module: torch.nn.Module) -> Any:
        module.load_state_dict(self.w)
        return module


def wanted(given: Part) -> Weights:
    """What the part's result must be, float64."""
    layer = Layer(given)
    w, m, v = (
        {name: value.double() for name, value in group.items()}
        for group in (layer.w, layer.m, layer.v)
    )
    layer.x, layer.d_y = layer.x.double(), layer.d_y.double()
    if given.maths == "loss":
        logits = given.logits[0].detach().double().requires_grad_()
        losses = (logits.softmax(-1) - given.u_y.double()).square().sum(-1)
        (d_logits,) = torch.autograd.grad(losses.sum(), logits)
        return {"losses": losses.detach(), "d_logits": d_logits}
    if given.maths == "dense":
        return {"y": layer.x @ w["weight"].T + w["bias"]}
    return adamw((w, m, v), layer.grads(), *rates(layer.lr, layer.weight_decay, UPDATES + 1))[0]


def linear(given: Part) -> PartCall:
    layer = Layer(given)
    module = layer.module(nk.Linear(given.shape.F, given.shape.H, optimizer=layer.rule()))
    twin = torch.nn.Linear(given.shape.F, given.shape.H)
    module.load_optimizer_state_dict(layer.optimizer(twin).state_dict())

    def once() -> Weights:
        module(layer.x).backward(layer.d_y)
        return dict(module.named_parameters())

    return once


def eager_linear(given: Part) -> PartCall:
    layer = Layer(given)
    module = layer.module(torch.nn.Linear(given.shape.F, given.shape.H))
    optimizer = layer.optimizer(module)

    def once() -> Weights:
        module(layer.x).backward(layer.d_y)
        optimizer.step()
        optimizer.zero_grad()
        return dict(module.named_parameters())

    return once


def update(given: Part) -> PartCall:
    layer = Layer(given)
    state = {f"{name}_m": value for name, value in layer.m.items()}
    state |= {f"{name}_v": value for name, value in layer.v.items()}
    state["updates"] = torch.tensor([UPDATES])

    def once() -> Weights:
        nk.functional.dense_update_(
            *(layer.x, layer.d_y, layer.w["weight"], layer.w["bias"]),
            optimizer=layer.rule(),
            state=state,
        )
        return layer.w

    return once


def eager_update(given: Part) -> PartCall:
    layer = Layer(given)
    module = layer.module(torch.nn.Linear(given.shape.F, given.shape.H))
    optimizer, params = layer.optimizer(module), dict(module.named_parameters())

    def once() -> Weights:
        for name, grad in layer.grads().items():
            params[name].grad = grad
        optimizer.step()
        return params

    return once


def compiled_update(given: Part, forward: bool = False) -> PartCall:
    """The step written out in one compiled function, with the layer's forward for `linear`."""
    layer, done = Layer(given), UPDATES

    @given.compile
    def step(w: Weights, m: Weights, v: Weights, *now: Tensor) -> Tensor | None:
        y = F.linear(layer.x, w["weight"], w["bias"]) if forward else None
        for old, new in zip((w, m, v), adamw((w, m, v), layer.grads(), *now), strict=True):
            for name, value in old.items():
                value.copy_(new[name])
        return y

    @torch.no_grad()
    def once() -> Weights:
        nonlocal done
        done += 1
        now = map(torch.tensor, rates(layer.lr, layer.weight_decay, done))
        step(layer.w, layer.m, layer.v, *now)
        return layer.w

    return once


def dense(given: Part, how: str) -> PartCall:
    layer = Layer(given)
    run = {"ours": nk.functional.dense, "eager": F.linear, "compiled": given.compile(F.linear)}[how]

    @torch.no_grad()
    def once() -> Weights:
        return {"y": run(layer.x, layer.w["weight"], layer.w["bias"])}

    return once


def loss(given: Part, how: str) -> PartCall:
    """Losses of the first block's rows, and their gradient."""
    module, u_y = nk.DenoisingLoss(), given.u_y

    def ours(logits: Tensor) -> Tensor:
        return module(logits, given.y)

    def written_out(logits: Tensor) -> Tensor:
        return (logits.softmax(-1) - u_y).square().sum(-1)

    compiled = given.compile(written_out)
    run = {"ours": ours, "eager": written_out, "compiled": compiled}[how]

    def once() -> Weights:
        logits = given.logits[0].detach().requires_grad_()
        losses = run(logits)
        (d_logits,) = torch.autograd.grad(losses.sum(), logits)
        return {"losses": losses.detach(), "d_logits": d_logits}

    return once


LAYERS: dict[str, dict[str, Callable[[Part], PartCall]]] = {
    "linear": {
        "ours": linear,
        "eager": eager_linear,
        "compiled": partial(compiled_update, forward=True),
    },
    "dense_update": {"ours": update, "eager": eager_update, "compiled": compiled_update},
    "dense": {how: partial(dense, how=how) for how in ("ours", "eager", "compiled")},
    "loss": {how: partial(loss, how=how) for how in ("ours", "eager", "compiled")},
}
