"""Gradients of the levels and of W_embed, as stages of the CUDA kernel on the host."""

from typing import Any

import pytest
import torch

from noprop_kernels.backends.reference import equations as ref
from support.compare import assert_matches
from support.stages import buffer, per_row, run_stage

pytestmark = pytest.mark.cuda_host


@pytest.mark.parametrize("B, D, M", [(1, 1, 3), (7, 10, None), (129, 33, 10), (20, 10, 1000)])
def test_levels(stages, B: int, D: int, M: int | None) -> None:
    generator = torch.Generator().manual_seed(B)
    n = 2
    d_z, eps = torch.randn(2, n, B, D, generator=generator)
    W_embed = None if M is None else torch.randn(M, D, generator=generator)
    y = torch.randint(M or D, (n, B), generator=generator)
    d_signal, d_noise = torch.full((2, n, B), torch.nan)
    made = {"d_signal": d_signal, "d_noise": d_noise}
    fields: dict[str, Any] = {name: buffer(value) for name, value in made.items()}
    fields |= {"d_z": buffer(d_z), "eps": buffer(eps), "labels": buffer(y)}
    fields |= {"W_embed": W_embed, "D": D}
    exact, plain = (
        ref.add_noise_gradient(d_z.to(dtype), ref.embed(y, W_embed, D, dtype), eps.to(dtype))
        for dtype in (torch.float64, torch.float32)
    )
    for seed in range(4):
        for value in made.values():
            value.fill_(torch.nan)
        run_stage(stages, "step_gradients", fields, n=n, B=B, tiles=-(-B // 16), seed=seed)
        for (name, value), truth, torch_s in zip(made.items(), exact, plain, strict=True):
            assert_matches(value, truth, torch_s, terms=D, name=name)


@pytest.mark.parametrize("predicted, drawn", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("B, M, D", [(1, 3, 1), (7, 10, 10), (129, 10, 33), (300, 100, 17)])
def test_embedding(stages, B: int, M: int, D: int, predicted: bool, drawn: bool) -> None:
    generator = torch.Generator().manual_seed(B)
    n = 2
    p = torch.rand(n, B, M, generator=generator) * predicted
    d_u_hat = torch.randn(n, B, D, generator=generator) * predicted
    d_z = torch.randn(n, B, D, generator=generator) * drawn
    signal = torch.rand(1, n, B, generator=generator)
    y = torch.randint(M, (n, B), generator=generator)
    d_W = torch.full((n, M, D), torch.nan)
    fields = {"d_W": buffer(d_W), "labels": buffer(y), "signal": per_row(signal), "M": M, "D": D}
    fields |= {"p": buffer(p), "d_u_hat": buffer(d_u_hat)} if predicted else {}
    fields |= {"d_z": buffer(d_z)} if drawn else {}
    exact, plain = (
        ref.embedding_gradient(
            p.to(dtype),
            d_u_hat.to(dtype),
            y,
            signal[0, ..., None].to(dtype) * d_z.to(dtype) - d_u_hat.to(dtype),
        )
        for dtype in (torch.float64, torch.float32)
    )
    for seed in range(4):
        d_W.fill_(torch.nan)
        tiles = -(-M // 16) * -(-D // 16)
        run_stage(stages, "embedding", fields, n=n, B=B, tiles=tiles, seed=seed)
        assert_matches(d_W, exact, plain, terms=B)
