"""The head in Triton: u_hat, errors, loss and d_logits."""

import dataclasses
from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import Embedding, HeadCall, Objective
from noprop_kernels.backends.reference import backend as reference
from support.calls import assert_matches, clone_call

pytestmark = pytest.mark.triton
FIELDS = ("loss", "error", "d_logits", "u_hat")


def make_call(B: int, M: int, D: int | None, head: str, flow: float, scale: float = 2) -> HeadCall:
    generator = torch.Generator().manual_seed(B + M)
    n = 2
    W_embed = None if D is None else torch.randn(M, D, generator=generator)
    D = M if D is None else D
    return HeadCall(
        Objective(torch.rand(3, 1, n, B, generator=generator)[2], flow, head, B),
        Embedding(W_embed, D),
        torch.randint(M, (1, n, B), generator=generator),
        scale * torch.randn(n, B, M, generator=generator),
        torch.randn(n, B, D, generator=generator) if flow else None,
        torch.full((n,), torch.nan),
        torch.full((n, B), torch.nan),
        torch.full((n, B, M), torch.nan),
        torch.full((n, B, D), torch.nan),
    )


@pytest.mark.parametrize("head, flow", [("softmax", 0.0), ("linear", 1.0), ("cross_entropy", 0.0)])
@pytest.mark.parametrize("B, M, D", [(1, 1, 3), (7, 10, None), (19, 10, 20), (5, 130, 70)])
def test_head(kernels: ModuleType, B: int, M: int, D: int | None, head: str, flow: float) -> None:
    call = make_call(B, M, D, head, flow)
    exact, plain = clone_call(call, torch.float64), clone_call(call)
    for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
        backend.head(made)
    for name in FIELDS:
        trio = (getattr(made, name) for made in (call, exact, plain))
        assert_matches(*trio, terms=M + (D or M), name=name)


@pytest.mark.parametrize("head", ["softmax", "cross_entropy"])
def test_logits_of_any_size(kernels: ModuleType, head: str) -> None:
    """exp neither overflows nor loses a class that is far below the largest."""
    for scale in (1e-3, 30.0, 1e4):
        call = make_call(16, 10, None, head, 0.0, scale)
        exact, plain = clone_call(call, torch.float64), clone_call(call)
        for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
            backend.head(made)
        for name in ("loss", "error", "d_logits"):
            trio = (getattr(made, name) for made in (call, exact, plain))
            assert_matches(*trio, terms=20, name=name)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("head", ["softmax", "linear", "cross_entropy"])
def test_logits_that_are_not_finite_show_in_their_row_alone(
    kernels: ModuleType, head: str, value: float
) -> None:
    call = make_call(20, 10, None, head, 0.0)
    call.logits[1, 13, 4] = value
    call.y[0, 1, 13] = 5
    kernels.head(call)
    bad = ~call.error.isfinite()
    assert bad[1, 13] and bad.sum() == 1
    assert call.loss.isfinite().tolist() == [True, False]


def test_outputs_are_optional(kernels: ModuleType) -> None:
    call = make_call(7, 5, 3, "softmax", 0.0)
    whole = clone_call(call)
    kernels.head(whole)
    for name in FIELDS:
        one = dataclasses.replace(call, **{**dict.fromkeys(FIELDS), name: getattr(call, name)})
        kernels.head(one)
        assert torch.equal(getattr(one, name), getattr(whole, name))


@pytest.mark.parametrize("B", [100, 300])
def test_the_loss_folds_chunks_of_128_rows_from_the_left(kernels: ModuleType, B: int) -> None:
    call = make_call(B, 3, None, "linear", 0.0)
    call.objective.weight = torch.exp2(torch.randint(-30, 30, (1, 2, B)).float())
    kernels.head(call)
    total = torch.zeros(2)
    for share in (call.objective.weight[0] * call.error).split(128, dim=1):
        padded = torch.nn.functional.pad(share, (0, 128 - share.shape[1]))
        total = total + torch.from_numpy(padded.numpy().sum(1))
    assert torch.equal(call.loss, total / B)
