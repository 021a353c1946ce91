"""Hooks of torch.compile, imported lazily: importing torch._dynamo takes over a second."""

from collections.abc import Callable
from typing import Any

import torch

from . import plan_texts

text_of = torch.compiler.assume_constant_result(plan_texts.text_of)


@torch.compiler.disable(
    reason="noprop_kernels: a call that trains reads labels and counters on the host and moves "
    "state, nk.Linear its weights inside backward, which the compiler's graphs cannot express. "
    "Compiled are the blocks' forward and predict, nk.functional, nk.DenoisingLoss, and nk.Linear "
    "in eval mode, without gradients or with optimizer=None"
)
def interrupted(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return function(*arguments, **options)
