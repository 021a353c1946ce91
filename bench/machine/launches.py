"""A Triton kernel that does almost nothing, for timing launches."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def nothing_kernel(one_ptr, PDL: tl.constexpr):
    """Adds 1 to one number, so that a launch depends on the one before it."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tl.store(one_ptr, tl.load(one_ptr) + 1)


def early(device: torch.device) -> bool:
    """Whether a launch can begin before the previous one ends."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def nothing(one: Tensor, pdl: bool) -> Callable[[], Any]:
    """A launch on a tensor of one number."""
    options: dict[str, Any] = {"launch_pdl": True} if pdl else {}
    return lambda: nothing_kernel[(1,)](one, PDL=pdl, num_warps=1, **options)
