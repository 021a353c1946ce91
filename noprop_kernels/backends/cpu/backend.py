"""The CPU backend: calls handed to the extension `_C`, which reads their fields by name.

The extension takes the addresses: it checks each tensor there, against the plan and the call's
sizes, and holds its memory until it returns. A call that does not fit is a ValueError before
anything is written.
"""

from typing import Any

import torch
from torch import Tensor

from ...plan import Plan
from ..calls import (
    AddNoiseCall,
    BackwardCall,
    ForwardCall,
    HeadCall,
    TimesCall,
    TrainCall,
    UpdateCall,
)
from ..chain_calls import PredictCall
from ..contents import check_finite, check_rows
from ..shared_calls import LevelsCall, LevelsGradientCall, SharedUpdateCall
from . import extension
from .extension import C, check, check_isa, native_plan, rule_of, run
from .tensors import (  # noqa: F401  # the backend's own calls without a record
    add_noise_rows,
    backward_known,
    backward_layer,
    dense,
    error_rows,
    forward_known,
    forward_layer,
    known_layer,
)


def unavailable() -> str | None:
    """The reason why the extension cannot be used, or None."""
    return extension.missing


def describe() -> dict[str, Any]:
    """The extension's build, its instruction sets with those that run here, and threads.

    `threads` are those that the system grants to a call, which also runs with fewer than requested.
    """
    return {
        "compiler": C.compiler,
        "isas": dict(C.isas()),
        "isa_used": C.isa_used(),
        "processors": C.processors(),
        "threads": C.threads(extension.threads()),
    }


def set_isa(name: str | None) -> None:
    """Selects an instruction set for all later calls; None: the best that runs here.

    Raises:
        ValueError: it is not built in, or does not run on this processor.
    """
    if not C.set_isa(name or ""):
        built = ", ".join(
            f"{isa} ({'runs' if runs else 'does not run'} here)" for isa, runs in C.isas()
        )
        raise ValueError(f"NOPROP_ISA: must be one of {built}; got {name!r}")


def fma_gflop(num_threads: int, rounds: int) -> float:
    """Runs `rounds` bursts of multiply-adds on each thread; returns billions of operations."""
    return C.fma_gflop(num_threads, rounds)


def workspace_bytes(plan: Plan, n: int, B: int, D: int, K: int, precision: str = "float32") -> int:
    """Bytes of a thread's workspace in a training call of K steps on the same data for n slices."""
    return native_plan(plan, precision).workspace_bytes(n, B, D, K)


def packed_bytes(plan: Plan, n: int, B: int, K: int, precision: str = "float32") -> int:
    """Bytes of the rows that a training call of K steps on the same data packs for n slices."""
    return native_plan(plan, precision).packed_bytes(n, B, K)


def team_size(plan: Plan, n: int, B: int) -> int:
    """Threads that share each slice's work in a training call of n slices and B rows."""
    return native_plan(plan, "float32").team_size(n, B, extension.threads())


def crew_size(plan: Plan, chains: int, B: int) -> int:
    """Threads that share each chain in a call of `predict` with this many chains of B rows."""
    return native_plan(plan, "float32").crew_size(chains, B, extension.threads())


def plan_gap(plan: Plan) -> str | None:
    """The reason why the kernels cannot run `plan`, or None."""
    found = len(plan.inputs) + len(plan.layers)
    if found > C.most_results:
        return f"a plan may have {C.most_results} inputs and layers, this one has {found}"
    for name, layer in plan.layers.items():
        if len(layer.sources) > C.most_sources:
            found = len(layer.sources)
            return f"a layer may have {C.most_sources} inputs, {name!r} has {found}"
    widest = max(plan.widths.values())
    return None if widest < 2**31 else f"a width must be below 2^31, got {widest}"


def train(call: TrainCall) -> None:
    slices, plan = call.slices, call.slices.plan
    if call.K == 0:
        return
    if call.B == 0:
        raise ValueError(f"{call.op}: a batch must have at least 1 row, got 0")
    check_rows(call.op, plan, call.B)
    optimizer = rule_of(None if call.out.grads is not None else call.rule)
    native = native_plan(plan, slices.precision)
    result = run(C.train, native, call, optimizer)
    check(call.op, result, list(plan.inputs), plan.widths[plan.output])


def add_noise(call: AddNoiseCall) -> None:
    check(call.op, run(C.add_noise, call), [], call.embedding.M)


def draw_times(call: TimesCall) -> None:
    check("times", run(C.draw_times, call), [], 0)


def embed_times(out: Tensor, t: Tensor, frequencies: Tensor) -> None:
    """out (count, 2 n) float32: sines, then cosines, of t (count,) times frequencies (n,)."""
    check("embed_time", run(C.embed_times, out, t, frequencies), [], 0)


def _memory(native: Any, n: int, B: int) -> Tensor:
    """What a forward of B rows of n slices saves for its backward."""
    return torch.empty(native.saved_floats(n, B), dtype=torch.float32, device="cpu")


def levels(call: LevelsCall) -> None:
    check("levels", run(C.levels, call), [], 0)


def levels_gradient(call: LevelsGradientCall) -> None:
    check("levels", run(C.levels_gradient, call), [], 0)


def update_shared(call: SharedUpdateCall) -> None:
    check("update", run(C.update_shared, call, rule_of(call.rule)), [], 0)


def forward(call: ForwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    n, B, _ = call.inputs["z"].shape
    if call.check:
        check_finite("forward", call.inputs)
    if call.training:
        check_rows("forward", plan, B)
    native = native_plan(plan, slices.precision)
    saved = None
    if call.save:
        saved = _memory(native, n, B)
    result = run(C.forward, native, call, saved)
    check("forward", result, list(plan.inputs), plan.widths[plan.output])
    call.saved = (saved, call.training, C.isa_used()) if call.save else None


def head(call: HeadCall) -> None:
    check(call.op, run(C.head, call), [], call.logits.shape[-1])


def backward(call: BackwardCall) -> None:
    slices, plan = call.slices, call.slices.plan
    saved, training, isa = call.saved
    check_isa(isa)
    native = native_plan(plan, slices.precision)
    result = run(C.backward, native, call, saved, training, rule_of(call.rule))
    check("backward", result, list(plan.inputs), plan.widths[plan.output])


def update(call: UpdateCall) -> None:
    slices, plan = call.slices, call.slices.plan
    native = native_plan(plan, slices.precision)
    result = run(C.update, native, call, rule_of(call.rule))
    check("update", result, list(plan.inputs), plan.widths[plan.output])


def predict(call: PredictCall) -> None:
    slices, plan = call.slices, call.slices.plan
    if call.logits.numel() == 0:
        return
    check_finite("predict", call.inputs)
    result = run(C.predict, native_plan(plan, slices.precision), call)
    check("predict", result, list(plan.inputs), plan.widths[plan.output])
