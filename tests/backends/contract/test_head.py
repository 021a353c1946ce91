"""The head: u_hat, errors, loss and d_logits."""

import dataclasses
from types import ModuleType

import pytest
import torch

from support.calls import clone_call
from support.compare import assert_matches, run_three
from support.kernels import CPU, EVERY, on
from support.parts import make_head

FIELDS = ("loss", "error", "d_logits", "u_hat")
HEADS = ("softmax", "linear", "cross_entropy")


def check(kernels: ModuleType, *sizes: int | None, head: str, flow: float) -> None:
    B, M, D = sizes
    made = run_three(kernels, "head", make_head(B, M, D, head, flow))
    for name in FIELDS:
        trio = (getattr(call, name) for call in made)
        assert_matches(*trio, terms=M + (D or M), name=name)


# rows on both sides of a tile's, classes and widths on both sides of a vector's and of 64
@pytest.mark.parametrize("head, flow", [("softmax", 0.0), ("linear", 1.0), ("cross_entropy", 0.0)])
@pytest.mark.parametrize("B, M, D", [(1, 1, 3), (7, 10, None), (19, 10, 20), (5, 130, 70)])
def test_head(kernels: ModuleType, B: int, M: int, D: int | None, head: str, flow: float) -> None:
    check(kernels, B, M, D, head=head, flow=flow)


@pytest.mark.parametrize("head, flow", [("softmax", 1.0), ("linear", 0.0), ("cross_entropy", 1.0)])
def test_any_head_with_any_flow(kernels: ModuleType, head: str, flow: float) -> None:
    check(kernels, 19, 10, 20, head=head, flow=flow)


@on(CPU)
@pytest.mark.parametrize("flow", [0.0, 1.0])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("M, D", [(1, 3), (2, None), (10, None), (10, 20), (100, 7), (17, 784)])
@pytest.mark.parametrize("B", [1, 7, 130])
def test_sizes(kernels: ModuleType, B: int, M: int, D: int | None, head: str, flow: float) -> None:
    check(kernels, B, M, D, head=head, flow=flow)


@pytest.mark.parametrize("head", ["softmax", "cross_entropy"])
def test_logits_of_any_size(kernels: ModuleType, head: str) -> None:
    """exp neither overflows nor loses a class that is far below the largest."""
    for scale in (1e-3, 30.0, 1e4):
        made = run_three(kernels, "head", make_head(33, 10, None, head, scale=scale))
        for name in ("loss", "error", "d_logits"):
            assert_matches(*(getattr(call, name) for call in made), terms=20, name=name)


@on(*EVERY)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("head", HEADS)
def test_logits_that_are_not_finite_show_in_their_row_alone(
    kernels: ModuleType, head: str, value: float
) -> None:
    call = make_head(20, 10, None, head)
    call.logits[1, 13, 4] = value
    call.y[0, 1, 13] = 5
    kernels.head(call)
    bad = ~call.error.isfinite()
    assert bad[1, 13] and bad.sum() == 1
    assert call.loss.isfinite().tolist() == [True, False]


@on(*EVERY)
def test_outputs_are_optional(kernels: ModuleType) -> None:
    call = make_head(7, 5, 3, "softmax")
    whole = clone_call(call)
    kernels.head(whole)
    for name in FIELDS:
        one = dataclasses.replace(call, **{**dict.fromkeys(FIELDS), name: getattr(call, name)})
        kernels.head(one)
        assert torch.equal(getattr(one, name), getattr(whole, name))
