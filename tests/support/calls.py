"""Random calls for the backends' tests: every test of every backend builds its calls here.

A call is made once, in float32; `clone_call` gives each backend a copy of its own and the reference
one in float64, the exact answer. Outputs are poisoned with NaN, so that what a backend leaves
unwritten fails.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from noprop_kernels import plans
from noprop_kernels.backends.calls import (
    Embedding,
    Gather,
    NoiseAddress,
    Noising,
    Objective,
    Rule,
    Slices,
    Tensors,
    TrainCall,
    TrainOut,
)
from noprop_kernels.optimizers import Optimizer
from noprop_kernels.plan import BatchNorm, Dense, Plan


def branches(F: int, D: int, M: int) -> Plan:
    """Three consumers of one result, `add` with and without norm, and a norm without activation."""
    return Plan(
        inputs={"x": (F,), "z": (D,)},
        layers={
            "h": Dense(("z", "x"), 9, activation="relu"),
            "left": Dense("h", 9, norm=BatchNorm(eps=1e-3, momentum=0.3), add="h"),
            "right": Dense(("h", "left"), 9, activation="relu", add="left"),
            "logits": Dense(("right", "x"), M),
        },
    )


def two_inputs(F: int, D: int, M: int) -> Plan:
    """A second input of the caller's, "t", that two layers read."""
    return Plan(
        inputs={"t": (6,), "z": (D,), "x": (F,)},
        layers={
            "hx": Dense(("x", "t"), 8, activation="relu"),
            "hz": Dense("z", 8),
            "f": Dense(("hx", "hz", "t"), 7, activation="relu"),
            "logits": Dense("f", M),
        },
    )


def activations(F: int, D: int, M: int) -> Plan:
    """GELU with and without norm and `add`, beside ReLU and none, and behind the logits."""
    return Plan(
        inputs={"x": (F,), "z": (D,)},
        layers={
            "h": Dense(("z", "x"), 9, activation="gelu"),
            "left": Dense("h", 9, norm=BatchNorm(eps=1e-3), activation="gelu", add="h"),
            "right": Dense("left", 9, norm=BatchNorm(eps=1e-3), activation="relu"),
            "u": Dense(("right", "x"), 9, activation="gelu", add="left"),
            "f": Dense(("u", "left"), 11, norm=BatchNorm(eps=1e-3), activation="gelu"),
            "g": Dense("f", 7),
            "logits": Dense(("g", "f", "x"), M, activation="gelu"),
        },
    )


# by name, each a function of (F, D, M)
PLANS: dict[str, Callable[[int, int, int], Plan]] = {
    "mlp": lambda F, D, M: plans.mlp(F, D, M, hidden=13),
    "paper_dt": plans.paper_dt,
    "branches": branches,
    "two_inputs": two_inputs,
    "activations": activations,
    "added_input": lambda F, D, M: Plan(
        inputs={"x": (F,), "z": (D,)},
        layers={
            "h": Dense(("z", "x"), F, activation="relu", add="x"),
            "u": Dense("h", D, norm=BatchNorm(), add="z"),
            "logits": Dense(("u", "h"), M),
        },
    ),
    "one_layer": lambda F, D, M: Plan(
        inputs={"x": (F,), "z": (D,)}, layers={"logits": Dense(("x", "z"), M)}
    ),
}


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def make_slices(
    plan: Plan,
    N: int,
    n: int,
    *,
    optimizer: Optimizer | None,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
) -> Slices:
    """N slices with random state, of which n are selected, in random order."""

    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    params: Tensors = {}
    for name, shape in plan.parameters().items():
        value = randn(N, *shape)
        if name.endswith("norm.weight"):
            value = 1 + 0.3 * value
        else:
            value = value * (0.3 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5)
        params[name] = value.to(dtype)
    moments = optimizer.moments if optimizer is not None else ()

    def moment(name: str) -> Tensors:
        if name not in moments:
            return {}
        made = {key: 0.03 * randn(*value.shape) for key, value in params.items()}
        for key in made:
            if key.endswith("bias") and key.replace("bias", "norm.weight") in params:
                made[key].zero_()  # such a gradient is zero at every step
            if name == "v":
                made[key].abs_()
        return {key: value.to(dtype) for key, value in made.items()}

    stats = {}
    for name, shape in plan.statistics().items():
        value = 0.3 * randn(N, *shape)
        stats[name] = (0.5 + value.abs() if name.endswith("var") else value).to(dtype)
    return Slices(
        plan=plan,
        params=params,
        m=moment("m"),
        v=moment("v"),
        stats=stats,
        seeds=torch.randint(-(2**62), 2**62, (N,), generator=generator) * 2,
        draws=torch.randint(1000, (N,), generator=generator),
        updates=torch.randint(20, (N,), generator=generator),
        index=torch.randperm(N, generator=generator)[:n],
    )


def make_train_call(
    plan: Plan,
    N: int,
    n: int,
    B: int,
    K: int,
    *,
    head: str = "softmax",
    radius: float = 0.0,
    flow: float = 0.0,
    sigma: float = 0.0,
    per_row: bool = False,
    one_hot: bool = False,
    optimizer: Optimizer | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    gather: bool = False,
    data_dtype: torch.dtype | None = None,
    z_features: bool = False,
    D: int | None = None,
    extras: bool = False,
    grads: bool = False,
    first_row: int = 0,
    rows: int | None = None,
    row_weight: bool = False,
) -> TrainCall:
    """A random training call; its outputs hold NaN.

    Args:
        N, n, B, K: slices held, slices run, rows, steps.
        per_row: the three numbers differ by step and row, else by slice alone.
        one_hot: W_embed is None, which needs D = M.
        gather: inputs and labels are rows of a data set; R = 2 where n allows.
        data_dtype: of the gathered inputs; uint8 comes with a mean and a scale.
        z_features: the call brings features of z, as wide as the plan's "z"; else D is that width.
        extras: ask for error, d_inputs, d_signal, d_noise and d_W_embed (K = 1).
        grads: ask for gradients and batch statistics instead of an update (K = 1).
        first_row, rows: the place of these rows in the whole batch; rows defaults to B.
        row_weight: the loss' weights differ by row, also where signal and noise do not.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.rand, torch.randn
    rand, randn = (partial(kind, generator=generator, dtype=torch.float64) for kind in kinds)
    poison = partial(nan, dtype=dtype)
    M = plan.widths[plan.output]
    if D is None:
        D = M if one_hot else plan.widths["z"]
    slices = make_slices(plan, N, n, optimizer=optimizer, generator=generator, dtype=dtype)
    k = torch.arange(K)[:, None]
    noise = NoiseAddress(
        seeds=slices.seeds[slices.index],
        draw=slices.draws[slices.index] + k,  # (K, n)
        block=torch.randperm(max(n, 10), generator=generator)[:n].expand(K, n),
        stream=0,
        first_row=first_row,
    )
    shape = (K, n, B) if per_row else (1, n, 1)
    signal = 0.1 + 0.8 * rand(*shape)
    noising = Noising(
        signal=signal.to(dtype).expand(K, n, B),
        noise=(1 - signal**2).sqrt().to(dtype).expand(K, n, B),
        sigma=sigma,
    )
    objective = Objective(
        weight=(0.2 + 2 * rand(*shape)).to(dtype).expand(K, n, B),
        flow=flow,
        head=head,
        rows=B if rows is None else rows,
        radius=radius,
    )
    embedding = Embedding(None if one_hot else randn(M, D).to(dtype), D)
    R = 2 if gather and n > 1 else 1
    held = max(2 * B, 3)
    indices = torch.randint(held, (K, R, B), generator=generator)
    replica = torch.arange(n) % R

    def gathered(data: Tensor, mean: Tensor | None = None, scale: Tensor | None = None) -> Gather:
        return Gather(data=data, indices=indices, replica=replica, mean=mean, scale=scale)

    inputs: dict[str, Tensor | Gather] = {}
    for name in plan.inputs:
        F = plan.widths[name]
        if name == "z":
            continue
        if not gather:
            # "x" is shared by the slices, any other input is one per slice
            made = randn(K, 1 if name == "x" else n, B, F).to(dtype)
            inputs[name] = made.expand(K, n, B, F)
        elif data_dtype == torch.uint8:
            data = torch.randint(256, (held, F), generator=generator, dtype=torch.uint8)
            scale = (0.5 + rand(F)) / 100
            inputs[name] = gathered(data, (200 * rand(F)).to(dtype), scale.to(dtype))
        else:
            inputs[name] = gathered(randn(held, F).to(data_dtype or dtype))
    y: Tensor | Gather
    if gather:
        y = gathered(torch.randint(M, (held,), generator=generator))
    else:
        y = torch.randint(M, (K, 1, B), generator=generator).expand(K, n, B)

    out = TrainOut(loss=poison(K, n), applied=torch.randint(2, (K, n), generator=generator).bool())
    if extras:
        out.error = poison(n, B)
        out.d_inputs = {
            name: poison(n, B, plan.widths[name])
            for name in plan.inputs
            if name != "z" or z_features  # without features the kernel's z is no one's to see
        }
        if not z_features:
            out.d_signal, out.d_noise = poison(n, B), poison(n, B)
        out.d_W_embed = poison(n, M, D)
    if grads:
        out.grads = {name: poison(n, *shape) for name, shape in plan.parameters().items()}
        out.stats = {name: poison(n, *shape) for name, shape in plan.statistics().items()}
    rule = None
    if optimizer is not None:
        decays = torch.as_tensor(optimizer.weight_decay, dtype=torch.float64).expand(n)
        rule = Rule(optimizer, optimizer.lr * (0.5 + rand(K, n)), decays)
    if row_weight:
        objective.weight = objective.weight * (3 * rand(K, n, B)).to(dtype)
    return TrainCall(
        slices=slices,
        noise=noise,
        noising=noising,
        objective=objective,
        embedding=embedding,
        inputs=inputs,
        z=randn(n, B, plan.widths["z"]).to(dtype) if z_features else None,
        y=y,
        rule=rule,
        B=B,
        K=K,
        out=out,
    )


def clone_call(call: Any, dtype: torch.dtype | None = None) -> Any:
    """A deep copy of any call, its floating tensors in `dtype`, expanded dimensions still expanded.

    A Rule keeps its float64 numbers. Converting to float64 is exact, so that the copy asks the same
    question.
    """
    if isinstance(call, Tensor):
        kept = call[tuple(slice(0, 1 if stride == 0 else None) for stride in call.stride())]
        if dtype is not None and call.is_floating_point():
            kept = kept.to(dtype)
        return kept.clone().expand(call.shape)
    if isinstance(call, dict):
        return {key: clone_call(value, dtype) for key, value in call.items()}
    if dataclasses.is_dataclass(call) and not isinstance(call, Optimizer):
        inner = None if isinstance(call, Rule) else dtype
        fields = {
            f.name: clone_call(getattr(call, f.name), inner) for f in dataclasses.fields(call)
        }
        return type(call)(**fields)  # type: ignore[operator]
    return call


def one_slice(call: TrainCall, i: int, step: int) -> TrainCall:
    """Step `step` of slice i as a call of its own, on the same state."""
    return one_step(call, step, slice(i, i + 1))


def one_step(call: TrainCall, step: int, part: slice) -> TrainCall:
    """Step `step` of the slices in `part` as a call of its own, on the same state."""
    cut, n = slice(step, step + 1), len(call.slices.index[part])

    def rows(value: Tensor | Gather) -> Tensor | Gather:
        if isinstance(value, Tensor):
            return value[cut, part]
        return dataclasses.replace(value, indices=value.indices[cut], replica=value.replica[part])

    numbers, noising, weight = call.noise, call.noising, call.objective.weight
    return dataclasses.replace(
        call,
        slices=dataclasses.replace(call.slices, index=call.slices.index[part]),
        noise=dataclasses.replace(
            numbers,
            seeds=numbers.seeds[part],
            draw=numbers.draw[cut, part],
            block=numbers.block[cut, part],
        ),
        noising=dataclasses.replace(
            noising, signal=noising.signal[cut, part], noise=noising.noise[cut, part]
        ),
        objective=dataclasses.replace(call.objective, weight=weight[cut, part]),
        inputs={key: rows(value) for key, value in call.inputs.items()},
        y=rows(call.y),
        rule=dataclasses.replace(
            call.rule, lr=call.rule.lr[cut, part], weight_decay=call.rule.weight_decay[part]
        ),
        K=1,
        out=dataclasses.replace(
            call.out, loss=torch.zeros(1, n), applied=torch.zeros(1, n, dtype=torch.bool)
        ),
    )
