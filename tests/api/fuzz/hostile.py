"""Hostile values for every argument and attribute, and the plans that they are for."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import noprop_kernels as nk

F, D, M, T, B = 7, 5, 5, 3, 4
NORM = nk.BatchNorm()
PLANS = {
    "mlp": nk.plans.mlp(F, D, M, hidden=6),
    "norm": nk.Plan(
        {"x": (F,), "z": (D,)},
        {
            "hx": nk.Dense("x", 6, norm=NORM, activation="relu"),
            "hz": nk.Dense(("z", "hx"), 6, norm=NORM, activation="gelu", add="hx"),
            "logits": nk.Dense(("hz", "x"), M),
        },
    ),
}
GOAL = nk.DT(nk.NoiseSchedule.cosine(T))
TIMED = nk.plans.mlp(F, D, M, hidden=6, time=True)

KINDS: dict[str, Callable[[Tensor], Any]] = {
    "as it is": lambda v: v,
    "strided": lambda v: v.repeat_interleave(2, -1)[..., ::2] if v.ndim else v,
    "expanded": lambda v: v[:1].expand(v.shape) if v.ndim else v.expand(3),
    "short": lambda v: v[:1].clone() if v.ndim else v,
    "long": lambda v: torch.cat([v, v]) if v.ndim else v,
    "empty": lambda v: v.new_empty(0),
    "no dimensions": lambda v: v.new_zeros(()),
    "no rows": lambda v: v[:0] if v.ndim else v,
    "transposed": lambda v: v.transpose(0, -1) if v.ndim else v,
    "float64": lambda v: v.double(),
    "float16": lambda v: v.half(),
    "int32": lambda v: v.int(),
    "int64": lambda v: v.long(),
    "bool": lambda v: v.bool(),
    "uint8": lambda v: v.byte(),
    "meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "NaN": lambda v: torch.full_like(v, torch.nan) if v.is_floating_point() else v,
    "1e38": lambda v: torch.full_like(v, 1e38) if v.is_floating_point() else v,
    "negative": lambda v: torch.full_like(v, -1),
    "2^62": lambda v: torch.full_like(v, 2**62) if v.dtype == torch.int64 else v,
    "requires grad": lambda v: v.detach().clone().requires_grad_(v.is_floating_point()),
    "None": lambda v: None,
    "a list": lambda v: v.tolist(),
    "a number": lambda v: 3,
    "negated lazily": torch._neg_view,
    "zero tensor": lambda v: torch._efficientzerotensor(v.shape, dtype=v.dtype),
    "no storage": lambda v: without_storage(v),
}
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, -1, 2**16, 2**31, 2**32, 2**63, 2**64, True, 0.5, -0.5, 1e39, 1e-3, None, "1"]
    + [float("nan"), float("inf"), (), [1], [3, 1], [1, 1]]
)
OBJECTS = st.sampled_from(["mlp", "norm", "head", "ct", "shared", "linear"])
ATTRIBUTES = (
    *("plan", "goal", "optimizer", "precision", "backend", "held", "replicas", "M", "D", "T"),
    *("blocks_per_launch", "training", "t", "seeds", "draws", "updates", "W_embed", "hx"),
)
VALUES = st.sampled_from(
    [PLANS["norm"], PLANS["mlp"], nk.DT(nk.NoiseSchedule.cosine(5)), nk.SGD(), nk.Adam(), "tf32"]
    + ["bfloat16", "reference", "cpu", "triton", None, 1, -1, 2**40, "x", (), (1, 2), [9], 0.5]
)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float32)


def without_storage(value: Tensor) -> Tensor:
    value = value.clone()
    value.untyped_storage().resize_(0)
    return value


def bits(module: nn.Module) -> dict[str, bytes]:
    """The object's contents, if they can be read."""
    found = {}
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.layout == torch.strided and value.device.type == "cpu" and value.untyped_storage():
            found[name] = value.detach().contiguous().view(-1).numpy(force=True).tobytes()
    return found
