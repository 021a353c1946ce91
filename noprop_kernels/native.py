"""The CPU backend: calls as the addresses and sizes that the extension `_C` takes.

The one file of the CPU kernels that reads an address. Every tensor was checked before its call was
made and is held by it until the extension returns.
"""

import functools
import time
from typing import Any

import torch
from torch import Tensor

from . import openmp
from .calls import (
    AddNoiseCall,
    BackwardCall,
    ForwardCall,
    Gather,
    HeadCall,
    Mix,
    Noise,
    PredictCall,
    Rule,
    Slices,
    TrainCall,
    UpdateCall,
)
from .check import check_finite
from .optimizers import SGD, Adam, AdamW
from .plan import Plan

try:
    from . import _C  # type: ignore[attr-defined]

    _missing = None
except ImportError as error:
    _C: Any = None
    _missing = str(error)

_HEADS = {"softmax": 0, "linear": 1, "cross_entropy": 2}
_PRECISIONS = {"float32": 0, "bfloat16": 1}
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
_NO_UPDATE = (0, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0)
_STOPPED, _NO_MEMORY, _BAD_LABEL, _BAD_INDEX, _BAD_INPUT = 1, 2, 3, 4, 5


def unavailable() -> str | None:
    """Why the extension cannot be used, or None."""
    return _missing


def describe() -> dict[str, Any]:
    """The extension's build, its instruction sets and whether they run here, and threads."""
    return {
        "compiler": _C.compiler,
        "isas": dict(_C.isas()),
        "isa_used": _C.isa_used(),
        "processors": _C.processors(),
        "threads": threads(),
    }


def set_isa(name: str | None) -> None:
    """Use this instruction set from now on; None: the best that runs here.

    Raises:
        ValueError: it is not built in, or does not run on this processor.
    """
    if not _C.set_isa(name or ""):
        built = ", ".join(
            f"{isa} ({'runs' if runs else 'does not run'} here)" for isa, runs in _C.isas()
        )
        raise ValueError(f"NOPROP_ISA: must be one of {built}; got {name!r}")


def threads() -> int:
    """Threads a call uses: those that the process may have, at most torch.get_num_threads()."""
    return min(_processors(int(time.monotonic())), torch.get_num_threads())


def _call_threads() -> int:
    """Threads for a call; where it may use several, PyTorch's make room."""
    count = threads()
    if count > 1:
        openmp.let_go()
    return count


@functools.lru_cache(maxsize=1)
def _processors(second: int) -> int:
    """Read once a second: affinity and quota may change, and to read them takes 20 us."""
    return _C.processors()


def fma_gflop(num_threads: int, rounds: int) -> float:
    """`rounds` bursts of multiply-adds on each thread; returns the billions of operations done."""
    return _C.fma_gflop(num_threads, rounds)


def workspace_bytes(plan: Plan, B: int, D: int, precision: str = "float32") -> int:
    """Bytes of one thread's workspace in a training call of B rows."""
    return _native_plan(plan, precision).workspace_bytes(B, D)


def packed_bytes(plan: Plan, n: int, B: int, K: int, precision: str = "float32") -> int:
    """Bytes of the rows that a training call of K steps on the same data packs for n slices."""
    return _native_plan(plan, precision).packed_bytes(n, B, K)


def team_size(plan: Plan, n: int, B: int) -> int:
    """Threads that share each slice's work in a training call of n slices and B rows."""
    return _native_plan(plan, "float32").team_size(n, B, threads())


def crew_size(plan: Plan, chains: int, B: int) -> int:
    """Threads that share each chain in a call of `predict` with so many chains of B rows."""
    return _native_plan(plan, "float32").crew_size(chains, B, threads())


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.lru_cache(maxsize=64)
def _native_plan(plan: Plan, precision: str) -> Any:
    number = {name: i for i, name in enumerate([*plan.inputs, *plan.layers])}
    layers = [
        (
            [number[source] for source in layer.sources],
            layer.features,
            int(layer.activation == "relu"),
            number[layer.add] if layer.add else -1,
            int(layer.norm is not None),
            layer.norm.eps if layer.norm else 0.0,
            layer.norm.momentum if layer.norm else 0.0,
        )
        for layer in plan.layers.values()
    ]
    widths = [plan.inputs[name][0] for name in plan.inputs]
    return _C.Plan(widths, number["z"], layers, _PRECISIONS[precision])


@functools.lru_cache(maxsize=64)
def _places(plan: Plan) -> dict[str, int]:
    """Where each tensor's addresses begin in the extension's list, which has 20 a layer."""
    parts = {"weight": 0, "bias": 4, "norm.weight": 8, "norm.bias": 12}
    parts |= {"norm.running_mean": 16, "norm.running_var": 17}
    return {
        f"{layer}.{part}": 20 * i + place
        for i, layer in enumerate(plan.layers)
        for part, place in parts.items()
    }


def _state(
    slices: Slices, grads: dict[str, Tensor] | None = None, stats: dict[str, Tensor] | None = None
) -> list[int]:
    places = _places(slices.plan)
    addresses = [0] * (20 * len(slices.plan.layers))
    groups = ((slices.params, 0), (slices.m, 1), (slices.v, 2), (grads, 3))
    for group, offset in (*groups, (slices.stats, 0), (stats, 2)):
        if group:
            for name, address in zip(group, map(Tensor.data_ptr, group.values()), strict=True):
                addresses[places[name] + offset] = address
    return addresses


def _counters(slices: Slices) -> list[int]:
    return [_address(t) for t in (slices.seeds, slices.draws, slices.updates, slices.index)]


def _noise(noise: Noise) -> tuple:
    return (
        noise.draw.data_ptr(), *noise.draw.stride(),
        noise.block.data_ptr(), *noise.block.stride(),
        noise.stream, noise.first_row,
    )  # fmt: skip


def _number(number: Tensor) -> tuple:
    return (number.data_ptr(), *number.stride())


def _mix(mix: Mix) -> tuple:
    return (
        _number(mix.signal), _number(mix.noise), _number(mix.weight),
        mix.flow, mix.sigma, _HEADS[mix.head], _address(mix.W_embed), mix.D, mix.rows,
    )  # fmt: skip


def _gather(gather: Gather) -> tuple:
    _, R, _ = gather.indices.shape
    return (gather.indices.data_ptr(), gather.replica.data_ptr(), R, len(gather.data))


def _input(data: Tensor | Gather) -> tuple:
    if isinstance(data, Gather):
        rows = data.data
        return (
            rows.data_ptr(), _DTYPES[rows.dtype], 0, 0, *_gather(data),
            _address(data.mean), _address(data.scale),
        )  # fmt: skip
    step, per_slice = data.stride()[:-2] if data.ndim == 4 else (0, data.stride(0))
    return (data.data_ptr(), _DTYPES[data.dtype], step, per_slice, 0, 0, 1, 0, 0, 0)


def _inputs(plan: Plan, inputs: dict[str, Any]) -> list[tuple]:
    nothing = (0, 0, 0, 0, 0, 0, 1, 0, 0, 0)
    return [_input(inputs[name]) if name in inputs else nothing for name in plan.inputs]


def _labels(y: Tensor | Gather) -> tuple:
    if isinstance(y, Gather):
        return (y.data.data_ptr(), 0, 0, *_gather(y))
    step, per_slice, _ = y.stride()
    return (y.data_ptr(), step, per_slice, 0, 0, 1, 0)


def _rule(rule: Rule | None) -> tuple:
    if rule is None:
        return _NO_UPDATE
    optimizer = rule.optimizer
    decay = rule.weight_decay
    lr = (rule.lr.data_ptr(), *rule.lr.stride(), decay.data_ptr(), *decay.stride())
    if isinstance(optimizer, SGD):
        return (1, *lr, optimizer.momentum, 0.0, 0.0, 0.0, int(optimizer.nesterov))
    if isinstance(optimizer, Adam):
        kind = 3 if isinstance(optimizer, AdamW) else 2
        return (kind, *lr, 0.0, *optimizer.betas, optimizer.eps, 0)
    raise AssertionError(type(optimizer))  # the caller refuses what is none of ours


def _check(op: str, result: tuple[int, int, int], inputs: list[str], M: int) -> None:
    status, where, value = result
    if status == _NO_MEMORY:
        raise MemoryError(f"{op}: no memory for the workspace; nothing was changed")
    if status == _BAD_LABEL:
        raise ValueError(f"{op}: labels must be in 0..{M - 1}, got {value} at row {where}")
    if status == _BAD_INDEX:
        raise ValueError(f"{op}: indices must name rows of the data, got {value} at {where}")
    if status == _BAD_INPUT:
        raise ValueError(f"{op}: {inputs[value]} must be finite, got NaN or infinity")


def _refuse_single_row(op: str, plan: Plan, B: int) -> None:
    if B == 1 and plan.has_norm():
        raise ValueError(f"{op}: batch norm needs at least 2 rows in training, got 1")


def train(call: TrainCall) -> None:
    slices, out, plan = call.slices, call.out, call.slices.plan
    if call.K == 0:
        return
    if call.B == 0:
        raise ValueError("train: a batch must have at least 1 row, got 0")
    _refuse_single_row("train", plan, call.B)
    result = _C.train(
        _native_plan(plan, slices.precision),
        _state(slices, out.grads, out.stats),
        _counters(slices),
        len(slices.index),
        _noise(call.noise),
        _mix(call.mix),
        _inputs(plan, call.inputs),
        _address(call.z),
        _labels(call.y),
        _rule(None if out.grads is not None else call.rule),
        call.B,
        call.K,
        [_address(t) for t in (out.loss, out.applied, out.error)]
        + [_address(t) for t in (out.d_signal, out.d_noise, out.d_W_embed)],
        [_address(out.d_inputs.get(name)) for name in plan.inputs],
        _call_threads(),
    )
    _check("train", result, list(plan.inputs), plan.widths[plan.output])


def add_noise(call: AddNoiseCall) -> None:
    _, n, B = call.y.shape
    M = call.mix.D if call.mix.W_embed is None else len(call.mix.W_embed)
    seeds, noise, mix, y = call.noise.seeds, _noise(call.noise), _mix(call.mix), _labels(call.y)
    result = _C.add_noise(
        _address(call.z),
        _address(call.eps),
        seeds.data_ptr(),
        noise,
        mix,
        y,
        n,
        B,
        M,
        _call_threads(),
    )
    _check("add_noise", result, [], M)


def forward(call: ForwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    n, B, _ = call.logits.shape
    if call.check:
        check_finite("forward", call.inputs)
    if call.training:
        _refuse_single_row("forward", plan, B)
    native = _native_plan(plan, slices.precision)
    saved = None
    if call.save:
        # 16 floats more, so that the first slice can begin at a multiple of 64 bytes
        floats = n * native.saved_bytes(B) // 4 + 16
        saved = torch.empty(floats, dtype=torch.float32)
        saved = saved[-saved.data_ptr() % 64 // 4 :]
    result = _C.forward(
        native,
        call.logits.data_ptr(),
        _address(saved),
        _state(slices),
        _counters(slices),
        n,
        _inputs(plan, call.inputs),
        B,
        call.training,
        _call_threads(),
    )
    _check("forward", result, list(plan.inputs), plan.widths[plan.output])
    call.saved = (saved, call.training, _C.isa_used()) if call.save else None


def head(call: HeadCall) -> None:
    n, B, M = call.logits.shape
    outputs = [_address(t) for t in (call.loss, call.error, call.d_logits, call.u_hat)]
    logits, eps = call.logits.data_ptr(), _address(call.eps)
    result = _C.head(
        outputs, logits, eps, _mix(call.mix), _labels(call.y), n, B, M, _call_threads()
    )
    _check("head", result, [], M)


def backward(call: BackwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    n, B, M = call.d_logits.shape
    saved, training, isa = call.saved
    if isa != _C.isa_used():
        raise RuntimeError(
            f"backward: the forward ran with {isa} and left its layout; now {_C.isa_used()} is used"
        )
    result = _C.backward(
        _native_plan(plan, slices.precision),
        _state(slices, call.grads),
        _counters(slices),
        n,
        saved.data_ptr(),
        call.d_logits.data_ptr(),
        [_address(call.d_inputs.get(name)) for name in plan.inputs],
        _rule(call.rule),
        _address(call.applied),
        B,
        training,
        _call_threads(),
    )
    _check("backward", result, list(plan.inputs), M)


def update(call: UpdateCall) -> None:
    slices, plan = call.slices, call.slices.plan
    state, counters = _state(slices, call.grads), _counters(slices)
    apply, n = call.apply.data_ptr(), len(slices.index)
    result = _C.update(
        _native_plan(plan, slices.precision),
        state,
        counters,
        n,
        apply,
        _rule(call.rule),
        _call_threads(),
    )
    _check("update", result, list(plan.inputs), plan.widths[plan.output])


def predict(call: PredictCall) -> None:
    slices, plan = call.slices, call.slices.plan
    _, S, R, B, M = call.logits.shape
    if B == 0:
        return
    check_finite("predict", call.inputs)
    zeros = torch.zeros(1)
    unused = _number(zeros.expand(1, 1, 1))
    mix = (unused,) * 3 + (0.0, 0.0, _HEADS[call.head], _address(call.W_embed), call.D, B)
    result = _C.predict(
        _native_plan(plan, slices.precision),
        [_address(t) for t in (call.logits, call.u_hat, call.z)],
        _state(slices),
        _counters(slices),
        len(slices.index),
        call.seeds.data_ptr(),
        _inputs(plan, call.inputs),
        [_address(t) for t in (call.a, call.b, call.sqrt_c)],
        mix,
        S,
        R,
        B,
        call.first_row,
        call.add_noise,
        len(call.z) > 1 or len(slices.index) == R,
        _call_threads(),
    )
    _check("predict", result, list(plan.inputs), M)
