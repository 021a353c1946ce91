"""The chain of blocks on the CPU kernels, for replicas and samples."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.reference import backend as reference
from support.calls import PLANS, assert_matches, clone_call, make_predict_call


@pytest.mark.parametrize("add_noise", [True, False])
@pytest.mark.parametrize("keep_all", [True, False])
@pytest.mark.parametrize(
    "head, one_hot", [("softmax", False), ("softmax", True), ("linear", False)]
)
@pytest.mark.parametrize("plan", ["mlp", "paper_dt", "two_inputs"])
def test_predict(
    kernels: ModuleType, plan: str, head: str, one_hot: bool, keep_all: bool, add_noise: bool
) -> None:
    call = make_predict_call(
        PLANS[plan](17, 5, 5 if one_hot else 6), 2, 3, 150, 2,
        head=head, one_hot=one_hot, keep_all=keep_all, add_noise=add_noise,
    )  # fmt: skip
    exact, plain = clone_call(call, torch.float64), clone_call(call)
    for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
        backend.predict(made)
    for field in ("logits", "u_hat", "z"):
        trio = (getattr(made, field) for made in (call, exact, plain))
        assert_matches(*trio, terms=200, name=field)


def test_one_block_keeps_its_only_result(kernels: ModuleType) -> None:
    last, kept = (
        make_predict_call(PLANS["mlp"](17, 5, 6), 2, 1, 9, 2, keep_all=keep_all)
        for keep_all in (False, True)
    )
    kernels.predict(last)
    kernels.predict(kept)
    assert last.z.isfinite().all() and torch.equal(last.z, kept.z)


def test_parts_of_a_batch_give_the_same_bits(kernels: ModuleType) -> None:
    whole = make_predict_call(PLANS["mlp"](17, 5, 6), 2, 3, 300, 2)
    kernels.predict(whole)
    for first, rows in ((0, 1), (5, 100), (128, 172)):
        part = clone_call(whole)
        part.first_row = first
        part.inputs = {"x": whole.inputs["x"][:, first : first + rows].contiguous()}
        part.logits = torch.full((1, 2, 2, rows, 6), torch.nan)
        part.u_hat, part.z = (torch.full((1, 2, 2, rows, 5), torch.nan) for _ in range(2))
        kernels.predict(part)
        for field in ("logits", "u_hat", "z"):
            expected = getattr(whole, field)[:, :, :, first : first + rows]
            assert torch.equal(getattr(part, field), expected), field
