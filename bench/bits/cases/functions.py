"""The work of a case without blocks: the output head, layers, functions."""

import torch
from torch import Tensor

import noprop_kernels as nk

from .plans import Sizes
from .settings import DT, GOALS, OPTIMIZERS, K, Results, random

LABELS = (
    ("softmax", 0.0),
    ("softmax", 1.0),
    ("linear", 0.0),
    ("linear", 1.0),
    ("cross_entropy", 0.0),
)


def head(optimizer: str, precision: str, s: Sizes, B: int) -> Results:
    """The output head's training, and its answers afterwards."""
    made = nk.OutputHead(
        s.D,
        s.M,
        goal=GOALS[DT](),
        embedding=torch.randn(s.M, s.D, generator=random(5)),
        optimizer=OPTIMIZERS[optimizer],
        seed=s.seeds,
        precision=precision,
    )
    Y = torch.randint(s.M, (3 * B,), generator=random(6))
    yield "step", made.train_step(Y, 2)
    indices = torch.randint(3 * B, (K, B), generator=random(3))
    yield "loss", made.train_steps(Y, indices, torch.tensor([1, 2, 3]))
    yield "logits", made(torch.randn(B, s.D, generator=random(4)))
    yield "state", made.state_dict()


def layers(optimizer: str, precision: str, s: Sizes, B: int) -> Results:
    """A layer that updates itself, and its update as a function."""
    x = torch.randn(B, s.F, generator=random(1))
    weight = torch.randn(s.hidden, s.F, generator=random(2)) / 8
    bias = torch.randn(s.hidden, generator=random(3))
    d_y = torch.randn(B, s.hidden, generator=random(4)) / B
    layer = nk.Linear(s.F, s.hidden, optimizer=OPTIMIZERS[optimizer], precision=precision)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    for step in range(K):
        given = x.clone().requires_grad_()
        y = layer(given)
        y.backward(d_y)
        yield f"step{step}", {"y": y, "d_x": given.grad}
    yield "state", {**layer.state_dict(), "optimizer": layer.optimizer_state_dict()["state"]}
    state: dict[str, Tensor] = {}
    for step in range(K):
        yield (
            f"update{step}",
            nk.functional.dense_update_(
                x,
                d_y,
                weight,
                bias,
                optimizer=OPTIMIZERS[optimizer],
                state=state,
                input_grad=True,
                precision=precision,
            ),
        )
    yield "updated", {"weight": weight, "bias": bias, **state}


def dense(activation: str | None, precision: str, s: Sizes, B: int) -> Results:
    """One layer and its gradients."""
    x = torch.randn(B, s.F, generator=random(1)).requires_grad_()
    weight = (torch.randn(s.hidden, s.F, generator=random(2)) / 8).requires_grad_()
    bias = torch.randn(s.hidden, generator=random(3)).requires_grad_()
    y = nk.functional.dense(x, weight, bias, activation=activation, precision=precision)
    y.backward(torch.randn(y.shape, generator=random(4)))
    yield "y", y
    yield "grad", {"x": x.grad, "weight": weight.grad, "bias": bias.grad}


def label(kind: str, flow: float, s: Sizes, B: int) -> Results:
    """Noise on embeddings and the loss of a row, and their gradients."""
    table = torch.randn(s.M, s.D, generator=random(5)).requires_grad_()
    y = torch.randint(s.M, (B,), generator=random(6))
    signal = torch.rand(B, generator=random(7)).requires_grad_()
    z, eps = nk.functional.add_noise(
        y, signal, 0.5, seed=-3, draw=4, block=2, first_row=1, W_embed=table, sigma=0.25 * flow
    )
    yield "noised", {"z": z, "eps": eps}
    z.square().sum().backward()
    yield "d_noised", {"signal": signal.grad, "W_embed": table.grad}
    table.grad = None
    entropy = kind == "cross_entropy"
    logits = torch.randn(B, s.M, generator=random(8)).requires_grad_()
    loss = nk.functional.denoising_loss(
        logits,
        y,
        signal,
        W_embed=None if entropy else table,
        head=kind,
        flow=flow,
        eps=eps.detach() if flow else None,
    )
    yield "loss", loss
    loss.sum().backward()
    yield "d_loss", {"logits": logits.grad, "signal": signal.grad, "W_embed": table.grad}
