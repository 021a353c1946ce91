"""add_noise on the CPU kernels: the normals, and z made of them."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from noprop_kernels import philox
from noprop_kernels.backends.calls import AddNoiseCall, Embedding, Noise, Noising
from noprop_kernels.backends.reference import backend as reference
from support.calls import assert_matches, clone_call


def make_call(
    B: int, D: int, *, n: int = 3, sigma: float = 0.0, first_row: int = 0, one_hot: bool = False
) -> AddNoiseCall:
    generator = torch.Generator().manual_seed(B + D)
    M = D if one_hot else 5
    seeds = torch.randint(-(2**62), 2**62, (n,), generator=generator) * 2
    draw = torch.randint(2**31, (1, n), generator=generator)
    numbers = torch.rand(3, 1, n, B, generator=generator)
    W_embed = None if one_hot else torch.randn(M, D, generator=generator)
    return AddNoiseCall(
        Noise(seeds, draw, torch.arange(n)[None], 0, first_row),
        Noising(*numbers[:2], sigma),
        Embedding(W_embed, D),
        torch.randint(M, (1, n, B), generator=generator),
        torch.full((n, B, D), torch.nan),
        torch.full((n, B, D), torch.nan),
    )


def outputs(call: AddNoiseCall) -> tuple[Tensor, Tensor]:
    assert call.z is not None and call.eps is not None
    return call.z, call.eps


@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("B, D", [(1, 1), (7, 2), (16, 3), (33, 10), (130, 17), (1023, 5)])
def test_add_noise(kernels: ModuleType, B: int, D: int, one_hot: bool, sigma: float) -> None:
    call = make_call(B, D, sigma=sigma, one_hot=one_hot)
    exact, plain = clone_call(call, torch.float64), clone_call(call)
    for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
        backend.add_noise(made)
    z, eps = outputs(call)
    assert (eps - exact.eps).abs().max() <= 2**-20
    assert_matches(z - eps * call.noising.noise[0, :, :, None], *(
        made.z - made.eps * made.noising.noise[0, :, :, None] for made in (exact, plain)
    ), terms=8)  # fmt: skip
    assert (z - exact.z).abs().max() <= 2**-19


def test_normals_to_a_millionth_of_four_deviations(kernels: ModuleType) -> None:
    call = make_call(200_000, 4, n=1)
    kernels.add_noise(call)
    _, eps = outputs(call)
    draw, block = call.noise.draw[0], call.noise.block[0]
    exact = philox.normal(call.noise.seeds, 0, 0, draw, block, 200_000, 4, dtype=torch.float64)
    assert exact.abs().max() > 4.5  # the tail is there
    assert (eps - exact).abs().max() <= 2**-20


def test_rows_keep_their_noise_wherever_they_are_drawn(kernels: ModuleType) -> None:
    whole = make_call(40, 6)
    kernels.add_noise(whole)
    for first, rows in ((0, 1), (7, 20), (39, 1)):
        part = make_call(40, 6, first_row=first)
        part.y = whole.y[..., first : first + rows].contiguous()
        part.noising.signal = whole.noising.signal[..., first : first + rows]
        part.noising.noise = whole.noising.noise[..., first : first + rows]
        part.z, part.eps = (torch.full((3, rows, 6), torch.nan) for _ in range(2))
        kernels.add_noise(part)
        for got, expected in zip(outputs(part), outputs(whole), strict=True):
            assert torch.equal(got, expected[:, first : first + rows])


def test_a_label_out_of_range_changes_nothing(kernels: ModuleType) -> None:
    call = make_call(7, 5)
    call.y[0, 2, 3] = 5
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.4, got 5 at row 3"):
        kernels.add_noise(call)
    assert all(out.isnan().all() for out in outputs(call))
