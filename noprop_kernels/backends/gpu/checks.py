"""Checks of a call by the host; on a GPU the kernels check its contents."""

import torch
from torch import Tensor

from .. import contents
from ..calls import TrainCall
from . import errors
from .guard import where


def contents_are_checked(device: torch.device) -> bool:
    """Validates labels, indices and inputs on the host for CPU tensors; on a GPU the kernels do."""
    return device.type == "cpu"


def owner_of(owner: Tensor | None, device: torch.device) -> Tensor:
    """The key of a call's deferred errors: the object's, or the device's."""
    return errors.owner_of(device) if owner is None else owner


def check_train(call: TrainCall) -> None:
    if contents_are_checked(where(call.slices)):
        contents.check_train(call)
        return
    if call.B == 0:
        raise ValueError("train: a batch must have at least 1 row, got 0")
    contents.check_rows("train", call.slices.plan, call.B)
    if call.rule is None and call.out.grads is None:
        raise ValueError("train: a call without grads must have a rule, got None")
