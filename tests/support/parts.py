"""Random calls of the parts of a step: forward and backward, the head, noise, the optimizer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from noprop_kernels.backends.calls import (
    AddNoiseCall,
    BackwardCall,
    Embedding,
    ForwardCall,
    HeadCall,
    NoiseAddress,
    Noising,
    Objective,
    Rule,
    UpdateCall,
)
from noprop_kernels.optimizers import Optimizer
from noprop_kernels.plan import Plan
from support.calls import make_slices, nan


def make_forward(
    plan: Plan,
    n: int,
    B: int,
    *,
    training: bool,
    save: bool,
    optimizer: Optimizer | None = None,
    precision: str = "float32",
) -> ForwardCall:
    generator = torch.Generator().manual_seed(B)
    slices = make_slices(plan, n + 1, n, optimizer=optimizer, generator=generator)
    slices.precision = precision
    inputs = {}
    for name, (width,) in plan.inputs.items():
        made = torch.randn(1 if name == "x" else n, B, width, generator=generator)
        inputs[name] = made.expand(n, B, width)
    return ForwardCall(slices, inputs, nan(n, B, plan.widths[plan.output]), training, save)


def make_backward(call: ForwardCall, d_logits: Tensor | None = None) -> BackwardCall:
    """Of what a forward saved, for every gradient."""
    dtype = call.logits.dtype
    if d_logits is None:
        generator = torch.Generator().manual_seed(1)
        d_logits = torch.randn(call.logits.shape, generator=generator).to(dtype)
    n, B, _ = d_logits.shape
    plan = call.slices.plan
    return BackwardCall(
        call.slices,
        call.saved,
        d_logits,
        {name: nan(n, *shape, dtype=dtype) for name, shape in plan.parameters().items()},
        {name: nan(n, B, *shape, dtype=dtype) for name, shape in plan.inputs.items()},
    )


def make_head(
    B: int,
    M: int,
    D: int | None,
    head: str,
    flow: float = 0.0,
    scale: float = 2,
    radius: float = 0.0,
) -> HeadCall:
    """Two slices; the labels are one-hot where D is None."""
    generator, n = torch.Generator().manual_seed(B + M), 2

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    W_embed = None if D is None else randn(M, D)
    D = M if D is None else D
    return HeadCall(
        Objective(torch.rand(1, n, B, generator=generator), flow, head, B, radius),
        Embedding(W_embed, D),
        torch.randint(M, (1, n, B), generator=generator),
        scale * randn(n, B, M),
        randn(n, B, D) if flow else None,
        *(nan(n), nan(n, B), nan(n, B, M), nan(n, B, D)),
    )


def make_add_noise(
    B: int, D: int, *, sigma: float = 0.0, one_hot: bool = False, first_row: int = 0
) -> AddNoiseCall:
    generator, n = torch.Generator().manual_seed(B + D), 3
    M = D if one_hot else 5
    return AddNoiseCall(
        NoiseAddress(
            torch.randint(-(2**62), 2**62, (n,), generator=generator) * 2,
            torch.randint(2**40, (1, n), generator=generator),
            torch.tensor([[0xFFFE, 3, 0]]),
            0,
            first_row,
        ),
        Noising(*torch.rand(2, 1, n, B, generator=generator), sigma),
        Embedding(None if one_hot else torch.randn(M, D, generator=generator), D),
        torch.randint(M, (1, n, B), generator=generator),
        *(nan(n, B, D), nan(n, B, D)),
    )


def make_update(plan: Plan, optimizer: Optimizer, apply: Sequence[bool]) -> UpdateCall:
    generator, n = torch.Generator().manual_seed(3), len(apply)
    slices = make_slices(plan, n + 2, n, optimizer=optimizer, generator=generator)
    grads = {
        name: torch.randn(n, *shape, generator=generator)
        for name, shape in plan.parameters().items()
    }
    lr = optimizer.lr * torch.arange(1, n + 1, dtype=torch.float64)[None]
    decay = torch.as_tensor(optimizer.weight_decay, dtype=torch.float64).expand(n)
    return UpdateCall(slices, grads, torch.tensor(apply), Rule(optimizer, lr, decay))
