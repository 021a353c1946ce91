"""The head and u_hat, as stages of the CUDA kernel on the host."""

from typing import Any

import pytest
import torch
from torch import Tensor

from noprop_kernels.backends.reference import equations as ref
from support.compare import assert_matches
from support.stages import buffer, per_row, run_stage

pytestmark = pytest.mark.cuda_host
HEADS = ("softmax", "linear", "cross_entropy")


class Case:
    """A head stage of n slices, its outputs NaN."""

    def __init__(self, B: int, M: int, D: int | None, head: str, flow: float, scale: float = 2):
        generator = torch.Generator().manual_seed(B + M)
        self.n, self.B, self.M, self.head, self.flow = 2, B, M, head, flow
        self.W_embed = None if D is None else torch.randn(M, D, generator=generator)
        self.D = D = M if D is None else D
        n = self.n
        self.logits = scale * torch.randn(n, B, M, generator=generator)
        self.y = torch.randint(M, (n, B), generator=generator)
        self.eps = torch.randn(n, B, D, generator=generator) if flow else None
        self.weight = torch.rand(1, n, B, generator=generator)
        self.out = {
            "error": torch.full((n, B), torch.nan),
            "d_logits": torch.full((n, B, M), torch.nan),
            "d_u_hat": torch.full((n, B, D), torch.nan),
            "p": torch.full((n, B, M), torch.nan),
        }

    def run(self, stages, *, seed: int = 0, **changed: Any) -> None:
        fields = {name: buffer(value) for name, value in self.out.items()}
        fields |= {
            "logits": buffer(self.logits),
            "labels": buffer(self.y),
            "eps": buffer(self.eps),
            "W_embed": self.W_embed,
            "weight": per_row(self.weight),
            "flow": self.flow,
            "rows": 2.0 * self.B,
            "head": self.head,
            "M": self.M,
            "D": self.D,
        }
        tiles = -(-self.B // 16)
        run_stage(
            stages, "head", fields | changed, n=self.n, B=self.B, tiles=tiles, blocks=2, seed=seed
        )

    def expected(self, dtype: torch.dtype) -> dict[str, Tensor]:
        logits, scale = self.logits.to(dtype), self.weight[0].to(dtype) / (2 * self.B)
        if self.head == "cross_entropy":
            error, d_logits = ref.cross_entropy(logits, self.y, scale)
            return {"error": error, "d_logits": d_logits}
        u_hat, p = ref.predict_embedding(logits, self.W_embed, self.head)
        target = ref.embed(self.y, self.W_embed, self.D, dtype)
        if self.eps is not None:
            target = target - self.flow * self.eps.to(dtype)
        error, d_logits, d_u_hat = ref.squared_error(
            u_hat, target, p, scale, self.W_embed, self.head
        )
        return {"error": error, "d_logits": d_logits, "d_u_hat": d_u_hat, "p": p}


def check(case: Case) -> None:
    exact, plain = case.expected(torch.float64), case.expected(torch.float32)
    for name, value in exact.items():
        terms = case.M + case.D
        assert_matches(case.out[name], value, plain[name], terms=terms, name=name)


@pytest.mark.parametrize("head, flow", [("softmax", 0.0), ("linear", 1.0), ("cross_entropy", 0.0)])
@pytest.mark.parametrize(
    "B, M, D",
    [(1, 1, 3), (7, 10, None), (129, 10, 10), (5, 1000, 33), (17, 130, 140), (7, 33, None),
     (16, 3, 1), (3, 16, 17)],
)  # fmt: skip
def test_head(stages, B: int, M: int, D: int | None, head: str, flow: float) -> None:
    case = Case(B, M, D, head, flow)
    for seed in range(4) if B * M * (D or M) < 100_000 else [3]:
        for value in case.out.values():
            value.fill_(torch.nan)
        case.run(stages, seed=seed)
        check(case)


@pytest.mark.parametrize("head", ["softmax", "cross_entropy"])
@pytest.mark.parametrize("scale", [1e-3, 30.0, 1e4])
def test_logits_of_any_size(stages, head: str, scale: float) -> None:
    """exp neither overflows nor loses a class that is far below the largest."""
    case = Case(16, 10, None, head, 0.0, scale)
    case.run(stages)
    check(case)


@pytest.mark.parametrize("D", [None, 4])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("head", HEADS)
def test_logits_that_are_not_finite_show_in_their_row_alone(
    stages, head: str, value: float, D: int | None
) -> None:
    case = Case(20, 10, D, head, 0.0)
    case.logits[1, 13, 4], case.y[1, 13] = value, 5
    case.run(stages)
    assert (~case.out["error"].isfinite()).nonzero().tolist() == [[1, 13]]
    bad = ~case.out["d_logits"].isfinite().all(-1)
    assert set(map(tuple, bad.nonzero().tolist())) <= {(1, 13)}


@pytest.mark.parametrize("D", [None, 3])
def test_outputs_are_optional(stages, D: int | None) -> None:
    case, part = Case(7, 5, D, "softmax", 0.0), Case(7, 5, D, "softmax", 0.0)
    case.run(stages)
    part.run(stages, d_logits={}, d_u_hat={}, p={})
    assert torch.equal(part.out["error"], case.out["error"])
    assert all(part.out[name].isnan().all() for name in ("d_logits", "d_u_hat", "p"))
    part.run(stages, error={}, p={})
    assert torch.equal(part.out["d_logits"], case.out["d_logits"])


@pytest.mark.parametrize("head", ["softmax", "linear"])
@pytest.mark.parametrize("B, M, D", [(1, 3, None), (18, 10, 33), (5, 1000, 10)])
def test_u_hat(stages, B: int, M: int, D: int | None, head: str) -> None:
    case = Case(B, M, D, head, 0.0)
    u_hat = torch.full((case.n, B, case.D), torch.nan)
    fields = {
        "u_hat": buffer(u_hat),
        "logits": buffer(case.logits),
        "W_embed": case.W_embed,
        "M": M,
        "D": case.D,
        "linear": int(head == "linear"),
    }
    for seed in range(4):
        u_hat.fill_(torch.nan)
        run_stage(stages, "u_hat", fields, n=case.n, B=B, tiles=-(-B // 16), seed=seed)
        exact, plain = (
            ref.predict_embedding(case.logits.to(dtype), case.W_embed, head)[0]
            for dtype in (torch.float64, torch.float32)
        )
        assert_matches(u_hat, exact, plain, terms=M)
