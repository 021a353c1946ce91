"""Batch norm and its gradient, as stages of the CUDA kernel on the host."""

from typing import Any

import pytest
import torch
from torch import Tensor

from noprop_kernels.backends.reference import equations as ref
from support.compare import assert_matches
from support.stages import buffer, run_stage

pytestmark = pytest.mark.cuda_host
INDEX = [3, 1]
EPS, MOMENTUM = 1e-5, 0.1
SHAPES = [(2, 1), (7, 10), (129, 33), (300, 64), (256, 100)]


def tiles(H: int) -> int:
    return -(-H // 32)


class Case:
    """A norm stage of 2 of 4 slices, its outputs NaN."""

    def __init__(self, B: int, H: int):
        generator = torch.Generator().manual_seed(B + H)
        self.B, self.H, n = B, H, 2
        self.y = 3 + 2 * torch.randn(n, B, H, generator=generator)
        self.add = torch.randn(n, B, H, generator=generator)
        self.weight, self.bias, self.running_mean = torch.randn(3, 4, H, generator=generator)
        self.running_var = torch.rand(4, H, generator=generator) + 0.1
        self.out, self.kept = torch.full((2, n, B, H), torch.nan)
        self.mean, self.rstd, self.batch_mean, self.batch_var = torch.full((4, n, H), torch.nan)

    def run(self, stages, *, seed: int = 0, **changed: Any) -> None:
        names = ("out", "kept", "mean", "rstd", "batch_mean", "batch_var", "y", "add")
        fields: dict[str, Any] = {name: buffer(getattr(self, name)) for name in names}
        names = ("weight", "bias", "running_mean", "running_var")
        fields |= {name: getattr(self, name) for name in names}
        fields |= {"eps": EPS, "momentum": MOMENTUM, "H": self.H, "training": 1} | changed
        run_stage(
            stages, "norm", fields, n=2, B=self.B, tiles=tiles(self.H), index=INDEX, seed=seed
        )

    def expected(
        self, dtype: torch.dtype, *, training: bool, activation: str | None
    ) -> dict[str, Tensor]:
        y, add = self.y.to(dtype), self.add.to(dtype)
        if training:
            mean, var = ref.batch_statistics(y)
        else:
            mean, var = (v[INDEX].to(dtype) for v in (self.running_mean, self.running_var))
        y_hat, rstd = ref.normalise(y, mean, var, EPS)
        value = ref.scale_shift(y_hat, self.weight[INDEX].to(dtype), self.bias[INDEX].to(dtype))
        result = value if activation is None else ref.ACTIVATIONS[activation][0](value)
        kept = value if activation == "gelu" else result
        made = {"kept": kept, "out": result + add, "mean": mean, "rstd": rstd}
        if training:
            made |= {"batch_mean": mean, "batch_var": var * (self.B / (self.B - 1))}
        return made


@pytest.mark.parametrize(
    "training, activation",
    [(True, "relu"), (True, "gelu"), (True, None), (False, "relu"), (False, "gelu")],
)
@pytest.mark.parametrize("B, H", SHAPES)
def test_norm(stages, B: int, H: int, training: bool, activation: str | None) -> None:
    for seed in range(4):
        case = Case(B, H)
        exact, plain = (
            case.expected(dtype, training=training, activation=activation)
            for dtype in (torch.float64, torch.float32)
        )
        before = [case.running_mean.clone(), case.running_var.clone()]
        case.run(
            stages, activation=activation or "none", training=int(training), move=int(training),
            seed=seed,
        )  # fmt: skip
        for name, value in exact.items():
            assert_matches(getattr(case, name), value, plain[name], terms=B, name=name)
        batch = (case.batch_mean, case.batch_var)
        for old, running, value in zip(
            before, (case.running_mean, case.running_var), batch, strict=True
        ):
            if training:
                old[INDEX] = ref.move_statistic(old[INDEX], value, MOMENTUM)
            torch.testing.assert_close(running, old, rtol=1e-6, atol=1e-7)
            assert torch.equal(running[[0, 2]], old[[0, 2]])  # no slice of the call


def test_what_is_not_asked_stays(stages) -> None:
    case, part = Case(20, 33), Case(20, 33)
    case.run(stages, activation="relu")
    kept = part.running_mean.clone()
    absent = ("kept", "mean", "rstd", "batch_mean", "batch_var", "add")
    part.run(stages, activation="relu", **{name: {} for name in absent})
    assert torch.equal(part.out, case.kept) and torch.equal(part.running_mean, kept)
    assert part.mean.isnan().all() and part.batch_var.isnan().all()


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activations_hand_on_nan(stages, activation: str) -> None:
    case = Case(20, 33)
    case.y[1, 7, 20] = torch.nan
    case.run(stages, activation=activation or "none")
    bad = case.out.isnan()
    assert bad[1, :, 20].all() and bad.sum() == 20


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("B, H", SHAPES)
def test_norm_gradient(stages, B: int, H: int, training: bool) -> None:
    case = Case(B, H)
    d_out = torch.randn(2, B, H, generator=torch.Generator().manual_seed(B))
    mean, rstd = case.y.mean(1), 1 / case.y.std(1, correction=0).clamp_min(0.1)
    fields = {name: buffer(value) for name, value in
              {"d_out": d_out, "y": case.y, "mean": mean, "rstd": rstd}.items()}  # fmt: skip

    def expected(dtype: torch.dtype) -> tuple[Tensor, ...]:
        y_hat = (case.y.to(dtype) - mean.to(dtype)[:, None]) * rstd.to(dtype)[:, None]
        weight = case.weight[INDEX].to(dtype)
        return ref.batch_norm_gradient(
            d_out.to(dtype), y_hat, rstd.to(dtype), weight, training=training
        )

    exact, plain = expected(torch.float64), expected(torch.float32)
    for seed in range(4):
        d_y = torch.full((2, B, H), torch.nan)
        d_weight, d_bias = torch.full((2, 2, H), torch.nan)
        made = {"d_y": d_y, "d_weight": d_weight, "d_bias": d_bias}
        outputs: dict[str, Any] = {name: buffer(value) for name, value in made.items()}
        outputs |= {"weight": case.weight, "H": H, "training": int(training)}
        run_stage(
            stages, "norm_gradient", fields | outputs, n=2, B=B, tiles=tiles(H), index=INDEX,
            seed=seed,
        )  # fmt: skip
        for (name, value), truth, torch_s in zip(made.items(), exact, plain, strict=True):
            assert_matches(value, truth, torch_s, terms=B, name=name)
