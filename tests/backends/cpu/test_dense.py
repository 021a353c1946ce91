"""Products on the CPU kernels: every tile of registers, long sums, the order of sums over rows."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.plan import BatchNorm, Dense, Plan
from support.compare import check_layers
from support.parts import make_backward, make_forward


@pytest.mark.parametrize("out", [1, 2, 4, 6, 7, 12, 13, 20])
@pytest.mark.parametrize("inside", [1, 15, 16, 17, 64, 113])
@pytest.mark.parametrize("B", [1, 15, 33, 64, 70])
def test_sizes(kernels: ModuleType, B: int, inside: int, out: int) -> None:
    """Every height and width of a register tile, and what is left over."""
    plan = Plan({"x": (inside,), "z": (2,)}, {"logits": Dense(("x", "z"), out)})
    check_layers(kernels, plan, 1, B, True)


def test_long_sums(kernels: ModuleType) -> None:
    plan = Plan(
        {"x": (1023,), "z": (3,)},
        {
            "h": Dense(("x", "z"), 131, activation="relu", norm=BatchNorm()),
            "logits": Dense("h", 5),
        },
    )
    check_layers(kernels, plan, 2, 257, True)


def test_operands_larger_than_a_second_cache(kernels: ModuleType) -> None:
    """Several tiles take turns on each panel and each strip."""
    plan = Plan(
        {"x": (1030,), "z": (3,)},
        {"h": Dense(("x", "z"), 800, activation="relu"), "logits": Dense(("h", "x"), 37)},
    )
    check_layers(kernels, plan, 1, 519, True)


def test_panels_larger_than_a_second_cache(kernels: ModuleType) -> None:
    """Sums are formed in blocks of terms: over features forward, over outputs backward."""
    plan = Plan(
        {"x": (3,), "z": (2,)},
        {
            "narrow": Dense(("x", "z"), 5),
            "wide": Dense(("narrow", "z"), 26_000, activation="relu"),
            "logits": Dense(("x", "wide", "z"), 13),
        },
    )
    check_layers(kernels, plan, 1, 49, True)


@pytest.mark.parametrize("B", [1, 100, 128, 300])
def test_sums_over_rows_fold_chunks_of_128_from_the_left(kernels: ModuleType, B: int) -> None:
    """Bit for bit: inside a chunk lane by lane, the lanes then in halves."""
    plan = Plan({"x": (3,), "z": (2,)}, {"logits": Dense(("x", "z"), 4)})
    call = make_forward(plan, 1, B, training=True, save=True)
    kernels.forward(call)
    backward = make_backward(call, torch.randn(1, B, 4, generator=torch.Generator().manual_seed(B)))
    kernels.backward(backward)
    lanes = {"avx512bf16": 16, "avx512": 16, "avx2": 8}.get(kernels.describe()["isa_used"], 4)
    total = torch.zeros(4)
    for chunk in backward.d_logits[0].split(128):
        rows = torch.cat([chunk, torch.zeros(-len(chunk) % lanes, 4)]).view(-1, lanes, 4)
        part = torch.zeros(lanes, 4)
        for row in rows:
            part = part + row
        while len(part) > 1:
            part = part[: len(part) // 2] + part[len(part) // 2 :]
        total = total + part[0]
    assert backward.grads is not None
    assert torch.equal(backward.grads["logits.bias"][0], total)
