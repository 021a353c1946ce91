"""Functions of labels, noise and errors: nodes of torch's graph, and operations for
torch.compile."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot

from ..backends import dispatch
from ..backends.calls import AddNoiseCall, Embedding, HeadCall, NoiseAddress, Noising, Objective
from ..check import LARGEST, MOST, MOST_COUNT, PLAIN
from ..philox import STREAM_EPS
from .custom_op import is_forward_mode, node, register
from .layer import plan_of


def backend_of(
    M: int, D: int, device: torch.device, backend: str | None, head: str | None = None
) -> ModuleType:
    """The backend of calls without a plan; a plan of one layer takes its place."""
    return dispatch.choose(plan_of(D, M, None), device, "float32", backend, head=head)


def embedding_of(W_embed: Tensor | None, D: int) -> Embedding:
    return Embedding(None if W_embed is None else W_embed.detach().contiguous(), D)


def contiguous(value: Tensor | None) -> Tensor | None:
    return value if value is None or value.is_contiguous() else value.contiguous()


# error = |u_hat - target|^2


def denoising_error(
    logits: Tensor,
    y: Tensor,
    W_embed: Tensor | None,
    eps: Tensor | None,
    head: str,
    flow: float,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """error (B,), u_hat (B, D), and d_logits (B, M) of the sum of errors."""
    u_hat = logits.new_empty(len(logits), logits.shape[1] if W_embed is None else W_embed.shape[1])
    error, d_logits = form_error(logits, y, W_embed, eps, head, flow, backend, u_hat)
    return error, u_hat, d_logits


def error_for_gradient(*arguments: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    """The same, with u_hat only where the gradient of W_embed needs it."""
    W_embed = arguments[2]
    if W_embed is not None and W_embed.requires_grad:
        return denoising_error(*arguments)
    error, d_logits = form_error(*arguments, u_hat=None)
    return error, None, d_logits


def form_error(
    logits: Tensor,
    y: Tensor,
    W_embed: Tensor | None,
    eps: Tensor | None,
    head: str,
    flow: float,
    backend: str | None,
    u_hat: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """error and d_logits; writes u_hat where it is given."""
    B, M = logits.shape
    D = M if W_embed is None else W_embed.shape[1]
    error, d_logits = logits.new_empty(B), logits.new_empty(B, M)
    chosen = backend_of(M, D, logits.device, backend, head)
    if B and hasattr(chosen, "error_rows"):
        given = (contiguous(value) for value in (logits, y, W_embed, eps))
        chosen.error_rows(*given, head, flow, error, u_hat, d_logits)
    elif B:
        ones = logits.new_ones(1).expand(1, 1, B)
        call = HeadCall(
            objective=Objective(ones, flow, head, rows=1),
            embedding=embedding_of(W_embed, D),
            y=y.contiguous().view(1, 1, B),
            logits=logits.detach().contiguous()[None],
            eps=None if eps is None else eps.detach().contiguous()[None],
            loss=None,
            error=error[None],
            d_logits=d_logits[None],
            u_hat=None if u_hat is None else u_hat[None],
            op="denoising_loss",
        )
        chosen.head(call)
    return error, d_logits


def fake_error(logits, y, W_embed, eps, head, flow, backend):
    B, M = logits.shape
    D = M if W_embed is None else W_embed.shape[1]
    return logits.new_empty(B), logits.new_empty(B, D), logits.new_empty(B, M)


def save_error(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, y, W_embed, eps, ctx.head, ctx.flow, _ = inputs
    _, u_hat, d_logits = output
    ctx.mark_non_differentiable(*(value for value in (u_hat, d_logits) if value is not None))
    if not ctx.needs_input_grad[2]:
        logits = y = W_embed = eps = u_hat = None
    ctx.save_for_backward(d_logits, logits, y, W_embed, eps, u_hat)


def error_backward(ctx: Any, d_error: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    d_logits, logits, y, W_embed, eps, u_hat = ctx.saved_tensors
    d_W_embed = None
    if ctx.needs_input_grad[2]:
        # u_hat = p @ W_embed, target = W_embed[y] - flow * eps
        p = logits if ctx.head == "linear" else logits.softmax(-1)
        residual = u_hat - W_embed[y]
        residual = residual if eps is None else residual + ctx.flow * eps
        d_u_hat = 2 * d_error[:, None] * residual
        d_W_embed = (p - one_hot(y, p.shape[-1])).T @ d_u_hat
    return d_logits * d_error[:, None], None, d_W_embed, None, None, None, None


def d_logits_of(ctx: Any, d_error: Tensor) -> tuple[None, Tensor]:
    (d_logits,) = ctx.saved_tensors
    return None, d_logits * d_error.unsqueeze(1)


class ErrorNode(torch.autograd.Function):
    """Errors where only logits need a gradient, which the kernels have formed beside them."""

    @staticmethod
    def forward(ctx: Any, done: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
        error, d_logits = done
        ctx.save_for_backward(d_logits)
        return error

    @staticmethod
    def backward(ctx: Any, d_error: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        if torch.is_grad_enabled():  # create_graph=True
            return twice_refused(ctx, d_error)
        return d_logits_of(ctx, d_error)


# apart, since what it does before it calls costs a small batch's backward time
twice_refused = once_differentiable(d_logits_of)
# as an extension in C++ calls it, without a look at transforms and their tensors
apply_error: Any = super(torch.autograd.Function, ErrorNode).apply  # type: ignore[misc]


def error_at_once(
    logits: Tensor,
    y: Tensor,
    W_embed: Tensor | None,
    eps: Tensor | None,
    head: str,
    flow: float,
    backend: str | None,
) -> Tensor | None:
    """error where all is as the kernels take it, they check it alone, and only logits may need a
    gradient; else None, and what does not fit is left to the checks by name."""
    if not (is_dense(logits) and is_dense(y)) or logits.ndim != 2 or logits.numel() == 0:
        return None
    for value in (W_embed, eps):
        if value is not None and not (is_dense(value) and value.ndim == 2):
            return None
        if value is not None and value.requires_grad:
            return None
    if type(flow) is not float or not abs(flow) <= LARGEST or (eps is None) != (flow == 0):
        return None
    if W_embed is not None and head == "cross_entropy":
        return None
    if torch._C._are_functorch_transforms_active() or is_forward_mode():
        return None
    B, M = logits.shape
    try:
        D = M if W_embed is None else W_embed.shape[1]
        chosen = backend_of(M, D, logits.device, backend, head)
        if not hasattr(chosen, "error_rows"):
            return None
        error, d_logits = logits.new_empty(B), logits.new_empty(B, M)
        chosen.error_rows(logits, y, W_embed, eps, head, flow, error, None, d_logits)
    except (ValueError, dispatch.BackendError):
        return None
    if torch.is_grad_enabled() and logits.requires_grad:
        return apply_error((error, d_logits), logits)
    return error


error_node = node(error_for_gradient, save_error, error_backward, returned=1)
error_op = register(denoising_error, fake_error, save_error, error_backward)


# z = signal * W_embed[y] + noise * eps + sigma * eps_1


def noise_at_once(
    y: Tensor,
    signal: float | Tensor,
    noise: float | Tensor,
    W_embed: Tensor | None,
    num_classes: int | None,
    address: tuple[int, int, int, int],
    sigma: float,
    backend: str | None,
) -> tuple[Tensor, Tensor] | None:
    """z and eps where the levels are two floats, all is as the kernels take it, and they check it
    alone; else None, and what does not fit is left to the checks by name.

    Args:
        address: seed, draw, block and first row of the noise.
    """
    if type(signal) is not float or type(noise) is not float or type(sigma) is not float:
        return None
    if not is_dense(y) or y.ndim != 1 or y.numel() == 0:
        return None
    D: Any = num_classes
    if W_embed is not None:
        if not is_dense(W_embed) or W_embed.ndim != 2 or W_embed.requires_grad:
            return None
        if is_forward_mode():
            return None
        D = W_embed.shape[1]
    seed, draw, block, first_row = address
    for value in (D, seed, draw, block, first_row):
        if type(value) is not int:
            return None
    last = MOST_COUNT + 1 - y.numel()
    if not (0 <= draw <= MOST_COUNT and 0 <= block <= 0xFFFF and 0 <= first_row <= last):
        return None
    if not (0 < D <= MOST and -(2**63) <= seed < 2**63):
        return None
    if not (abs(signal) <= LARGEST and abs(noise) <= LARGEST and abs(sigma) <= LARGEST):
        return None
    try:
        chosen = backend_of(1, D, y.device, backend)
        if not hasattr(chosen, "add_noise_rows"):
            return None
        z = y.new_empty(y.numel(), D, dtype=torch.float32)
        eps = torch.empty_like(z)
        chosen.add_noise_rows(y, signal, noise, W_embed, (STREAM_EPS, *address), sigma, z, eps)
    except (ValueError, dispatch.BackendError):
        return None
    return z, eps


def is_dense(value: Any) -> bool:
    """Whether a value is a plain tensor whose numbers follow one another."""
    if type(value) not in PLAIN or value.layout is not torch.strided or value.is_nested:
        return False
    return value.is_contiguous()


def add_noise(
    y: Tensor,
    signal: Tensor,
    noise: Tensor,
    W_embed: Tensor | None,
    D: int,
    seed: int,
    draw: int,
    block: int,
    first_row: int,
    sigma: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """z and eps, (B, D)."""
    (B,) = y.shape
    z, eps = signal.new_empty(B, D), signal.new_empty(B, D)
    chosen = backend_of(1, D, y.device, backend)
    if B and hasattr(chosen, "add_noise_rows"):
        where = (STREAM_EPS, seed, draw, block, first_row)
        given = contiguous(y), signal, noise, contiguous(W_embed)
        chosen.add_noise_rows(*given, where, sigma, z, eps)
    elif B:
        noising = Noising(signal.detach()[None, None], noise.detach()[None, None], sigma)
        numbers = torch.tensor([[seed], [draw], [block]], dtype=torch.int64, device=y.device)
        seeds, draws, blocks = numbers.split(1)
        address = (seeds[0], draws, blocks, STREAM_EPS, first_row)
        labels = y.contiguous().view(1, 1, B)
        embedding = embedding_of(W_embed, D)
        call = AddNoiseCall(NoiseAddress(*address), noising, embedding, labels, z[None], eps[None])
        chosen.add_noise(call)
    return z, eps


def fake_noise(y, signal, noise, W_embed, D, *_):
    return signal.new_empty(y.shape[0], D), signal.new_empty(y.shape[0], D)


def save_noise(ctx: Any, inputs: tuple, output: tuple) -> None:
    y, signal, _, W_embed, ctx.D, *_ = inputs
    _, eps = output
    ctx.mark_non_differentiable(eps)
    ctx.save_for_backward(y, signal, W_embed, eps)


def noise_backward(ctx: Any, d_z: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    y, signal, W_embed, eps = ctx.saved_tensors  # W_embed may be None
    _, signal_grad, noise_grad, _, *rest = ctx.needs_input_grad
    d_signal = d_noise = d_W_embed = None
    if signal_grad:
        u_y = one_hot(y, ctx.D) if W_embed is None else W_embed[y]
        d_signal = (d_z * u_y).sum(-1)
    if noise_grad:
        d_noise = (d_z * eps).sum(-1)
    if W_embed is not None and ctx.needs_input_grad[3]:
        d_W_embed = torch.zeros_like(W_embed).index_add_(0, y, signal[:, None] * d_z)
    return None, d_signal, d_noise, d_W_embed, *(None for _ in rest)


noise_node = node(add_noise, save_noise, noise_backward, returned=2)
noise_op = register(add_noise, fake_noise, save_noise, noise_backward)
