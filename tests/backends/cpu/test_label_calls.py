"""Calls on labels that take tensors as they are, beside the records' calls of the same kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor

from noprop_kernels.backends.calls import (
    AddNoiseCall,
    Embedding,
    HeadCall,
    NoiseAddress,
    Noising,
    Objective,
)
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.philox import STREAM_EPS

B, M, D = 21, 5, 3
ONE = torch.ones(1)


def table(one_hot: bool) -> Tensor | None:
    return None if one_hot else torch.randn(M, D, generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    return torch.randint(M, (B,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("per_row", [True, False])
def test_noise_has_the_bits_of_the_records_call(one_hot: bool, sigma: float, per_row: bool) -> None:
    W, y, width = table(one_hot), labels(), M if one_hot else D
    signal = torch.rand(B) if per_row else torch.tensor(0.7).expand(B)
    noise = torch.rand(B) if per_row else torch.tensor(0.3).expand(B)
    found = [torch.full((B, width), torch.nan) for _ in range(4)]
    cpu.add_noise_rows(y, signal, noise, W, (STREAM_EPS, 11, 4, 2, 100), sigma, *found[:2])
    numbers = [torch.tensor([[value]]) for value in (11, 4, 2)]
    address = NoiseAddress(numbers[0][0], *numbers[1:], STREAM_EPS, 100)
    noising = Noising(signal[None, None], noise[None, None], sigma)
    embedding = Embedding(W, width)
    call = AddNoiseCall(address, noising, embedding, y[None, None], *(v[None] for v in found[2:]))
    cpu.add_noise(call)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert bool(found[0].isfinite().all())


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize(("head", "flow"), [("softmax", 0.0), ("linear", 1.0), ("softmax", 0.5)])
@pytest.mark.parametrize("estimates", [True, False])
def test_errors_have_the_bits_of_the_records_call(
    one_hot: bool, head: str, flow: float, estimates: bool
) -> None:
    W, y, width = table(one_hot), labels(), M if one_hot else D
    logits, eps = torch.randn(B, M), torch.randn(B, width) if flow else None
    error, d_logits = torch.empty(2, B), torch.empty(2, B, M)
    u_hat = torch.zeros(2, B, width)
    estimate = u_hat[0] if estimates else None
    cpu.error_rows(logits, y, W, eps, head, flow, error[0], estimate, d_logits[0])
    call = HeadCall(
        objective=Objective(ONE.expand(1, 1, B), flow, head, rows=1),
        embedding=Embedding(W, width),
        y=y[None, None],
        logits=logits[None],
        eps=None if eps is None else eps[None],
        loss=None,
        error=error[1:],
        d_logits=d_logits[1:],
        u_hat=u_hat[1:],
        op="denoising_loss",
    )
    cpu.head(call)
    assert torch.equal(error[0], error[1]) and torch.equal(d_logits[0], d_logits[1])
    assert bool(u_hat[1].any()) and torch.equal(u_hat[0], u_hat[1] * estimates)


NOISE: dict[str, Any] = {
    "y": torch.zeros(B, dtype=torch.int64),
    "signal": torch.ones(B),
    "noise": torch.ones(B),
    "W_embed": torch.ones(M, D),
    "address": (STREAM_EPS, 0, 0, 0, 0),
    "sigma": 0.0,
    "z": torch.zeros(B, D),
    "eps": torch.zeros(B, D),
}
ERROR: dict[str, Any] = {
    "logits": torch.zeros(B, M),
    "y": torch.zeros(B, dtype=torch.int64),
    "W_embed": torch.ones(M, D),
    "eps": torch.ones(B, D),
    "head": "softmax",
    "flow": 1.0,
    "error": torch.zeros(B),
    "u_hat": torch.zeros(B, D),
    "d_logits": torch.zeros(B, M),
}
WRONG = [
    (cpu.add_noise_rows, NOISE, "y", torch.zeros(B - 1, dtype=torch.int64), "must have shape"),
    (cpu.add_noise_rows, NOISE, "y", torch.zeros(B), "must be torch.int64"),
    (cpu.add_noise_rows, NOISE, "y", torch.full((B,), M), "must be in 0..4"),
    (cpu.add_noise_rows, NOISE, "signal", torch.ones(B).double(), "must be torch.float32"),
    (cpu.add_noise_rows, NOISE, "W_embed", torch.ones(M, D + 1), "must have shape"),
    (cpu.add_noise_rows, NOISE, "z", torch.zeros(D, B).T, "must be contiguous"),
    (cpu.add_noise_rows, NOISE, "eps", NOISE["z"], "must share no memory"),
    (cpu.error_rows, ERROR, "logits", torch.zeros(B, M, 1), "must have|have 2 dimensions"),
    (cpu.error_rows, ERROR, "y", torch.full((B,), -1), "must be in 0..4"),
    (cpu.error_rows, ERROR, "eps", None, "must be given where flow is not 0"),
    (cpu.error_rows, ERROR, "head", "radial", "must be softmax, linear or cross_entropy"),
    (cpu.error_rows, ERROR, "d_logits", torch.zeros(B, M, device="meta"), "must"),
]


@pytest.mark.parametrize(("run", "given", "name", "value", "text"), WRONG)
def test_what_does_not_fit_is_refused_by_name_before_a_write(
    run: Any, given: dict[str, Any], name: str, value: Any, text: str
) -> None:
    given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in given.items()}
    if name == "eps" and value is NOISE["z"]:
        value = given["z"]
    written = [given[k] for k in ("z", "error", "u_hat") if k in given]
    with pytest.raises(ValueError, match=text):
        run(*(given | {name: value}).values())
    assert not any(bool(v.any()) for v in written)
