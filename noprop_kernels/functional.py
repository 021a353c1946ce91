"""The parts of a step as functions of tensors: noise, a dense layer, the denoising loss, an update.

Every backend has them. Inside torch.compile they are custom operations (see autograd/custom_op.py).
"""

import torch
from torch import Tensor

from .arguments.scalars import number_tensor, seed_list
from .autograd import dense_ops, label_ops
from .autograd.layer import check_layer, check_rows
from .backends import dispatch
from .check import (
    LARGEST,
    MOST_COUNT,
    check_count,
    check_counter,
    check_number,
    check_positive,
    check_tensor,
)
from .optimizers import Optimizer, check_optimizer
from .plan import ACTIVATION_NAMES

HEADS = ("softmax", "linear", "cross_entropy")
INT64 = (torch.int64,)


def add_noise(
    y: Tensor,
    signal: float | Tensor,
    noise: float | Tensor,
    *,
    seed: int,
    draw: int = 0,
    block: int = 0,
    first_row: int = 0,
    W_embed: Tensor | None = None,
    num_classes: int | None = None,
    sigma: float = 0.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Noisy label embeddings, z = signal * W_embed[y] + noise * eps + sigma * eps_1.

    A sample of q(z_t | y) where signal = sqrt(alpha_bar_t) and noise = sqrt(1 - alpha_bar_t)
    (arXiv:2503.24322v2, eq. 6). eps is a function of (seed, draw, block, row, column) alone, that
    of a DenoisingBlocks at the same address.

    Args:
        y: (B,) int64, labels.
        signal, noise: numbers or (B,) float32, in which z is differentiable.
        seed: int64, of the noise.
        draw: the number of the draw, counted in steps.
        block: the paper's t - 1; 0 where there is one block.
        first_row: position of row 0 in the whole batch.
        W_embed: (M, D) float32, in which z is differentiable; None: one-hot.
        num_classes: M, needed where W_embed is None.
        sigma: deviation of flow matching's second noise.
        backend: a backend to force; None: the best that runs here.

    Returns:
        z and eps, (B, D) float32 each.

    Raises:
        ValueError: an argument does not fit.
        BackendError: no backend can run it.
    """
    op = "add_noise"
    if not torch.compiler.is_compiling():
        where = (seed, draw, block, first_row)
        made = label_ops.noise_at_once(
            y, signal, noise, W_embed, num_classes, where, sigma, backend
        )
        if made is not None:
            return made
    (B,) = check_tensor(op, "y", y, shape=(None,), dtype=INT64).shape
    (seed,) = seed_list(op, [seed])
    draw, block = check_count(op, "draw", draw), check_count(op, "block", block, 0xFFFF)
    first_row = check_count(op, "first_row", first_row, MOST_COUNT + 1 - B)
    sigma = check_number(op, "sigma", sigma, "be finite", lambda value: abs(value) <= LARGEST)
    if W_embed is None:
        D = check_positive(op, "num_classes", num_classes)
    else:
        D = check_tensor(op, "W_embed", W_embed, shape=(None, None), device=y.device).shape[1]
    numbers = (per_row(op, "signal", signal, y), per_row(op, "noise", noise, y))
    run = label_ops.noise_op if torch.compiler.is_compiling() else label_ops.noise_node
    return run(y, *numbers, W_embed, D, seed, draw, block, first_row, sigma, backend)


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    precision: str = "float32",
    backend: str | None = None,
) -> Tensor:
    """y = activation(x @ weight.T + bias), differentiable in all three.

    Args:
        x: (*, in) float32.
        weight: (out, in) float32.
        bias: (out,) float32, or None.
        activation: None, "relu" or "gelu".
        precision: "float32" | "tf32" | "bfloat16", of the products' operands.
        backend: a backend to force; None: the best that runs here.

    Returns:
        (*, out) float32.

    Raises:
        ValueError: an argument does not fit.
        BackendError: no backend can run it.
    """
    op = "dense"
    if activation not in ACTIVATION_NAMES:
        raise ValueError(f"{op}: activation must be one of {ACTIVATION_NAMES}, got {activation!r}")
    dispatch.check_options(op, precision, backend)
    return dense_ops.run(op, "x", x, weight, bias, activation, precision, backend)


def denoising_loss(
    logits: Tensor,
    y: Tensor,
    weight: float | Tensor | None = None,
    *,
    W_embed: Tensor | None = None,
    head: str = "softmax",
    flow: float = 0.0,
    eps: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Losses of rows, weight * |u_hat - target|^2 with u_hat = softmax(logits) @ W_embed.

    target = W_embed[y] - flow * eps: the label's embedding (arXiv:2503.24322v2, eq. 8), or flow
    matching's velocity. With head "linear" u_hat = logits @ W_embed; with "cross_entropy" the loss
    is weight * -log softmax(logits)[y]. d_logits is formed beside the loss.

    Args:
        logits: (B, M) float32.
        y: (B,) int64, labels.
        weight: a number or (B,) float32, in which the losses are differentiable; None: 1.
        W_embed: (M, D) float32, in which the losses are differentiable; None: one-hot.
        head: "softmax", "linear" or "cross_entropy".
        flow: 0, or 1 for flow matching.
        eps: (B, D) float32, the noise of `add_noise`; needed where flow is not 0.
        backend: a backend to force; None: the best that runs here.

    Returns:
        (B,) float32.

    Raises:
        ValueError: an argument does not fit.
        BackendError: no backend can run it.
    """
    op = "denoising_loss"
    arguments = (logits, y, W_embed, eps, head, flow, backend)
    error = None
    if head in HEADS and not torch.compiler.is_compiling():
        error = label_ops.error_at_once(*arguments)
    if error is None:
        flow = check_errors(op, logits, y, W_embed, eps, head, flow)
        arguments = (logits, y, W_embed, eps, head, flow, backend)
        if torch.compiler.is_compiling():
            error, _, _ = label_ops.error_op(*arguments)
        else:
            error = label_ops.error_node(*arguments)
    return error if weight is None else error * per_row(op, "weight", weight, y)


def check_errors(
    op: str,
    logits: Tensor,
    y: Tensor,
    W_embed: Tensor | None,
    eps: Tensor | None,
    head: str,
    flow: float,
) -> float:
    """The checks of `denoising_loss` by name; flow as a float."""
    B, M = check_tensor(op, "logits", logits, shape=(None, None)).shape
    check_tensor(op, "y", y, shape=(B,), dtype=INT64, device=logits.device)
    if head not in HEADS:
        raise ValueError(f"{op}: head must be one of {HEADS}, got {head!r}")
    D = M
    if W_embed is not None:
        if head == "cross_entropy":
            raise ValueError(f"{op}: W_embed must be None with head {head!r}, got a tensor")
        D = check_tensor(op, "W_embed", W_embed, shape=(M, None), device=logits.device).shape[1]
    flow = check_number(op, "flow", flow, "be finite", lambda value: abs(value) <= LARGEST)
    if (eps is None) != (flow == 0):
        raise ValueError(f"{op}: eps must be given where flow is not 0 and only there, got {flow=}")
    if eps is not None:
        check_tensor(op, "eps", eps, shape=(B, D), device=logits.device)
    return flow


def dense_update_(
    x: Tensor,
    d_y: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    optimizer: Optimizer,
    state: dict[str, Tensor],
    lr: float | None = None,
    input_grad: bool = False,
    precision: str = "float32",
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Updates weight and bias of y = x @ weight.T + bias by one step of the optimizer, in place.

    The kernel that forms the gradients d_y.T @ x and the sum of d_y also applies the optimizer.
    Where d_y is not finite nothing changes. No rows are a gradient of 0, as in torch: a step with
    decay and moments.

    Args:
        x: (*, in) float32.
        d_y: (*, out) float32, the loss' gradient.
        weight: (out, in) float32, contiguous.
        bias: (out,) float32, contiguous, or None.
        optimizer: of noprop_kernels.optimizers, with one weight_decay.
        state: the moments and the count of updates, which belong to the weights; {} at first.
        lr: None: the optimizer's.
        input_grad: whether to compute d_x.
        precision: "float32" | "tf32" | "bfloat16", of the products' operands.
        backend: a backend to force; None: the best that runs here.

    Returns:
        applied (1,) bool, and d_x (*, in) at the weights before the update, or None.

    Raises:
        ValueError: an argument does not fit; nothing has changed.
        BackendError: no backend can run it.
    """
    op = "dense_update_"
    check_optimizer(op, optimizer)
    if lr is None:
        lr = optimizer.lr
    must = "be finite and at least 0"
    lr = check_number(op, "lr", lr, must, lambda value: 0 <= value <= LARGEST)
    dispatch.check_options(op, precision, backend)
    if state and not torch.compiler.is_compiling():
        options = (lr, input_grad, precision, backend)
        done = dense_ops.update_at_once(op, x, d_y, weight, bias, optimizer, state, *options)
        if done is not None:
            return done
    check_layer(op, x, weight, bias)
    check_rows(op, "d_y", d_y, weight.shape[0], weight.device)
    if d_y.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"{op}: d_y must have the rows of x, {tuple(x.shape[:-1])}, got {tuple(d_y.shape[:-1])}"
        )
    if isinstance(optimizer.weight_decay, tuple):
        raise ValueError(f"{op}: optimizer must have one weight_decay, got a tuple")
    params = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    names = dense_ops.moment_names(optimizer, bias is not None)
    if not state:
        for name in names:
            state[name] = torch.zeros_like(params[name[:-2]], requires_grad=False)
        state["updates"] = torch.zeros(1, dtype=torch.int64, device=weight.device)
    if state.keys() != {*names, "updates"}:
        raise ValueError(f"{op}: state must have {[*names, 'updates']}, got {[*state]}")
    for name in names:
        check_tensor(op, name, state[name], shape=params[name[:-2]].shape, device=weight.device)
    check_tensor(op, "updates", state["updates"], shape=(1,), dtype=INT64, device=weight.device)
    if state["updates"].device.type == "cpu" and not torch.compiler.is_compiling():
        check_counter(op, "updates", state["updates"], 1)
    for name, value in {**params, **state}.items():
        if not value.is_contiguous():
            raise ValueError(f"{op}: {name} must be contiguous, got strides {value.stride()}")
    run = dense_ops.dense_update_op if torch.compiler.is_compiling() else dense_ops.dense_update_
    applied, d_x = run(
        *(x.detach(), d_y.detach(), weight.detach(), None if bias is None else bias.detach()),
        *([state[name] for name in names], state["updates"], *dense_ops.describe(optimizer)),
        *(lr, optimizer.weight_decay, input_grad, precision, backend),
    )
    return applied, d_x if input_grad else None


def per_row(op: str, name: str, value: float | Tensor, y: Tensor) -> Tensor:
    """A number or a (B,) tensor, as (B,) float32 on the device of y."""
    if isinstance(value, Tensor) and value.ndim > 0:
        return check_tensor(op, name, value, shape=y.shape, device=y.device)
    if isinstance(value, Tensor):
        number = check_tensor(op, name, value, shape=()).to(y.device)
    elif type(value) is float:
        number = torch.tensor(value, dtype=torch.float32, device=y.device)
    else:
        number = number_tensor(op, name, value).to(y.device, torch.float32)
    return number.expand(y.shape)
