"""Explains which backend runs an object, and why the others do not."""

from typing import Any

import torch

from .backends import dispatch
from .check import check_positive
from .plan import Plan

BEHIND = {"cuda": "Triton comes first until both have been timed on a GPU"}


def explain(
    what: Any,
    *,
    device: str | torch.device = "cpu",
    precision: str = "float32",
    batch: int = 128,
) -> str:
    """Says which backend runs this object, and the reason for every gap.

    Args:
        what: a DenoisingBlocks or OutputHead, or a Plan.
        device, precision: for a Plan; an object has its own.
        batch: rows of a step, for the thread blocks of the CUDA kernels.

    Returns:
        Text, a line per backend. Where the CUDA kernels could run an object that has an optimizer,
        another line describes train_steps there: the thread blocks, and what is kept in shared
        memory, in L2 and in global memory.

    Raises:
        ValueError: `what` is neither, or batch is not positive.
    """
    check_positive("explain", "batch", batch)
    plan, backend = what, None
    if isinstance(getattr(what, "plan", None), Plan):
        plan, backend = what.plan, what.backend
        device, precision = what.device, what.precision
    if not isinstance(plan, Plan):
        raise ValueError(
            f"explain: what must be a Plan or an object with one, got {type(what).__name__}"
        )
    device = torch.device(device)
    forced, by = dispatch.forced_backend(backend)
    head = None if what is plan else what.layout.goal.head
    reasons = {
        name: dispatch.gap(name, plan, device, precision, head=head) for name in dispatch.BACKENDS
    }
    chosen = next(
        (name for name in dispatch.candidates(device, forced) if reasons[name] is None), None
    )
    first = f"{type(what).__name__} on {device}, {precision}: {chosen or 'no backend can run it'}"
    lines = [first + (f" (forced by {by})" if forced else "")]
    samples = what is not plan and what.layout.goal.timed
    for name, reason in reasons.items():
        could = "could run" + (f"; {BEHIND[name]}" if name in BEHIND else "")
        lines.append(f"  {name}: {reason or ('chosen' if name == chosen else could)}")
        if samples and reason is None:
            gap = dispatch.gap(name, plan, device, precision, head=head, sampled=True)
            lines += [f"    but for predict: {gap}"] * (gap is not None)
        if name == "cuda" and reason is None and what is not plan and what.optimizer is not None:
            from .backends.cuda import describe  # asks the extension for the device's facts

            lines.append(f"    {describe.describe(what, batch)}")
    return "\n".join(lines)
