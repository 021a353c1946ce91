"""predict: the chain of eq. 3, with no label anywhere."""

import inspect

import pytest
import torch

import noprop_kernels as nk
from support.blocks import GOAL, B, D, F, M, T, assert_same, batch, make, snapshot


def trained(plan: str = "mlp", **options) -> nk.DenoisingBlocks:
    blocks = make(plan, **options)
    for _ in range(3):
        blocks.train_step(*batch())
    return blocks


def test_shapes(backend):
    embedding = torch.randn(M, D, generator=torch.Generator().manual_seed(0))
    blocks = make(seed=[1, 2], embedding=embedding)
    p = blocks.predict(batch()[0], samples=4)
    assert p.logits.shape == p.probs.shape == (4, 2, B, M)
    assert p.u_hat.shape == p.z.shape == (4, 2, B, D)
    assert torch.equal(p.probs, p.logits.softmax(-1))
    assert torch.equal(blocks.predict(batch()[0][:0], samples=4).logits, torch.empty(4, 2, 0, M))
    every = blocks.predict(batch()[0], samples=4, keep="all")
    assert every.logits.shape == (T, 4, 2, B, M) and every.z.shape == (T, 4, 2, B, D)
    for part in ("logits", "u_hat", "z"):
        assert torch.equal(getattr(every, part)[-1], getattr(p, part))


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_chain_is_equation_3(backend, plan):
    """z_t = a_t u_hat_t + b_t z_{t-1} with u_hat_t by the modules, from z_0 = 0 on."""
    blocks = trained(plan, embedding=torch.randn(M, D))
    x = batch()[0]
    p = blocks.predict(x, noise=False, keep="all")
    modules = [module.eval() for module in blocks.to_modules()]
    a, b = GOAL.schedule.a.float(), GOAL.schedule.b.float()
    for t in range(1, T + 1):
        z = p.z[t - 2, 0, 0] if t > 1 else torch.zeros(B, D)
        logits = modules[t - 1](x, z)
        u_hat = logits.softmax(-1) @ blocks.W_embed
        torch.testing.assert_close(p.logits[t - 1, 0, 0], logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(p.u_hat[t - 1, 0, 0], u_hat, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(p.z[t - 1, 0, 0], a[t] * u_hat + b[t] * z, rtol=1e-4, atol=1e-5)


def test_noise_has_the_variance_c(backend):
    blocks = trained()
    x = torch.zeros(2000, F)
    noisy = blocks.predict(x, keep="all")
    # b_1 = 0: z_1 = a_1 u_hat_1 + sqrt(c_1) eps
    a, c = GOAL.schedule.a[1], GOAL.schedule.c[1]
    eps = (noisy.z[0] - a.float() * noisy.u_hat[0]) / c.sqrt()
    assert eps.mean().abs() < 0.05 and (eps.var() - 1).abs() < 0.05


@pytest.mark.parametrize("plan", ["mlp", "norm"])
def test_without_noise_a_row_is_answered_alike_wherever_it_stands(backend, plan):
    blocks = trained(plan)
    row = batch()[0][:1]
    p = blocks.predict(row.expand(150, F), noise=False, samples=2, seed=3, first_row=9)
    for part in ("z", "logits"):
        want = getattr(blocks.predict(row, noise=False), part)
        close = 1e-5 if backend == "reference" else 0  # torch.mm's sums depend on the shape
        torch.testing.assert_close(
            getattr(p, part), want.expand(2, 1, 150, -1), rtol=close, atol=close
        )


def test_it_changes_nothing_and_repeats(backend):
    blocks = trained("norm")
    x = batch()[0]
    before, version = snapshot(blocks), blocks.hx.weight._version
    first, second = blocks.predict(x, samples=2), blocks.predict(x, samples=2)
    assert torch.equal(first.z, second.z) and torch.equal(first.logits, second.logits)
    assert_same(snapshot(blocks), before)
    assert blocks.hx.weight._version == version and not first.logits.requires_grad
    assert torch.equal(blocks.eval().predict(x, samples=2).z, first.z)  # the mode has no say


@pytest.mark.parametrize("plan", ["mlp", "norm"])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_batch_size_changes_no_result(backend, plan, rows):
    blocks = trained(plan)
    x = batch(130)[0]
    whole = blocks.predict(x, samples=2)
    parts = [
        blocks.predict(x[row : row + rows], samples=2, first_row=row)
        for row in range(0, len(x), rows)
    ]
    for part in ("z", "logits"):
        got, want = torch.cat([getattr(p, part) for p in parts], 2), getattr(whole, part)
        if backend == "reference":  # its products are torch.mm's, whose sums depend on the shape
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(got, want)


def test_samples_and_seeds(backend):
    blocks = trained(seed=[3, 4])
    x = batch()[0]
    p = blocks.predict(x, samples=3)
    assert torch.equal(blocks.predict(x, samples=1).z[0], p.z[0])
    assert not torch.equal(p.z[0], p.z[1]) and not torch.equal(p.z[:, 0], p.z[:, 1])
    assert torch.equal(blocks.predict(x, samples=3, seed=[3, 4]).z, p.z)
    assert not torch.equal(blocks.predict(x, samples=3, seed=5).z, p.z)
    alone = trained(seed=4).predict(x, samples=3)
    if backend == "reference":  # sums of torch.mm may depend on its operands' addresses
        torch.testing.assert_close(alone.z[:, 0], p.z[:, 1])
    else:
        assert torch.equal(alone.z[:, 0], p.z[:, 1])


def test_x_may_be_one_per_replica(backend):
    blocks = trained(seed=[3, 4])
    x = batch()[0]
    both = blocks.predict(torch.stack([x, -x]))
    assert torch.equal(both.z[:, 0], blocks.predict(x).z[:, 0])
    assert torch.equal(both.z[:, 1], blocks.predict(-x).z[:, 1])


def test_one_of_several_replicas(backend):
    blocks, x = trained(seed=[3, 4, 5]), batch()[0]
    for noise in (True, False):
        every = blocks.predict(x, noise=noise, samples=2, keep="all")
        for r in range(3):
            one = blocks.predict(x, noise=noise, samples=2, keep="all", replica=r)
            for part in ("logits", "u_hat", "z"):
                want = getattr(every, part)[:, :, r : r + 1]
                if backend == "reference":  # as in test_samples_and_seeds
                    torch.testing.assert_close(getattr(one, part), want)
                else:
                    assert torch.equal(getattr(one, part), want)
    assert torch.equal(
        blocks.predict(x[None], seed=[8], replica=2).z[:, 0], blocks.predict(x, seed=8).z[:, 2]
    )


def test_no_label_can_reach_it():
    names = inspect.signature(nk.DenoisingBlocks.predict).parameters
    given = {"noise", "sampler", "steps", "samples", "seed", "first_row", "keep", "replica"}
    assert set(names) == {"self", "x"} | given


@pytest.mark.parametrize(
    "options, text",
    [
        ({"keep": "first"}, "keep must be .* a divisor of the 3 steps, got 'first'"),
        ({"samples": 0}, "samples must be an integer of at least 1, got 0"),
        ({"first_row": -1}, "first_row must be an integer of at least 0, got -1"),
        ({"seed": [1, 2, 3]}, "seed must be one or 2"),
        ({"seed": 1.5}, "seed must be an int64"),
        ({"replica": 2}, r"replica must be in \[0, 2\), got 2"),
        ({"replica": True}, r"replica must be in \[0, 2\), got True"),
        ({"replica": 0, "seed": [1, 2]}, "seed must be one or 1"),
        ({"x": torch.zeros(B, F + 1)}, r"x must have shape \(any, 7\), got \(6, 8\)"),
        ({"x": torch.zeros(3, B, F)}, r"x must have shape \(2, any, 7\), got \(3, 6, 7\)"),
    ],
)
def test_bad_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        make(seed=[1, 2]).predict(**({"x": batch()[0]} | options))


def test_it_needs_the_whole_chain():
    with pytest.raises(ValueError, match=r"all of the 3 blocks must be held, got held=\[1, 3\]"):
        make(held=[1, 3]).predict(batch()[0])
