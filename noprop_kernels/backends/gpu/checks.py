"""Checks of a call by the host; on a GPU the kernels check its contents."""

import torch
from torch import Tensor

from .. import contents
from ..calls import AddNoiseCall, HeadCall, Slices, TrainCall
from . import errors
from .guard import where
from .memory import stored


def contents_are_checked(device: torch.device) -> bool:
    """Validates labels, indices and inputs on the host for CPU tensors; on a GPU the kernels do."""
    return device.type == "cpu"


def owner_of(owner: Tensor | None, device: torch.device) -> Tensor:
    """The key of a call's deferred errors: the object's, or the device's."""
    return errors.owner_of(device) if owner is None else owner


def training_flags(slices: Slices) -> Tensor | None:
    """The bits that a training call's kernels set; None: the host checks."""
    return None if contents_are_checked(where(slices)) else errors.flags_of(slices.updates)


def look_at(op: str, inputs: dict[str, Tensor], owner: Tensor) -> list[Tensor]:
    """Requires finite inputs: checks them, or returns those that a kernel must flag."""
    if contents_are_checked(owner.device):
        contents.check_finite(op, inputs)
        return []
    errors.raise_found(owner)
    return [stored(value) for name, value in inputs.items() if name != "z"]


def check_add_noise(call: AddNoiseCall, tiles: int) -> Tensor | None:
    """Requires labels in range: checks them, or returns (n, tiles) int32 for a kernel's flags."""
    device = call.y.device
    if contents_are_checked(device):
        contents.check_labels(call.op, call.y, call.embedding.M)
        return None
    errors.raise_found(owner_of(call.owner, device))
    return torch.empty(call.y.shape[1], tiles, dtype=torch.int32, device=device)


def report_add_noise(call: AddNoiseCall, bad: Tensor | None) -> None:
    if bad is not None:
        errors.report(owner_of(call.owner, call.y.device), call.op, bad.amax())


def check_head(call: HeadCall) -> Tensor:
    """Requires labels in range, and returns those that the kernels may read, (n, B)."""
    y, M = call.y[0].contiguous(), call.logits.shape[-1]
    if contents_are_checked(y.device):
        contents.check_labels(call.op, y, M)
    else:
        owner = owner_of(call.owner, y.device)
        errors.raise_found(owner)
        bad = (y < 0) | (y >= M)
        errors.report(owner, call.op, bad.any())
        y = torch.where(bad, 0, y)
    if call.objective.flow != 0 and call.objective.head != "cross_entropy" and call.eps is None:
        raise ValueError(f"{call.op}: eps must be given where flow is not 0, got None")
    return y


def check_train(call: TrainCall) -> None:
    if contents_are_checked(where(call.slices)):
        contents.check_train(call)
        return
    contents.check_call(call)
