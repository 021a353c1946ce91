"""Noise, the noisy embedding and the chain's z, as stages of the CUDA kernel on the host."""

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from noprop_kernels import philox
from noprop_kernels.backends.reference import equations as ref
from support.compare import assert_matches
from support.stages import buffer, per_row, run_stage

pytestmark = pytest.mark.cuda_host
ROWS = 16


def tiles(B: int) -> int:
    return -(-B // ROWS)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ("0" * 32, "0" * 16, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("f" * 32, "f" * 16, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a8885a308d313198a2e03707344",
            "a4093822299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers_of_random123(stages, counter, key, expected) -> None:
    words = (ctypes.c_uint32 * 4)(*(int(counter[i : i + 8], 16) for i in range(0, 32, 8)))
    seed = int(key[:8], 16) | int(key[8:], 16) << 32
    stages.philox_words(words, ctypes.c_uint64(seed))
    assert " ".join(f"{word:08x}" for word in words) == expected


class Case:
    """A noise stage of n slices and K steps, its outputs NaN."""

    def __init__(self, B: int, D: int, M: int, *, one_hot: bool = False, sigma: float = 0.0):
        generator = torch.Generator().manual_seed(B + D)
        self.n, self.K, self.B, self.D = 3, 2, B, D
        self.M = M = D if one_hot else M
        K, n = self.K, self.n
        self.sigma = sigma
        self.seeds = torch.randint(-(2**62), 2**62, (n,), generator=generator) * 2
        self.draw = torch.randint(2**40, (K, n), generator=generator)
        self.block = torch.tensor([0xFFFE, 3, 0]).expand(K, n)
        self.signal = torch.rand(K, n, B, generator=generator)
        self.noise = torch.rand(K, n, 1, generator=generator).expand(K, n, B)
        self.y = torch.randint(M, (K, 1, B), generator=generator).expand(K, n, B)
        self.W_embed = None if one_hot else torch.randn(M, D, generator=generator)
        self.z, self.eps = torch.full((2, K, n, B, D), torch.nan)
        self.labels = torch.full((K, n, B), -1)
        self.bad = torch.full((K, n, tiles(B)), -1, dtype=torch.int32)

    def fields(self) -> dict[str, Any]:
        return {
            "z": buffer(self.z, steps=True),
            "eps": buffer(self.eps, steps=True),
            "labels": buffer(self.labels, steps=True),
            "bad": buffer(self.bad, steps=True),
            "y": per_row(self.y),
            "W_embed": self.W_embed,
            "seeds": self.seeds,
            "draw": per_row(self.draw),
            "block": per_row(self.block),
            "signal": per_row(self.signal),
            "noise": per_row(self.noise),
            "first_row": 2**32 - 5,
            "sigma": self.sigma,
            "stream": 8,
            "M": self.M,
            "D": self.D,
        }

    def run(self, stages, *, seed: int = 0, **changed: Any) -> None:
        fields = self.fields() | changed
        run_stage(
            stages, "noise", fields, n=self.n, K=self.K, B=self.B, tiles=tiles(self.B), seed=seed
        )

    def expected(self, k: int, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """z and eps of step k."""

        def draw(stream: int) -> Tensor:
            address = (self.seeds, stream, 0, self.draw[k], self.block[k])
            return philox.normal(*address, self.B, self.D, first_row=2**32 - 5, dtype=dtype)

        u_y = ref.embed(y, self.W_embed, self.D, dtype)
        signal, noise = self.signal[k].to(dtype), self.noise[k].to(dtype)
        eps, eps_1 = draw(8), draw(1) if self.sigma else None
        return ref.add_noise(u_y, signal, noise, eps, self.sigma, eps_1), eps


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "B, D, M, one_hot, sigma",
    [
        (1, 1, 3, True, 0.0),
        (7, 10, 10, False, 0.3),
        (129, 33, 1000, False, 0.0),
        (17, 131, 3, False, 0.3),
        (129, 10, 0, True, 0.0),
    ],
)
def test_noise(stages, B: int, D: int, M: int, one_hot: bool, sigma: float, seed: int) -> None:
    case = Case(B, D, M, one_hot=one_hot, sigma=sigma)
    case.run(stages, seed=seed)
    assert torch.equal(case.labels, case.y) and not case.bad.any()
    for k in range(case.K):
        (z, eps), (plain, plain_eps) = (
            case.expected(k, case.y[k], dtype) for dtype in (torch.float64, torch.float32)
        )
        assert (case.eps[k] - eps).abs().max() <= 2**-20
        share = case.noise[k, :, :, None]
        if not sigma:
            parts = (case.z[k] - share * case.eps[k], z - share * eps, plain - share * plain_eps)
            assert_matches(*parts, terms=8)
        assert (case.z[k] - z).abs().max() <= 2**-19


def test_normals_to_a_millionth_of_four_deviations(stages) -> None:
    case = Case(700, 128, 0, one_hot=True)
    case.run(stages)
    eps = case.expected(0, case.y[0], torch.float64)[1]
    assert eps.abs().max() > 4.4  # the tail is there
    assert (case.eps[0] - eps).abs().max() <= 2**-20


def test_a_label_or_an_index_out_of_range_is_flagged_in_its_tile(stages) -> None:
    case = Case(40, 6, 5)
    case.y = case.y.clone()
    case.y[1, 2, 33], case.y[0, 1, 3], case.y[0, 1, 4] = 5, -1, 2**40
    case.run(stages)
    assert case.bad.nonzero().tolist() == [[0, 1, 0], [1, 2, 2]] and case.bad.max() == 1
    known = (case.y >= 0) & (case.y < 5)
    assert torch.equal(case.labels, torch.where(known, case.y, 0))

    data = torch.tensor([4, 0, 3, 5])  # 5 is no label
    indices = torch.randint(3, (case.K, 2, case.B), generator=torch.Generator().manual_seed(0))
    indices[0, 0, 20], indices[1, 1, 39], indices[1, 1, 38], indices[1, 1, 0] = 3, 4, -1, 3
    replica = torch.tensor([1, 0, 1])
    rows = {"indices": indices, "replica": replica, "replicas": 2, "rows": 4}
    case.run(stages, y={"data": data}, rows=rows)
    found = torch.zeros(case.K, case.n, 3, dtype=torch.int32)
    found[0, 1, 1], found[1, 0::2, 2], found[1, 0::2, 0] = 1, 2, 1
    assert torch.equal(case.bad, found)
    read = indices[:, replica]
    read = torch.where((read >= 0) & (read < 3), read, 1)  # y = 0
    assert torch.equal(case.labels, data[read])


def test_outputs_are_optional(stages) -> None:
    case, part = Case(20, 7, 3), Case(20, 7, 3)
    case.run(stages)
    part.run(stages, eps={}, labels={}, bad={})
    assert torch.equal(part.z, case.z) and part.eps.isnan().all() and (part.labels == -1).all()
    part.run(stages, z={})
    assert torch.equal(part.eps, case.eps)


@pytest.mark.parametrize("add_noise", [True, False])
@pytest.mark.parametrize("B, D", [(1, 1), (7, 10), (129, 33)])
def test_chain(stages, B: int, D: int, add_noise: bool) -> None:
    generator = torch.Generator().manual_seed(B)
    n, L, sample, first_row = 2, 3, 5, 2
    before, u_hat = torch.randn(2, L, n, B, D, generator=generator)
    a, b, sqrt_c = torch.rand(3, L, generator=generator)
    seeds = torch.randint(-(2**62), 2**62, (n,), generator=generator)
    z, z_0 = torch.full((L, n, B, D), torch.nan), torch.full((n, B, D), torch.nan)
    fields = {"a": a, "b": b, "seeds": seeds, "sample": sample, "first_row": first_row, "D": D}
    fields |= {"sqrt_c": sqrt_c} if add_noise else {}
    sources = {"before": buffer(before, steps=True), "u_hat": buffer(u_hat, steps=True)}
    both = {"n": n, "B": B, "tiles": tiles(B), "seed": 1}
    run_stage(stages, "chain", fields | sources | {"z": buffer(z, steps=True)}, K=L, **both)
    run_stage(stages, "chain", fields | {"z": buffer(z_0)}, **both)

    def draw(block: int) -> Tensor:
        address = (seeds, philox.STREAM_INFERENCE, 0, sample, block, B, D)
        return philox.normal(*address, first_row=first_row, dtype=torch.float64)

    assert (z_0 - draw(philox.BLOCK_Z_0)).abs().max() <= 2**-20
    for step in range(L):
        expected = a[step].double() * u_hat[step] + b[step] * before[step].double()
        expected += sqrt_c[step] * draw(step) * add_noise
        assert (z[step] - expected).abs().max() <= 2**-20
