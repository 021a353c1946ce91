"""The head on the CPU kernels: u_hat, errors, loss and d_logits."""

import dataclasses
from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import Embedding, HeadCall, Objective
from noprop_kernels.backends.reference import backend as reference
from support.calls import assert_matches, clone_call


def make_call(B: int, M: int, D: int | None, head: str, flow: float, scale: float = 2) -> HeadCall:
    generator = torch.Generator().manual_seed(B + M)
    n = 2

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    numbers = torch.rand(3, 1, n, B, generator=generator)
    W_embed = None if D is None else randn(M, D)
    D = M if D is None else D
    return HeadCall(
        Objective(numbers[2], flow, head, B),
        Embedding(W_embed, D),
        torch.randint(M, (1, n, B), generator=generator),
        scale * randn(n, B, M),
        randn(n, B, D) if flow else None,
        torch.full((n,), torch.nan),
        torch.full((n, B), torch.nan),
        torch.full((n, B, M), torch.nan),
        torch.full((n, B, D), torch.nan),
    )


def run(kernels: ModuleType, call: HeadCall) -> tuple[HeadCall, HeadCall, HeadCall]:
    exact, plain = clone_call(call, torch.float64), clone_call(call)
    for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
        backend.head(made)
    return call, exact, plain


@pytest.mark.parametrize("flow", [0.0, 1.0])
@pytest.mark.parametrize("head", ["softmax", "linear", "cross_entropy"])
@pytest.mark.parametrize("M, D", [(1, 3), (2, None), (10, None), (10, 20), (100, 7), (17, 784)])
@pytest.mark.parametrize("B", [1, 7, 130])
def test_head(kernels: ModuleType, B: int, M: int, D: int | None, head: str, flow: float) -> None:
    done, exact, plain = run(kernels, make_call(B, M, D, head, flow))
    for field in ("loss", "error", "d_logits", "u_hat"):
        got, truth, torch_s = (getattr(made, field) for made in (done, exact, plain))
        assert_matches(got, truth, torch_s, terms=M + (D or M), name=field)


@pytest.mark.parametrize("head", ["softmax", "cross_entropy"])
def test_logits_of_any_size(kernels: ModuleType, head: str) -> None:
    """exp neither overflows nor loses a class that is far below the largest."""
    for scale in (1e-3, 30.0, 1e4):
        done, exact, plain = run(kernels, make_call(33, 10, None, head, 0.0, scale))
        for field in ("loss", "error", "d_logits"):
            got, truth, torch_s = (getattr(made, field) for made in (done, exact, plain))
            assert_matches(got, truth, torch_s, terms=20, name=field)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("head", ["softmax", "linear", "cross_entropy"])
def test_logits_that_are_not_finite_show_in_their_row_alone(
    kernels: ModuleType, head: str, value: float
) -> None:
    call = make_call(20, 10, None, head, 0.0)
    call.logits[1, 13, 4] = value
    kernels.head(call)
    assert call.error is not None and call.loss is not None
    bad = ~call.error.isfinite()
    assert bad[1, 13] and bad.sum() == 1
    assert call.loss.isfinite().tolist() == [True, False]


def test_outputs_are_optional(kernels: ModuleType) -> None:
    call = make_call(7, 5, 3, "softmax", 0.0)
    whole = clone_call(call)
    kernels.head(whole)
    for field in ("loss", "error", "d_logits", "u_hat"):
        nothing = dict.fromkeys(("loss", "error", "d_logits", "u_hat"))
        one = dataclasses.replace(call, **{**nothing, field: getattr(call, field)})
        kernels.head(one)
        assert torch.equal(getattr(one, field), getattr(whole, field))
