"""The parts' nodes in torch's graph, and the same as custom operations for torch.compile.

Eager code does not pass through the operations: the dispatcher's Python costs more than a small
kernel. An operation is a function of tensors alone, so that `dense`'s backward, which needs what
the backend saved in its forward, runs that once more there.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import one_hot

from . import dispatch
from .calls import AddNoiseCall, HeadCall, Mix, Noise
from .dense import PARTS, Layer, plan_of
from .layer_optimizer import rule_of
from .noise import STREAM_EPS
from .optimizers import SGD, Adam, AdamW, Optimizer


def register(
    run: Callable[..., Any],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    *,
    mutates: tuple[str, ...] = (),
) -> Any:
    """The operation noprop_kernels::<name of `run`>."""
    name = f"noprop_kernels::{run.__name__}"
    operation = torch.library.custom_op(name, run, mutates_args=mutates)
    operation.register_fake(fake)
    if backward is not None:
        operation.register_autograd(backward, setup_context=setup)
    return operation


def node(
    run: Callable[..., Any], setup: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The same as a node of torch's graph."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = run(*arguments)
        # not as setup_context, for which torch inspects signatures, 45 us at each call
        setup(ctx, arguments, output)
        return output

    methods = {"forward": forward, "backward": once_differentiable(backward)}
    methods = {name: staticmethod(method) for name, method in methods.items()}
    made: Any = type(run.__name__, (torch.autograd.Function,), methods)
    return made.apply


def layer_of(
    weight: Tensor, bias: Tensor | None, activation: str | None, precision: str, backend: str | None
) -> Layer:
    plan = plan_of(weight.shape[1], weight.shape[0], activation)
    chosen = dispatch.choose(plan, weight.device, precision, backend)
    bias = None if bias is None else bias.contiguous()
    return Layer(weight.contiguous(), bias, activation, precision, chosen)


# y = activation(x @ weight.T + bias)


class DenseNode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Layer, x: Tensor, *params: Tensor | None) -> Tensor:
        y = layer.forward(x, save=True)
        ctx.layer = layer
        ctx.save_for_backward(x, *params)  # so that a change of what was read is noticed
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        ctx.saved_tensors  # noqa: B018  # raises where one changed since the forward
        _, input_grad, *wanted = ctx.needs_input_grad
        d_x, grads = dense_gradients_of(ctx.layer, d_y, input_grad, wanted)
        return None, d_x, *grads


def dense_gradients_of(
    layer: Layer, d_y: Tensor, input_grad: bool, wanted: Sequence[bool]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """d_x, d_weight and d_bias, those that are wanted."""
    shapes = zip(PARTS, (layer.weight.shape, layer.weight.shape[:1]), wanted, strict=True)
    grads = {part: d_y.new_empty(shape) for part, shape, wants in shapes if wants}
    d_x, _ = layer.backward(d_y, input_grad=input_grad, grads=grads)
    return d_x, [grads.get(part) for part in PARTS]


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    precision: str,
    backend: str | None,
) -> Tensor:
    return layer_of(weight, bias, activation, precision, backend).forward(x, save=False)


def dense_gradients(
    d_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    wanted: list[bool],
    activation: str | None,
    precision: str,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    layer = layer_of(weight, bias, activation, precision, backend)
    layer.forward(x, save=True)
    d_x, grads = dense_gradients_of(layer, d_y, wanted[0], wanted[1:])
    return tuple(d_y.new_empty(0) if g is None else g for g in (d_x, *grads))  # type: ignore


def fake_gradients(d_y, x, weight, bias, wanted, activation, precision, backend):
    shapes = (x.shape, weight.shape, weight.shape[:1])
    return tuple(d_y.new_empty(s if w else 0) for s, w in zip(shapes, wanted, strict=True))


def save_dense(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[3:]


def dense_backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:3])
    grads = dense_gradients_op(d_y, *ctx.saved_tensors, wanted, *ctx.options)
    grads = (grad if wants else None for grad, wants in zip(grads, wanted, strict=True))
    return *grads, None, None, None


dense_gradients_op = register(dense_gradients, fake_gradients)
dense_op = register(
    dense,
    lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight.shape[0]),
    save_dense,
    dense_backward,
)


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
    B, M = logits.shape
    D = M if W_embed is None else W_embed.shape[1]
    error, u_hat, d_logits = logits.new_empty(B), logits.new_empty(B, D), logits.new_empty(B, M)
    if B:
        ones = torch.ones(1, device=logits.device).expand(1, 1, B)
        embedding = None if W_embed is None else W_embed.detach().contiguous()
        call = HeadCall(
            mix=Mix(ones, ones, ones, flow, 0.0, head, embedding, D, rows=1),
            y=y.contiguous().view(1, 1, B),
            logits=logits.detach().contiguous()[None],
            eps=None if eps is None else eps.detach().contiguous()[None],
            loss=None,
            error=error[None],
            d_logits=d_logits[None],
            u_hat=u_hat[None],
        )
        backend_of(M, D, logits.device, backend).head(call)
    return error, u_hat, d_logits


def fake_error(logits, y, W_embed, eps, head, flow, backend):
    B, M = logits.shape
    D = M if W_embed is None else W_embed.shape[1]
    return logits.new_empty(B), logits.new_empty(B, D), logits.new_empty(B, M)


def save_error(ctx: Any, inputs: tuple, output: tuple) -> None:
    logits, y, W_embed, eps, ctx.head, ctx.flow, _ = inputs
    _, u_hat, d_logits = output
    ctx.mark_non_differentiable(u_hat, d_logits)
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


error_node = node(denoising_error, save_error, error_backward)
error_op = register(denoising_error, fake_error, save_error, error_backward)


# z = signal * W_embed[y] + noise * eps + sigma * eps_1


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
    if B:

        def number(value: int) -> Tensor:
            return torch.tensor([value], dtype=torch.int64, device=y.device)

        mix = Mix(
            *(value.detach()[None, None] for value in (signal, noise, noise)),
            flow=0.0,
            sigma=sigma,
            head="linear",
            W_embed=None if W_embed is None else W_embed.detach().contiguous(),
            D=D,
            rows=B,
        )
        address = (number(seed), number(draw)[None], number(block)[None], STREAM_EPS, first_row)
        labels = y.contiguous().view(1, 1, B)
        call = AddNoiseCall(Noise(*address), mix, labels, z[None], eps[None])
        backend_of(1, D, y.device, backend).add_noise(call)
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


noise_node = node(add_noise, save_noise, noise_backward)
noise_op = register(add_noise, fake_noise, save_noise, noise_backward)


def backend_of(M: int, D: int, device: torch.device, backend: str | None) -> ModuleType:
    """The backend of calls that need no plan, for which one layer stands."""
    return dispatch.choose(plan_of(D, M, None), device, "float32", backend)


# weight and bias moved by one step of the optimizer on d_y.T @ x and the sum of d_y


def describe(optimizer: Optimizer) -> tuple[str, list[float]]:
    """An optimizer as an operation's arguments, without lr and weight_decay."""
    if isinstance(optimizer, SGD):
        return "SGD", [optimizer.momentum, float(optimizer.nesterov)]
    assert isinstance(optimizer, Adam)  # the caller refuses what is none of ours
    return type(optimizer).__name__, [*optimizer.betas, optimizer.eps]


@lru_cache(maxsize=64)
def described(kind: str, *numbers: float) -> Optimizer:
    if kind == "SGD":
        return SGD(momentum=numbers[0], nesterov=bool(numbers[1]))
    return {"Adam": Adam, "AdamW": AdamW}[kind](betas=(numbers[0], numbers[1]), eps=numbers[2])


def dense_update_(
    x: Tensor,
    d_y: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    moments: list[Tensor],
    updates: Tensor,
    kind: str,
    numbers: list[float],
    lr: float,
    weight_decay: float,
    input_grad: bool,
    precision: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """`applied` (1,) bool, and d_x or an empty tensor."""
    optimizer = described(kind, *numbers)
    layer = layer_of(weight, bias, None, precision, backend)
    layer.moments = dict(zip(moment_names(optimizer, bias is not None), moments, strict=True))
    layer.updates = updates
    layer.forward(x, save=True)
    rule = rule_of(optimizer, lr, weight_decay, weight.device)
    d_x, applied = layer.backward(d_y, input_grad=input_grad, rule=rule)
    return applied, d_y.new_empty(0) if d_x is None else d_x


def moment_names(optimizer: Optimizer, has_bias: bool) -> list[str]:
    parts = PARTS if has_bias else PARTS[:1]
    return [f"{part}_{moment}" for moment in optimizer.moments for part in parts]


def fake_update(x, d_y, weight, bias, moments, updates, kind, numbers, lr, wd, input_grad, *_):
    return d_y.new_empty(1, dtype=torch.bool), torch.empty_like(x) if input_grad else d_y.new_empty(
        0
    )


dense_update_op = register(
    dense_update_, fake_update, mutates=("weight", "bias", "moments", "updates")
)
