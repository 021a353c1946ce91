"""Random numbers: known answers, and a number that depends on its own address alone."""

import math

import pytest
import torch

from noprop_kernels import philox, plans

SEEDS = torch.tensor([0, 1, -(2**63) + 12345])


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ("00000000" * 4, "00000000" * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff" * 4, "ffffffff" * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a8885a308d313198a2e03707344",
            "a4093822299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers_of_random123(counter, key, expected):
    def split(text):
        return tuple(torch.tensor([int(text[i : i + 8], 16)]) for i in range(0, len(text), 8))

    out = philox.philox(split(counter), split(key))
    assert " ".join(f"{word.item():08x}" for word in out) == expected


def test_words_place_each_number_at_its_counter():
    seed, stream, site, draw, block, first_row = -3, 4, 7, 2**33 + 5, 0xABCD, 11
    got = philox.words(torch.tensor([seed]), stream, site, draw, block, 3, 10, first_row=first_row)
    assert got.shape == (1, 3, 10)
    key = (torch.tensor(seed & 0xFFFFFFFF), torch.tensor((seed >> 32) & 0xFFFFFFFF))
    for row, column in [(0, 0), (1, 3), (2, 9)]:
        counter = (column // 4, first_row + row, block | stream << 16 | site << 24, 5)
        four = philox.philox(tuple(torch.tensor(c) for c in counter), key)
        assert got[0, row, column] == four[column % 4]


def test_normals_are_box_muller_of_the_words():
    r = philox.words(SEEDS, 0, 0, 1, 2, 5, 8).double()
    got = philox.normal(SEEDS, 0, 0, 1, 2, 5, 8, dtype=torch.float64)
    for column in (0, 2, 4, 6):
        u = ((r[..., column] / 256).floor() + 1) * 2.0**-24
        v = (r[..., column + 1] / 256).floor() * 2.0**-24
        radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
        torch.testing.assert_close(got[..., column], radius * angle.cos(), rtol=0, atol=1e-14)
        torch.testing.assert_close(got[..., column + 1], radius * angle.sin(), rtol=0, atol=1e-14)


def test_quadrants_are_exact():
    quarter = 1 << 30  # v = 1/4 of a turn
    u = 0x12345678
    radius = math.sqrt(-2 * math.log(((u >> 8) + 1) * 2.0**-24))
    for turn, (cos, sin) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        pair = philox.box_muller(torch.tensor([u, turn * quarter, u, turn * quarter]))
        assert pair.tolist() == [radius * cos, radius * sin] * 2


def test_the_extremes_are_finite():
    pair = philox.box_muller(torch.tensor([0, 0, 0xFFFFFFFF, 0]))
    assert pair[0].item() == math.sqrt(48 * math.log(2))  # u = 2^-24
    assert pair[2:].tolist() == [0, 0]  # u = 1


def test_moments():
    z = philox.normal(torch.tensor([7]), 0, 0, 0, 0, 1000, 400, dtype=torch.float64).flatten()
    u = philox.uniform(torch.tensor([7]), 6, 0, 0, 0, 1000, 400, dtype=torch.float64).flatten()
    five = 5 * len(z) ** -0.5  # five standard errors of a mean of unit variance
    assert abs(z.mean()) < five
    assert abs((z**2).mean() - 1) < five * 2**0.5
    assert abs((z**3).mean()) < five * 15**0.5
    assert abs((z**4).mean() - 3) < five * 96**0.5
    assert abs((z[::2] * z[1::2]).mean()) < five * 2**0.5
    assert abs(u.mean() - 0.5) < five * 12**-0.5
    assert 0 <= u.min() and u.max() < 1


@pytest.mark.parametrize("draw", [philox.words, philox.uniform, philox.normal])
def test_a_number_depends_on_its_own_address_alone(draw, monkeypatch):
    draws, blocks = torch.tensor([3, 4, 5]), torch.tensor([0, 9, 2])
    whole = draw(SEEDS, 0, 0, draws, blocks, 12, 11)
    part = draw(SEEDS, 0, 0, draws, blocks, 7, 11, first_row=5)
    assert torch.equal(part, whole[:, 5:])
    assert torch.equal(draw(SEEDS, 0, 0, draws, blocks, 12, 6), whole[..., :6])
    assert torch.equal(draw(SEEDS[1:2], 0, 0, 4, 9, 12, 11), whole[1:2])
    monkeypatch.setattr(philox, "CHUNK", 5)
    assert torch.equal(draw(SEEDS, 0, 0, draws, blocks, 12, 11), whole)


def test_every_part_of_the_address_matters():
    base = dict(seeds=torch.tensor([5]), stream=0, site=0, draw=0, block=0, rows=4, columns=8)
    other = dict(seeds=torch.tensor([5 + 2**32]), stream=1, site=1, draw=1, block=1)
    arrays = [philox.words(**base)]
    arrays += [philox.words(**(base | {name: value})) for name, value in other.items()]
    arrays.append(philox.words(**base, first_row=4))
    words = torch.cat([array.flatten() for array in arrays])
    assert len(words.unique()) == len(words)


def test_empty():
    assert philox.normal(SEEDS, 0, 0, 0, 0, 0, 5).shape == (3, 0, 5)
    assert philox.normal(SEEDS[:0], 0, 0, 0, 0, 2, 5).shape == (0, 2, 5)


@pytest.mark.parametrize("stream, site", [(256, 0), (0, 256), (-1, 0)])
def test_what_does_not_fit_its_byte_is_refused(stream, site):
    with pytest.raises(ValueError, match="must be in"):
        philox.words(SEEDS, stream, site, 0, 0, 1, 1)


def test_permutation():
    order = philox.permutation(3, 0, 1000)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(order, philox.permutation(3, 0, 1000))
    assert not torch.equal(order, philox.permutation(3, 1, 1000))
    assert not torch.equal(order, philox.permutation(4, 0, 1000))
    assert abs((order == torch.arange(1000)).sum().item() - 1) < 6  # fixed points: Poisson(1)
    assert philox.permutation(3, 0, 0).shape == (0,)


def test_initial_parameters():
    plan = plans.paper_dt(40, 5, 6)
    seeds, blocks = torch.tensor([1, 1, 2]), torch.tensor([0, 4, 4])
    params = philox.initial_parameters(plan, seeds, blocks)
    assert {name: value.shape[1:] for name, value in params.items()} == plan.parameters()
    assert all(v.dtype == torch.float32 and v.is_contiguous() for v in params.values())
    for name, value in params.items():
        layer, _, part = name.partition(".")
        if part.startswith("norm."):
            assert torch.equal(value, torch.full_like(value, float(part == "norm.weight")))
            continue
        bound = plan.in_widths[layer] ** -0.5
        assert 0.95 * bound < value.abs().max() <= bound
        assert abs(value.mean()) < 5 * bound * (3 * value.numel()) ** -0.5
        # 24 bits: about numel^2 / 2^25 numbers meet their equal
        assert len(value.unique()) > value.numel() - 1.2 * value.numel() ** 2 / 2**25 - 3
    alone = philox.initial_parameters(plan, seeds[1:2], blocks[1:2])
    assert all(torch.equal(alone[name], params[name][1:2]) for name in params)
    weight = 2 * philox.uniform(seeds, philox.STREAM_INITIALISATION, 4, 0, blocks, 256, 5) - 1
    torch.testing.assert_close(params["hz.weight"], weight * 5**-0.5)
