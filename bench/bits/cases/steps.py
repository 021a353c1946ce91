"""The work of a case on blocks: steps, gradients, predictions."""

from inspect import signature
from typing import Any

import torch

import noprop_kernels as nk

from .settings import DT, GOALS, OPTIMIZERS, K, Results, Setting, random


def train_step(setting: Setting, B: int) -> Results:
    """Three steps: of all blocks, of one block, and with every gradient that can be requested."""
    blocks, (x, y) = setting.blocks(), setting.data(B)
    wanted: dict[str, Any] = {
        name: True for name in signature(blocks.train_step).parameters if "_grad" in name
    }
    yield "all", blocks.train_step(x, y)
    yield "one", blocks.train_step(x, y, blocks=blocks.T - 1 or 1, lr=0.02)
    yield "gradients", blocks.train_step(x, y, **wanted)
    yield "state", blocks.state_dict()


def train_steps(
    setting: Setting,
    B: int,
    dtype: torch.dtype,
    normalize: bool,
    gathered: bool = True,
    blocks: int | None = None,
) -> Results:
    """K steps in one call, of all blocks or of one."""
    made, (X, Y) = setting.blocks(), setting.data(3 * B, dtype)
    indices = torch.randint(3 * B, (K, len(setting.s.seeds), B), generator=random(3))
    options: dict[str, Any] = {"lr": torch.tensor([0.01, 0.02, 0.03]), "blocks": blocks}
    if normalize:
        options["normalize"] = {
            name: (
                torch.rand(value.shape[1], generator=random(1)),
                0.3 + torch.rand(value.shape[1], generator=random(2)),
            )
            for name, value in X.items()
        }
    if gathered:
        yield "loss", made.train_steps(X, Y, indices, **options)
    else:
        batches = {name: value.view(K, B, *value.shape[1:]) for name, value in X.items()}
        yield "loss", made.train_steps(batches, Y.view(K, B), None, **options)
    yield "state", made.state_dict()


def halves(setting: Setting, B: int) -> Results:
    """Three times the gradients and the update as two calls, then the caller's own loss."""
    blocks, (x, y) = setting.blocks(), setting.data(B)
    for step in range(K):
        gradients = blocks.gradients(x, y)
        yield f"gradients{step}", gradients
        yield f"applied{step}", blocks.update(gradients)
    z = torch.randn(B, blocks.D, generator=random(7)).requires_grad_()
    t = {} if setting.goal == DT else {"t": torch.rand(B, generator=random(9))}
    logits = blocks(x, z, **t)
    yield "logits", logits
    d_logits = torch.randn(logits.shape, generator=random(8)) / B
    yield "update", blocks.backward_update(logits, d_logits)
    yield "state", blocks.state_dict()


def autograd(setting: Setting, B: int) -> Results:
    """The loss by autograd."""
    blocks, (x, y) = setting.blocks(), setting.data(B)
    x = {name: value.requires_grad_() for name, value in x.items()}
    loss = blocks.loss(x, y)
    yield "loss", loss
    loss.sum().backward()
    yield "d_x", {name: value.grad for name, value in x.items()}
    yield "grad", {name: value.grad for name, value in blocks.named_parameters()}
    yield "noised", blocks.add_noise(y)
    yield "state", blocks.state_dict()


def predict(setting: Setting, B: int) -> Results:
    """The chain, or each sampler, with its noise, and from the mean."""
    blocks, (x, _) = setting.blocks(), setting.data(B)
    samplers = blocks.goal.samplers if setting.goal != DT else (None,)
    for sampler in samplers:
        options = {} if sampler is None else {"sampler": sampler, "steps": K}
        yield f"noise{sampler or ''}", blocks.predict(x, samples=2, keep="all", **options)
        if sampler != "ancestral":
            yield f"mean{sampler or ''}", blocks.predict(x, noise=False, **options)


def coupled(setting: Setting, B: int) -> Results:
    """Blocks, output head, and the embeddings and the schedule that they learn."""
    s, goal = setting.s, GOALS[setting.goal]()
    if setting.goal == "ct":
        goal = nk.CT(nk.GammaNetwork(hidden=5))
    optimizer = OPTIMIZERS[setting.optimizer or "sgd"]
    options: dict[str, Any] = {"optimizer": optimizer, "seed": s.seeds}
    shared = nk.Shared(goal, nk.LearnedEmbedding(s.M, s.D), **options)
    head = nk.OutputHead(s.D, s.M, goal=goal, shared=shared, **options)
    learner = nk.Coupled(setting.blocks(goal, shared=shared), head, shared)
    x, y = setting.data(B)
    for step in range(1, K + 1):
        yield f"step{step}", learner.step(x, y, step if setting.goal == DT else None)
    yield "state", learner.state_dict()
