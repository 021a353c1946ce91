"""The CPU backend: calls handed to the extension `_C`, which reads their fields by name.

The extension takes the addresses: it checks each tensor there, against the plan and the call's
sizes, and holds its memory until it returns. A call that does not fit is a ValueError before
anything is written.
"""

import functools
import os
import time
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ...optimizers import Optimizer
from ...plan import Plan
from ..calls import (
    AddNoiseCall,
    BackwardCall,
    ForwardCall,
    HeadCall,
    Rule,
    TimesCall,
    TrainCall,
    UpdateCall,
)
from ..chain_calls import PredictCall
from ..contents import bad_index, bad_input, bad_label, check_finite, check_rows
from ..shared_calls import LevelsCall, LevelsGradientCall, SharedUpdateCall
from ..turns import refused
from . import openmp

try:
    _C: Any = import_module("noprop_kernels._C")
    _missing = None
except ImportError as error:
    _C = None
    _missing = str(error)
else:
    # PyTorch describes a tensor to C directly; without that, it is read attribute by attribute
    _torch = {
        "tensor": Tensor,
        "parameter": torch.nn.Parameter,
        "storage": torch.UntypedStorage,
        "exchange": getattr(Tensor, "__dlpack_c_exchange_api__", None),
        "followers": (
            torch._C._len_torch_function_stack,
            torch._C._len_torch_dispatch_stack,
            torch._C._are_functorch_transforms_active,
        ),
        "increment_version": torch.autograd.graph.increment_version,
    }
    _C.use_torch(**_torch)
    _C.use_openmp(*openmp.functions())
    # a forked child has none of the threads that its copy of the runtime would wait for
    os.register_at_fork(after_in_child=functools.partial(_C.use_openmp, 0, 0, 0))

_STOPPED, _NO_MEMORY, _BAD_LABEL, _BAD_INDEX, _BAD_INPUT, _BUSY, _FORKED = range(1, 8)


def unavailable() -> str | None:
    """The reason why the extension cannot be used, or None."""
    return _missing


def describe() -> dict[str, Any]:
    """The extension's build, its instruction sets with those that run here, and threads.

    `threads` are those that the system grants to a call, which also runs with fewer than requested.
    """
    return {
        "compiler": _C.compiler,
        "isas": dict(_C.isas()),
        "isa_used": _C.isa_used(),
        "processors": _C.processors(),
        "threads": _C.threads(threads()),
    }


def set_isa(name: str | None) -> None:
    """Selects an instruction set for all later calls; None: the best that runs here.

    Raises:
        ValueError: it is not built in, or does not run on this processor.
    """
    if not _C.set_isa(name or ""):
        built = ", ".join(
            f"{isa} ({'runs' if runs else 'does not run'} here)" for isa, runs in _C.isas()
        )
        raise ValueError(f"NOPROP_ISA: must be one of {built}; got {name!r}")


def threads() -> int:
    """The threads of a call: those granted to the process, at most torch.get_num_threads()."""
    return min(_processors(int(time.monotonic())), torch.get_num_threads())


def _call(function: Any, *arguments: Any) -> tuple[int, int, int]:
    """Calls the extension with torch function modes and subclasses disabled: it reads the
    tensors."""
    with torch._C.DisableTorchFunction():
        return function(*arguments, threads())


@functools.lru_cache(maxsize=1)
def _processors(second: int) -> int:
    """Cached for a second: affinity and quota may change, and reading them takes 20 us."""
    return _C.processors()


def fma_gflop(num_threads: int, rounds: int) -> float:
    """Runs `rounds` bursts of multiply-adds on each thread; returns billions of operations."""
    return _C.fma_gflop(num_threads, rounds)


def workspace_bytes(plan: Plan, n: int, B: int, D: int, K: int, precision: str = "float32") -> int:
    """Bytes of a thread's workspace in a training call of K steps on the same data for n slices."""
    return _native_plan(plan, precision).workspace_bytes(n, B, D, K)


def packed_bytes(plan: Plan, n: int, B: int, K: int, precision: str = "float32") -> int:
    """Bytes of the rows that a training call of K steps on the same data packs for n slices."""
    return _native_plan(plan, precision).packed_bytes(n, B, K)


def team_size(plan: Plan, n: int, B: int) -> int:
    """Threads that share each slice's work in a training call of n slices and B rows."""
    return _native_plan(plan, "float32").team_size(n, B, threads())


def crew_size(plan: Plan, chains: int, B: int) -> int:
    """Threads that share each chain in a call of `predict` with this many chains of B rows."""
    return _native_plan(plan, "float32").crew_size(chains, B, threads())


@functools.lru_cache(maxsize=64)
def _native_plan(plan: Plan, precision: str) -> Any:
    return _C.Plan(plan, precision)


@functools.lru_cache(maxsize=64)
def _native_optimizer(optimizer: Optimizer) -> Any:
    moments = optimizer.moments
    has = {"has_m": "m" in moments, "has_v": "v" in moments}
    return _C.Optimizer(optimizer.kind, **has, **optimizer.hyper())


def _rule(rule: Rule | None) -> Any:
    return None if rule is None else _native_optimizer(rule.optimizer)


def plan_gap(plan: Plan) -> str | None:
    """The reason why the kernels cannot run `plan`, or None."""
    found = len(plan.inputs) + len(plan.layers)
    if found > _C.most_results:
        return f"a plan may have {_C.most_results} inputs and layers, this one has {found}"
    for name, layer in plan.layers.items():
        if len(layer.sources) > _C.most_sources:
            found = len(layer.sources)
            return f"a layer may have {_C.most_sources} inputs, {name!r} has {found}"
    widest = max(plan.widths.values())
    return None if widest < 2**31 else f"a width must be below 2^31, got {widest}"


def _check(op: str, result: tuple[int, int, int], inputs: list[str], M: int) -> None:
    status, where, value = result
    if status == _NO_MEMORY:
        raise MemoryError(f"{op}: no memory for the workspace; nothing was changed")
    if status == _BAD_LABEL:
        raise bad_label(op, M, value, where)
    if status == _BAD_INDEX:
        raise bad_index(op, value, where)
    if status == _BAD_INPUT:
        raise bad_input(op, inputs[value])
    if status == _BUSY and where:
        raise RuntimeError(f"{op}: signal handlers must not interrupt each other {where} times")
    if status == _BUSY:
        raise refused(op)
    if status == _FORKED:
        raise RuntimeError(
            f"{op}: a signal handler forked the process in the middle of the call; in this child "
            "it has ended, and what it was to write may hold a part of a step"
        )


def train(call: TrainCall) -> None:
    slices, plan = call.slices, call.slices.plan
    if call.K == 0:
        return
    if call.B == 0:
        raise ValueError(f"{call.op}: a batch must have at least 1 row, got 0")
    check_rows(call.op, plan, call.B)
    optimizer = _rule(None if call.out.grads is not None else call.rule)
    native = _native_plan(plan, slices.precision)
    result = _call(_C.train, native, call, optimizer)
    _check(call.op, result, list(plan.inputs), plan.widths[plan.output])


def add_noise(call: AddNoiseCall) -> None:
    _check(call.op, _call(_C.add_noise, call), [], call.embedding.M)


def draw_times(call: TimesCall) -> None:
    _check("times", _call(_C.draw_times, call), [], 0)


def embed_times(out: Tensor, t: Tensor, frequencies: Tensor) -> None:
    """out (count, 2 n) float32: sines, then cosines, of t (count,) times frequencies (n,)."""
    _check("embed_time", _call(_C.embed_times, out, t, frequencies), [], 0)


def _memory(native: Any, n: int, B: int) -> Tensor:
    """What a forward of B rows of n slices saves for its backward."""
    return torch.empty(native.saved_floats(n, B), dtype=torch.float32, device="cpu")


def _check_isa(isa: str) -> None:
    if isa != _C.isa_used():
        raise RuntimeError(
            f"backward: the forward ran with {isa} and left its layout; now {_C.isa_used()} is used"
        )


def levels(call: LevelsCall) -> None:
    _check("levels", _call(_C.levels, call), [], 0)


def levels_gradient(call: LevelsGradientCall) -> None:
    _check("levels", _call(_C.levels_gradient, call), [], 0)


def update_shared(call: SharedUpdateCall) -> None:
    _check("update", _call(_C.update_shared, call, _rule(call.rule)), [], 0)


def forward(call: ForwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    n, B, _ = call.inputs["z"].shape
    if call.check:
        check_finite("forward", call.inputs)
    if call.training:
        check_rows("forward", plan, B)
    native = _native_plan(plan, slices.precision)
    saved = None
    if call.save:
        saved = _memory(native, n, B)
    result = _call(_C.forward, native, call, saved)
    _check("forward", result, list(plan.inputs), plan.widths[plan.output])
    call.saved = (saved, call.training, _C.isa_used()) if call.save else None


def head(call: HeadCall) -> None:
    _check(call.op, _call(_C.head, call), [], call.logits.shape[-1])


def backward(call: BackwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    saved, training, isa = call.saved
    _check_isa(isa)
    native = _native_plan(plan, slices.precision)
    result = _call(_C.backward, native, call, saved, training, _rule(call.rule))
    _check("backward", result, list(plan.inputs), plan.widths[plan.output])


def update(call: UpdateCall) -> None:
    slices, plan = call.slices, call.slices.plan
    native = _native_plan(plan, slices.precision)
    result = _call(_C.update, native, call, _rule(call.rule))
    _check("update", result, list(plan.inputs), plan.widths[plan.output])


def predict(call: PredictCall) -> None:
    slices, plan = call.slices, call.slices.plan
    if call.logits.numel() == 0:
        return
    check_finite("predict", call.inputs)
    result = _call(_C.predict, _native_plan(plan, slices.precision), call)
    _check("predict", result, list(plan.inputs), plan.widths[plan.output])


# Labels' noise and errors on tensors as functional.py has them, without a record.


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
    result = _call(_C.add_noise_rows, y, signal, noise, W_embed, *address, sigma, z, eps)
    _check("add_noise", result, [], M)


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
    result = _call(_C.error_rows, logits, y, W_embed, eps, head, flow, error, u_hat, d_logits)
    _check("denoising_loss", result, [], logits.shape[-1])


# One dense layer on tensors as torch.nn.Linear has them, without a record, so that a small one does
# not pay for making and reading it. The kernels are those of `forward` and `backward`.


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
    native = _native_plan(plan, precision)
    saved = _C.layer_saved(native, x.numel() // x.shape[-1]) if save else None
    _check(op, _call(_C.forward_layer, native, op, name, x, weight, bias, y, saved), [name], 0)
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
    _check_isa(_C.isa_of(saved))
    native, op, rates = _native_plan(plan, precision), "backward", (0.0, 0.0)
    if rule is not None:
        rates = rule.lr.item(), rule.weight_decay.item()
    tensors = (saved, weight, bias, d_y, d_x, grads)
    update = (_rule(rule), moments, updates, *rates, applied)
    _check(op, _call(_C.backward_layer, native, op, *tensors, *update), [], 0)


# The same without checks by name, which cost a small layer more than its products. Where a tensor
# is not plain, dense and of its shape, where torch's modes or transforms see every call, and where
# a known layer's tensor is not as it was, the answer is None, and nothing has been done.


def dense(plan: Plan, precision: str, op: str, x: Any, weight: Any, bias: Any) -> Tensor | None:
    """y (*, out) of x (*, in), or None."""
    done = _C.dense(_native_plan(plan, precision), x, weight, bias, threads())
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
    return _C.KnownLayer.of(_native_plan(plan, precision), state, options, tensors)


def forward_known(op: str, known: Any, state: dict[str, Any], x: Any) -> tuple[Tensor, Any] | None:
    """y of x, and what a backward needs, or None."""
    done = known.forward(state, x, threads())
    return None if done is None else _ended(op, *done)


def backward_known(
    known: Any, saved: Any, d_y: Tensor, input_grad: bool, optimizer: Optimizer
) -> tuple[Tensor | None, Any] | None:
    """d_x where requested, and an update, of which torch is told; or None."""
    rates = optimizer.lr, optimizer.weight_decay
    done = known.backward(saved, d_y, input_grad, _native_optimizer(optimizer), *rates, threads())
    return None if done is None else _ended("backward", *done)


def _ended(op: str, result: Any, saved: Any, status: tuple[int, int, int] | None) -> Any:
    if status is not None:
        _check(op, status, [], 0)
    return result, saved
