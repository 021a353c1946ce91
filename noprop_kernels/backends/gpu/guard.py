"""The decorator of every function of a GPU backend: it sets the device, keeps calls on the same
parameters apart, and turns a lack of memory into an error that says what to do.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch

from ..calls import Slices, TrainCall
from ..turns import takes_turn
from .fits import check_slices


def where(slices: Slices) -> torch.device:
    return next(iter(slices.params.values())).device


def entry(function: Callable[[Any], None]) -> Callable[[Any], None]:
    """Wraps a function of the backend: without autograd, and with launches on its tensors' device.

    The function must allocate its memory before a launch that writes state.
    """

    @wraps(function)
    def guarded(call: Any) -> None:
        op = getattr(call, "op", function.__name__)
        device = where(call.slices) if hasattr(call, "slices") else call.y.device
        guard = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with torch.no_grad(), guard:
            if hasattr(call, "slices"):
                counts = getattr(call, "rule", None) is not None
                check_slices(op, call.slices, device, counts=counts)
            try:
                function(call)
            except torch.OutOfMemoryError as error:
                raise MemoryError(no_memory(op, call, device, error)) from error

    return takes_turn(guarded)


def no_memory(op: str, call: Any, device: torch.device, error: BaseException) -> str:
    instead = "fewer rows at a time need less"
    if isinstance(call, TrainCall):
        n = len(call.slices.index)
        at_once = n if call.blocks_per_launch is None else min(n, call.blocks_per_launch)
        instead = "a smaller batch needs less"
        if at_once > 1:
            instead += f", and so does blocks_per_launch below {at_once}, with the same result"
    cause = ". ".join(str(error).split(". ")[:2])
    return f"{op}: no memory on {device}, nothing was changed; {instead} ({cause})"
