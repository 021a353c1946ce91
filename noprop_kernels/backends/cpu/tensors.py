"""Calls on tensors as the functions and layers have them, without a record.

So a small one does not pay for making a record and reading it. The kernels are those of the calls.
"""

from typing import Any

from torch import Tensor

from ...optimizers import Optimizer
from ...plan import Plan
from ..calls import Rule
from . import extension
from .extension import C, check, check_isa, native_optimizer, native_plan, rule_of, run

# labels' noise and errors


def add_noise_rows(
    y: Tensor,
    signal: float | Tensor,
    noise: float | Tensor,
    W_embed: Tensor | None,
    address: tuple[int, int, int, int, int],
    sigma: float,
    z: Tensor,
    eps: Tensor,
) -> None:
    """z and eps (B, D) of the labels y (B,), by signal and noise, each a float or (B,).

    Args:
        address: stream, seed, draw, block and first row of the noise.
    """
    M = z.shape[-1] if W_embed is None else W_embed.shape[0]
    result = run(C.add_noise_rows, y, signal, noise, W_embed, *address, sigma, z, eps)
    check("add_noise", result, [], M)


def error_rows(
    logits: Tensor,
    y: Tensor,
    W_embed: Tensor | None,
    eps: Tensor | None,
    head: str,
    flow: float,
    error: Tensor,
    u_hat: Tensor | None,
    d_logits: Tensor,
) -> None:
    """error (B,), u_hat (B, D) unless it is None, and d_logits (B, M), of the labels y (B,)."""
    result = run(C.error_rows, logits, y, W_embed, eps, head, flow, error, u_hat, d_logits)
    check("denoising_loss", result, [], logits.shape[-1])


# one dense layer, as torch.nn.Linear has it


def forward_layer(
    plan: Plan,
    precision: str,
    op: str,
    name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor | None,
    save: bool,
) -> Any:
    """y (*, out) of the contiguous x (*, in), which errors call `name`; and what `backward_layer`
    needs, if requested. Without y no product is computed, which suffices without an activation.

    Raises:
        ValueError: a tensor does not fit; nothing has been written.
    """
    native = native_plan(plan, precision)
    saved = C.layer_saved(native, x.numel() // x.shape[-1]) if save else None
    check(op, run(C.forward_layer, native, op, name, x, weight, bias, y, saved), [name], 0)
    return saved


def backward_layer(
    plan: Plan,
    precision: str,
    saved: Any,
    weight: Tensor,
    bias: Tensor | None,
    d_y: Tensor,
    *,
    d_x: Tensor | None,
    grads: tuple[Tensor, Tensor] | None,
    rule: Rule | None,
    moments: tuple[Tensor | None, ...],
    updates: Tensor | None,
    applied: Tensor | None = None,
) -> None:
    """d_x (*, in), and the gradients of weight and bias or their update, for contiguous tensors.

    Args:
        moments: of weight m, weight v, bias m, bias v; None what the optimizer or layer lacks.
        updates: (1,) int64, the steps so far; needed with a rule.
        applied: out, (1,) bool, or None: whether a rule was applied.

    Raises:
        ValueError: a tensor does not fit; nothing has been written.
    """
    check_isa(C.isa_of(saved))
    native, op, rates = native_plan(plan, precision), "backward", (0.0, 0.0)
    if rule is not None:
        rates = rule.lr.item(), rule.weight_decay.item()
    tensors = (saved, weight, bias, d_y, d_x, grads)
    update = (rule_of(rule), moments, updates, *rates, applied)
    check(op, run(C.backward_layer, native, op, *tensors, *update), [], 0)


# The same without checks by name, which cost a small layer more than its products. Where a tensor
# is not plain, dense and of its shape, where torch's modes or transforms see every call, and where
# a known layer's tensor is not as it was, the answer is None, and nothing has been done.


def dense(plan: Plan, precision: str, op: str, x: Any, weight: Any, bias: Any) -> Tensor | None:
    """y (*, out) of x (*, in), or None."""
    done = C.dense(native_plan(plan, precision), x, weight, bias, extension.threads())
    return None if done is None else _ended(op, *done)[0]


def known_layer(
    plan: Plan,
    precision: str,
    state: dict[str, Any],
    options: tuple[str, ...],
    tensors: tuple[Tensor | None, ...],
) -> Any:
    """What `forward_known` compares with, or None.

    Args:
        state: the __dict__ of a module, in which the values of `options` are to stay.
        tensors: its weight and bias, their moments as in `backward_layer`, and the steps so far.
    """
    return C.KnownLayer.of(native_plan(plan, precision), state, options, tensors)


def forward_known(op: str, known: Any, state: dict[str, Any], x: Any) -> tuple[Tensor, Any] | None:
    """y of x, and what a backward needs, or None."""
    done = known.forward(state, x, extension.threads())
    return None if done is None else _ended(op, *done)


def backward_known(
    known: Any, saved: Any, d_y: Tensor, input_grad: bool, optimizer: Optimizer
) -> tuple[Tensor | None, Any] | None:
    """d_x where requested, and an update, of which torch is told; or None."""
    rates = optimizer.lr, optimizer.weight_decay
    done = known.backward(
        saved, d_y, input_grad, native_optimizer(optimizer), *rates, extension.threads()
    )
    return None if done is None else _ended("backward", *done)


def _ended(op: str, result: Any, saved: Any, status: tuple[int, int, int] | None) -> Any:
    if status is not None:
        check(op, status, [], 0)
    return result, saved
