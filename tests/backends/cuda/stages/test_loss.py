"""The loss of a slice and the rates of its update, as stages of the CUDA kernel on the host."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noprop_kernels.backends.reference import equations as ref
from support.compare import assert_matches
from support.stages import buffer, per_row, run_stage

pytestmark = pytest.mark.cuda_host
BETAS = (0.9, 0.999)


def hyper(rule: str, betas: tuple[float, float] = BETAS) -> dict[str, Any]:
    logs = [math.log(beta) if beta > 0 else -1e4 for beta in betas]
    return {"rule": rule, "log_beta_1": logs[0], "log_beta_2": logs[1]}


def expected_rates(
    rule: str, lr: Tensor, decay: Tensor, updates: Tensor, betas: tuple[float, float] = BETAS
) -> Tensor:
    """(n, 3) float64 of lr, decay and the root; `updates` counts this one."""
    c_1, c_2 = (1 - beta ** updates.double() for beta in betas)
    adam = rule in ("adam", "adamw")
    rate = lr / c_1 if adam else lr
    decay = 1 - lr * decay if rule == "adamw" else decay
    return torch.stack([rate, decay, c_2.sqrt() if adam else torch.ones_like(lr)], -1)


class Case:
    """A loss stage of K steps of 3 of 5 slices, its outputs NaN."""

    index = [4, 0, 2]

    def __init__(self, B: int, K: int = 2):
        generator = torch.Generator().manual_seed(B)
        n, tiles = 3, -(-B // 16)
        self.B, self.n, self.K = B, n, K
        self.error = torch.rand(K, n, B, generator=generator)
        self.weight = torch.rand(K, n, B, generator=generator)
        self.lr = torch.rand(K, n, generator=generator, dtype=torch.float64)
        self.decay = torch.rand(n, generator=generator, dtype=torch.float64).expand(K, n)
        self.draws, self.updates = torch.arange(10, 15), torch.tensor([0, 7, 100, 9, 20_000])
        self.loss = torch.full((K, n), torch.nan)
        self.applied = torch.full((K, n), 9, dtype=torch.uint8)
        self.rates = torch.full((K, n, 4), torch.nan)
        self.flags = torch.zeros(2, K, n, tiles, dtype=torch.int32)
        self.errors = torch.zeros(1, dtype=torch.int32)

    def run(self, stages, rule: str = "adamw", *, seed: int = 0, **changed: Any) -> None:
        fields = {
            "loss": buffer(self.loss, steps=True),
            "applied": buffer(self.applied, steps=True),
            "rates": buffer(self.rates, steps=True),
            "error": buffer(self.error, steps=True),
            "flags": [buffer(value, steps=True) for value in self.flags],
            "num_flags": len(self.flags),
            "draws": self.draws,
            "updates": self.updates,
            "errors": self.errors,
            "weight": per_row(self.weight),
            "lr": per_row(self.lr),
            "weight_decay": per_row(self.decay),
            "rows": 2.0 * self.B,
        }
        run_stage(
            stages, "loss", fields | changed, n=self.n, K=self.K, B=self.B, tiles=1,
            index=self.index, hyper=hyper(rule), seed=seed,
        )  # fmt: skip


@pytest.mark.parametrize("rule", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("B", [1, 7, 129, 3000])
def test_loss(stages, B: int, rule: str) -> None:
    for seed in range(4):
        case = Case(B)
        before = case.updates[case.index]
        case.run(stages, rule, seed=seed)
        exact, plain = (
            torch.stack(
                [
                    ref.total_loss(e, w, 2 * B)
                    for e, w in zip(case.error.to(dtype), case.weight.to(dtype), strict=True)
                ]
            )
            for dtype in (torch.float64, torch.float32)
        )
        assert_matches(case.loss, exact, plain)
        assert (case.applied == 1).all() and (case.rates[..., 3] == 1).all()
        assert case.draws.tolist() == [12, 11, 14, 13, 16]
        assert case.updates.tolist() == [2, 7, 102, 9, 20_002]
        for k in range(case.K):
            rates = expected_rates(rule, case.lr[k], case.decay[k], before + k + 1)
            torch.testing.assert_close(case.rates[k, :, :3].double(), rates, rtol=1e-7, atol=0)


@pytest.mark.parametrize("B", [100, 300, 2500])
def test_the_loss_folds_chunks_of_128_rows_from_the_left(stages, B: int) -> None:
    case = Case(B, K=1)
    case.error.fill_(1)
    case.weight.zero_()
    chunks = -(-B // 128)
    first = torch.exp2(torch.randint(-30, 30, (1, 3, chunks)).float())
    case.weight[..., ::128] = first  # one number a chunk: only the fold is left
    case.run(stages)
    total = torch.zeros(3)
    for share in first[0].T:
        total = total + share
    assert torch.equal(case.loss[0], total / (2 * B))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_moves_nothing_but_draws(stages, value: float) -> None:
    case = Case(33)
    case.error[1, 1, 32] = value
    case.run(stages)
    assert not case.loss[1, 1].isfinite()
    assert case.applied.tolist() == [[1, 1, 1], [1, 0, 1]]
    assert torch.equal(case.rates[..., 3].byte(), case.applied)
    assert case.draws.tolist() == [12, 11, 14, 13, 16]
    assert case.updates.tolist() == [1, 7, 102, 9, 20_002]
    assert not case.errors.any()


def test_flags_stop_their_slice_and_are_gathered(stages) -> None:
    case = Case(300)
    case.flags[0, 0, 2, 18], case.flags[1, 1, 0, 3], case.flags[0, 1, 0, 0] = 4, 1, 4
    case.errors[0] = 2
    case.run(stages)
    assert case.applied.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert case.errors.tolist() == [7]
    assert case.updates.tolist() == [2, 7, 101, 9, 20_001] and case.loss.isfinite().all()


def test_without_rates_nothing_is_counted(stages) -> None:
    case = Case(20)
    case.run(stages, "none", rates={}, draws=None, updates=None, errors=None, num_flags=0)
    assert (case.applied == 1).all() and case.loss.isfinite().all()
    assert case.draws.tolist() == [10, 11, 12, 13, 14] and case.rates.isnan().all()


def test_a_beta_of_0_corrects_nothing(stages) -> None:
    n = 2
    applied = torch.ones(n, dtype=torch.uint8)
    lr, decay = torch.full((1, n), 0.25, dtype=torch.float64), torch.zeros(1, n).double()
    rates, updates = torch.full((n, 4), torch.nan), torch.zeros(n, dtype=torch.int64)
    fields = {"rates": buffer(rates), "applied": buffer(applied), "updates": updates}
    fields |= {"lr": per_row(lr), "weight_decay": per_row(decay)}
    run_stage(stages, "rates", fields, n=n, B=4, tiles=1, hyper=hyper("adam", (0.0, 0.0)))
    assert rates.tolist() == [[0.25, 0, 1, 1]] * n


@pytest.mark.parametrize("given", [True, False])
def test_rates_follow_d_logits_or_what_is_given(stages, given: bool) -> None:
    n, size = 3, 777
    d_logits = torch.randn(n, size)
    d_logits[1, 776] = -torch.inf
    lr, decay = torch.rand(2, 1, n, dtype=torch.float64)
    for seed in range(4):
        applied = torch.tensor([1, 0, 1] if given else [9, 9, 9], dtype=torch.uint8)
        rates, updates = torch.full((n, 4), torch.nan), torch.tensor([5, 6, 7, 8])
        fields = {"rates": buffer(rates), "applied": buffer(applied), "updates": updates}
        fields |= {"lr": per_row(lr), "weight_decay": per_row(decay), "size": size}
        fields |= {} if given else {"d_logits": buffer(d_logits)}
        run_stage(
            stages, "rates", fields, n=n, B=9, tiles=1, index=[3, 1, 0], seed=seed,
            hyper=hyper("adamw"),
        )  # fmt: skip
        assert applied.tolist() == [1, 0, 1] and rates[:, 3].tolist() == [1, 0, 1]
        assert updates.tolist() == [6, 6, 7, 9]
        expected = expected_rates("adamw", lr[0], decay[0], torch.tensor([9, 7, 6]))
        torch.testing.assert_close(rates[:, :3].double(), expected, rtol=1e-7, atol=0)
