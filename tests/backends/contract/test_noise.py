"""add_noise: the normals, and z made of them."""

from types import ModuleType

import pytest
import torch

from noprop_kernels import philox
from noprop_kernels.backends.reference import backend as reference
from support.calls import clone_call, nan
from support.compare import assert_matches, run_three
from support.kernels import COMPILED, EVERY, TRITON, on
from support.parts import make_add_noise


def check(kernels: ModuleType, B: int, D: int, sigma: float, one_hot: bool) -> None:
    made = run_three(kernels, "add_noise", make_add_noise(B, D, sigma=sigma, one_hot=one_hot))
    done, exact, _ = made
    assert (done.eps - exact.eps).abs().max() <= 2**-20
    parts = (call.z - call.eps * call.noising.noise[0, :, :, None] for call in made)
    assert_matches(*parts, terms=8)
    assert (done.z - exact.z).abs().max() <= 2**-19


@pytest.mark.parametrize(
    "B, D, sigma, one_hot", [(1, 1, 0.0, True), (17, 10, 0.3, False), (7, 131, 0.0, False)]
)
def test_add_noise(kernels: ModuleType, B: int, D: int, sigma: float, one_hot: bool) -> None:
    check(kernels, B, D, sigma, one_hot)


@on(*COMPILED)
@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("B, D", [(1, 1), (7, 2), (16, 3), (33, 10), (130, 17), (1023, 5)])
def test_sizes(kernels: ModuleType, B: int, D: int, one_hot: bool, sigma: float) -> None:
    check(kernels, B, D, sigma, one_hot)


@on(*COMPILED)
def test_normals_to_a_millionth_of_four_deviations(kernels: ModuleType) -> None:
    call = make_add_noise(70_000, 4)
    exact = clone_call(call, torch.float64)
    kernels.add_noise(call)
    reference.add_noise(exact)
    assert exact.eps.abs().max() > 4.5  # the tail is there
    assert (call.eps - exact.eps).abs().max() <= 2**-20


@on(TRITON)
def test_normals_of_the_tail(kernels: ModuleType) -> None:
    """The interpreter is slow: it draws the rows around the largest of some 400,000."""
    call = make_add_noise(48, 128, one_hot=True)
    key = (call.noise.seeds, call.noise.stream, 0, call.noise.draw[0], call.noise.block[0])
    row = int(philox.normal(*key, 1000, 128).abs().amax((0, 2)).argmax())
    call.noise.first_row = max(row - 24, 0)
    exact = clone_call(call, torch.float64)
    kernels.add_noise(call)
    reference.add_noise(exact)
    assert exact.eps.abs().max() > 4.4
    assert (call.eps - exact.eps).abs().max() <= 2**-20


@on(*EVERY)
def test_rows_keep_their_noise_wherever_they_are_drawn(kernels: ModuleType) -> None:
    whole = make_add_noise(40, 6)
    kernels.add_noise(whole)
    for first, rows in ((0, 1), (7, 20), (39, 1)):
        part, rows_of = make_add_noise(40, 6, first_row=first), slice(first, first + rows)
        part.y = whole.y[..., rows_of].contiguous()
        part.noising.signal = whole.noising.signal[..., rows_of]
        part.noising.noise = whole.noising.noise[..., rows_of]
        part.z, part.eps = nan(3, rows, 6), nan(3, rows, 6) if rows == 1 else None
        kernels.add_noise(part)
        assert torch.equal(part.z, whole.z[:, rows_of])
        assert part.eps is None or torch.equal(part.eps, whole.eps[:, rows_of])


@on(*EVERY)
def test_a_label_out_of_range_changes_nothing(kernels: ModuleType) -> None:
    call = make_add_noise(7, 5)
    call.y[0, 2, 3] = 5
    with pytest.raises(ValueError, match=r"add_noise: labels must be in 0\.\.4, got 5 at row 3"):
        kernels.add_noise(call)
    assert call.z.isnan().all() and call.eps.isnan().all()
