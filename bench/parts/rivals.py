"""The torch operations that a part replaces: eager, or written out and compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..contenders.rivals import stacked
from ..contenders.rivals.step_compiled import activations, adamw, backward, copy_state, head, rates
from ..problem.problem import Weights
from .given import UPDATES, Part, PartCall


def torch_draw(given: Part) -> PartCall:
    generator, eps = torch.Generator().manual_seed(0), torch.empty_like(given.z)
    return lambda: {"eps": eps.normal_(generator=generator)}


def torch_noise(given: Part, compiled: bool = False) -> PartCall:
    shape, embedding = given.z.shape, given.embedding

    def mix(y: Tensor) -> Tensor:
        return given.signal * embedding.index_select(0, y) + given.noise * torch.randn(shape)

    work = given.compile(mix) if compiled else mix
    return lambda: {"z": work(given.y)}


def torch_forward(given: Part, compiled: bool = False) -> PartCall:
    work: Any = partial(stacked.forward, shared=True)
    work = given.compile(work) if compiled else work

    @torch.no_grad()
    def once() -> Weights:
        return {"logits": work(given.params, given.x, given.z)}

    return once


def eager_head(given: Part) -> PartCall:
    def once() -> Weights:
        logits = given.logits.detach().requires_grad_()
        losses = stacked.losses_of(logits, given.u_y, given.problem.weight)
        (d_logits,) = torch.autograd.grad(losses.sum(), logits)
        return {"losses": losses.detach(), "d_logits": d_logits}

    return once


def compiled_head(given: Part) -> PartCall:
    work = given.compile(head)

    def once() -> Weights:
        losses, d_logits = work(given.logits, given.u_y, given.problem.weight)
        return {"losses": losses, "d_logits": d_logits}

    return once


def eager_graph(given: Part, params: Weights) -> Tensor:
    """Logits, by a forward that makes leaves of `params`."""
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    return stacked.forward(leaves, given.x, given.z, shared=True)


def eager_backward(given: Part) -> PartCall:
    logits, params = eager_graph(given, given.params), given.params
    leaves = list(params.values())

    def once() -> Weights:
        grads = torch.autograd.grad(logits, leaves, given.d_logits, retain_graph=True)
        return dict(zip(params, grads, strict=True))

    return once


def compiled_backward(given: Part) -> PartCall:
    saved, _ = activations(given.params, given.x, given.z, shared=True)
    work = given.compile(backward)
    return lambda: work(given.params, saved, given.d_logits)


def torch_update(given: Part, **how: bool) -> PartCall:
    params, grads = stacked.split(given.problem.weights), stacked.split(given.grads)
    optimizer = given.optimizer(params, **how)
    for owner, grad in zip(optimizer.param_groups[0]["params"], grads.values(), strict=True):
        owner.grad = grad

    def once() -> Weights:
        optimizer.step()
        return params

    return once


def compiled_update(given: Part) -> PartCall:
    grads = stacked.split(given.grads)

    def update(state, rate, keep, correction):
        copy_state(state, adamw(state, grads, rate, keep, correction))

    return stateful(given, given.compile(update))


def stateful(given: Part, work: Callable[..., None]) -> PartCall:
    """Calls work(state, *rates) with the rates of each next update."""
    state, done = given.state(), UPDATES

    @torch.no_grad()
    def once() -> Weights:
        nonlocal done
        done += 1
        work(state, *map(torch.tensor, rates(given.problem.lr, given.problem.weight_decay, done)))
        return state[0]

    return once


def eager_backward_update(given: Part) -> PartCall:
    params = stacked.split(given.problem.weights)
    logits = eager_graph(given, params)
    # autograd does not notice what moves `.data`, so that its graph stays valid as ours does
    optimizer = given.optimizer({name: p.data for name, p in params.items()}, fused=True)
    owners = optimizer.param_groups[0]["params"]

    def once() -> Weights:
        # not autograd.grad, whose gradients may be transposed: fused AdamW misreads those
        logits.backward(given.d_logits, retain_graph=True)
        for owner, param in zip(owners, params.values(), strict=True):
            owner.grad, param.grad = param.grad, None
        optimizer.step()
        return params

    return once


def compiled_backward_update(given: Part) -> PartCall:
    saved, _ = activations(given.params, given.x, given.z, shared=True)

    def update(state, *now):
        copy_state(state, adamw(state, backward(state[0], saved, given.d_logits), *now))

    return stateful(given, given.compile(update))
