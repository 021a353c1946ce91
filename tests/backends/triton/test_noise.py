"""add_noise in Triton: the normals, and z made of them."""

from types import ModuleType

import pytest
import torch

from noprop_kernels.backends.calls import AddNoiseCall, Embedding, Noise, Noising
from noprop_kernels.backends.reference import backend as reference
from support.calls import assert_matches, clone_call

pytestmark = pytest.mark.triton


def make_call(B: int, D: int, *, sigma: float = 0.0, one_hot: bool = False, first_row: int = 0):
    generator = torch.Generator().manual_seed(B + D)
    n, M = 2, D if one_hot else 5
    return AddNoiseCall(
        Noise(
            torch.randint(-(2**62), 2**62, (n,), generator=generator) * 2,
            torch.randint(2**40, (1, n), generator=generator),
            torch.tensor([[0xFFFE, 3]]),
            0,
            first_row,
        ),
        Noising(*torch.rand(3, 1, n, B, generator=generator)[:2], sigma),
        Embedding(None if one_hot else torch.randn(M, D, generator=generator), D),
        torch.randint(M, (1, n, B), generator=generator),
        torch.full((n, B, D), torch.nan),
        torch.full((n, B, D), torch.nan),
    )


@pytest.mark.parametrize(
    "B, D, sigma, one_hot", [(1, 1, 0.0, True), (17, 10, 0.3, False), (7, 131, 0.0, False)]
)
def test_add_noise(kernels: ModuleType, B: int, D: int, sigma: float, one_hot: bool) -> None:
    call = make_call(B, D, sigma=sigma, one_hot=one_hot)
    exact, plain = clone_call(call, torch.float64), clone_call(call)
    for backend, made in ((kernels, call), (reference, exact), (reference, plain)):
        backend.add_noise(made)
    assert (call.eps - exact.eps).abs().max() <= 2**-20
    parts = (m.z - m.eps * m.noising.noise[0, :, :, None] for m in (call, exact, plain))
    assert_matches(*parts, terms=8)


def test_normals_to_a_millionth_of_four_deviations(kernels: ModuleType) -> None:
    call, exact = (make_call(1000, 128, one_hot=True) for _ in range(2))
    exact = clone_call(exact, torch.float64)
    kernels.add_noise(call)
    reference.add_noise(exact)
    assert exact.eps.abs().max() > 4.4  # the tail is there
    assert (call.eps - exact.eps).abs().max() <= 2**-20


def test_rows_keep_their_noise_wherever_they_are_drawn(kernels: ModuleType) -> None:
    whole, part = make_call(20, 6), make_call(20, 6, first_row=7)
    kernels.add_noise(whole)
    part.y = whole.y[..., 7:11].contiguous()
    part.noising.signal, part.noising.noise = (
        whole.noising.signal[..., 7:11],
        whole.noising.noise[..., 7:11],
    )
    part.z, part.eps = torch.full((2, 4, 6), torch.nan), None
    kernels.add_noise(part)
    assert torch.equal(part.z, whole.z[:, 7:11])


def test_a_label_out_of_range_changes_nothing(kernels: ModuleType) -> None:
    call = make_call(7, 5)
    call.y[0, 1, 3] = 5
    with pytest.raises(ValueError, match=r"add_noise: y must lie in \[0, 5\), got 0 to 5"):
        kernels.add_noise(call)
    assert call.z.isnan().all() and call.eps.isnan().all()
