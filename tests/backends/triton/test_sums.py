"""Sums over rows fold chunks of 128 from the left, bit for bit."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.plan import Dense, Plan
from support.parts import make_backward, make_forward, make_head

pytestmark = [pytest.mark.triton, pytest.mark.parametrize("B", [100, 300])]


def folded(rows: torch.Tensor) -> torch.Tensor:
    """Sums of (B, columns), a chunk at a time."""
    total = torch.zeros(64)
    for chunk in rows.split(128):
        size = (0, 64 - chunk.shape[1], 0, 128 - len(chunk))
        total = total + torch.from_numpy(torch.nn.functional.pad(chunk, size).numpy().sum(0))
    return total[: rows.shape[1]]


def test_gradients_of_a_bias(kernels: ModuleType, B: int) -> None:
    plan = Plan({"x": (3,), "z": (2,)}, {"logits": Dense(("x", "z"), 4)})
    call = make_forward(plan, 1, B, training=True, save=True)
    kernels.forward(call)
    backward = make_backward(call)
    backward.d_logits *= torch.exp2(torch.randint(-30, 30, (1, B, 4)).float())
    kernels.backward(backward)
    assert torch.equal(backward.grads["logits.bias"][0], folded(backward.d_logits[0]))


def test_the_loss(kernels: ModuleType, B: int) -> None:
    call = make_head(B, 3, None, "linear")
    call.objective.weight = torch.exp2(torch.randint(-30, 30, (1, 2, B)).float())
    kernels.head(call)
    total = torch.zeros(2)
    for share in (call.objective.weight[0] * call.error).split(128, dim=1):
        padded = torch.nn.functional.pad(share, (0, 128 - share.shape[1]))
        total = total + torch.from_numpy(padded.numpy().sum(1))
    assert torch.equal(call.loss, total / B)
