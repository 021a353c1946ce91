"""noprop.ModuleBlocks: networks of one's own train and predict as nk.DenoisingBlocks do."""

from functools import partial

import pytest
import torch
from torch import nn

import noprop
import noprop_kernels as nk
from support.networks import GOALS, F, M, T, changed, own_blocks, own_encoder, rows, state

X, Y = rows(90)
INDICES = torch.randint(90, (20, 2, 16), generator=torch.Generator().manual_seed(1))
EMBEDDING = torch.randn(M, 5, generator=torch.Generator().manual_seed(2))
DECAY = 1e-2
CASES = {
    "dt": (GOALS["dt"], None),
    "dt, embeddings": (GOALS["dt"], EMBEDDING),
    "ct": (nk.CT(weight="uniform"), EMBEDDING),
    "ct, stratified": (nk.CT(stratified=True), None),
    "fm": (nk.FM(), EMBEDDING),
    "fm, sigma": (nk.FM(sigma=0.2), None),
}


def twins(
    name: str, seed: int | list[int] = (4, 9)
) -> tuple[nk.DenoisingBlocks, noprop.ModuleBlocks]:
    """The library's blocks, and networks of one's own with their weights."""
    goal, embedding = CASES[name]
    D = M if embedding is None else 5
    plan = nk.plans.mlp(F, D, M, hidden=16, time=goal.timed)
    options = {"embedding": embedding, "seed": [*seed]}
    blocks = nk.DenoisingBlocks(
        plan, goal, optimizer=nk.AdamW(lr=1e-2, weight_decay=DECAY), **options
    )
    width = plan.widths["t"] if goal.timed else None
    make = partial(torch.optim.AdamW, lr=1e-2, weight_decay=DECAY)
    own = noprop.ModuleBlocks(
        blocks.to_modules(), goal, M, time_width=width, optimizer=make, **options
    )
    return blocks, own


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_follow_the_librarys(name):
    """On the same noise, with a rate for each step, of two replicas with rows of their own."""
    blocks, own = twins(name)
    lr = torch.linspace(1e-2, 1e-3, 20)
    weight = torch.linspace(0, 2, len(X))
    given = {"lr": lr, "normalize": (0.5, 2.0), "row_weight": weight}
    close(own.train_steps(X, Y, INDICES, **given), blocks.train_steps(X, Y, INDICES, **given))
    for mine, theirs in zip(own.networks, blocks.to_modules(), strict=True):
        for (key, value), want in zip(mine.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(value, want, rtol=1e-3, atol=1e-4, msg=key)
    assert torch.equal(own.draws, blocks.draws) and torch.equal(own.updates, blocks.updates)


@pytest.mark.parametrize("name", CASES)
def test_chains_follow_the_librarys(name):
    blocks, own = twins(name)
    calls = [
        {"samples": 2},
        {"noise": False, "keep": "all"},
        {"replica": 1, "seed": 3, "first_row": 7},
    ]
    if blocks.goal.timed:
        calls = [{"steps": 10, **options} for options in calls]
        calls += [
            {"sampler": "heun", "steps": 4, "keep": 2},
            {"sampler": "rk4", "steps": 3, "noise": False},
        ]
    for options in calls:
        got, want = own.predict(X, **options), blocks.predict(X, **options)
        for part in ("logits", "u_hat", "z"):
            close(getattr(got, part), getattr(want, part))
    assert all(module.training for module in own.networks)


@pytest.mark.parametrize("name", ["dt, embeddings", "ct"])
def test_forward_follows_the_librarys(name):
    blocks, own = twins(name)
    z = torch.randn(len(own), 90, own.D, generator=torch.Generator().manual_seed(3))
    t = torch.linspace(0, 1, 90) if own.goal.timed else None
    close(own(X, z, t=t), blocks(X, z, t=t))
    of_last = [own.T - 1, 2 * own.T - 1]
    part = own(X, z[of_last], t=t, blocks=own.T)
    assert torch.equal(part, own(X, z, t=t)[of_last])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16])
def test_bytes_count_as_fractions(dtype):
    blocks, own = twins("dt")
    data = torch.randint(0, 256, (90, F), generator=torch.Generator().manual_seed(5)).to(dtype)
    given = {"normalize": (0.4, 0.3)}
    want = blocks.train_steps(data, Y, INDICES[:2], **given)
    close(own.train_steps(data, Y, INDICES[:2], **given), want)


def test_gathered_batches_are_those_of_indices():
    own, other = own_blocks(), own_blocks()
    at = INDICES[:3, 0]
    weight = torch.linspace(0, 2, len(X))
    losses = own.train_steps(X[at], Y[at], None, row_weight=weight[at])
    assert torch.equal(losses, other.train_steps(X, Y, at, row_weight=weight))
    assert not changed(state(own), state(other))


# locality


@pytest.mark.parametrize("kind", ["dt", "encoder"])
def test_a_poisoned_block_reaches_no_other(kind):
    """Bits of the other blocks are those of a training without poison."""
    options = {"encoder": own_encoder()} if kind == "encoder" else {}
    sound, poisoned = own_blocks(**options), own_blocks(**options)
    with torch.no_grad():
        poisoned.block(2).logits.weight.fill_(float("nan"))
    before = state(poisoned)
    want, got = (each.train_steps(X, Y, INDICES[:5, 0]) for each in (sound, poisoned))
    assert got[:, 1].isnan().all() and torch.equal(got[:, [0, 2]], want[:, [0, 2]])
    after = state(poisoned)
    differ = changed(after, state(sound))
    own = ("networks.1.", "encoders.1.", "optimizers.1.")
    assert differ and all(name.startswith(own) or name == "updates" for name in differ)
    kept = changed(before, {name: after[name] for name in before})
    assert not any(name.startswith(own) for name in kept)  # running statistics too
    assert poisoned.updates.tolist() == [5, 0, 5] and poisoned.draws.tolist() == [5, 5, 5]


def test_a_block_trains_the_same_whichever_others_run():
    alone, together = own_blocks(), own_blocks()
    for t in (3, 1, 2):
        alone.train_steps(X, Y, INDICES[:4, 0], blocks=t)
    together.train_steps(X, Y, INDICES[:4, 0])
    assert not changed(state(alone), state(together))


def test_a_network_that_calls_another_trains_it_not():
    """No graph leads from one block's loss to another's parameters, even where code joins them."""

    class Joined(nn.Module):
        def __init__(self, other: nn.Module) -> None:
            super().__init__()
            self.logits, self.other = nn.Linear(M, M), [other]  # a list hides it

        def forward(self, x, z):
            return self.logits(z) + self.other[0](x, z)

    first = own_blocks().block(1)
    blocks = noprop.ModuleBlocks(
        [first, Joined(first), Joined(first)], GOALS["dt"], M, optimizer=torch.optim.SGD
    )
    parameters = [value.clone() for value in first.parameters()]
    blocks.train_steps(X, Y, INDICES[:2, 0], blocks=[2, 3])
    assert all(map(torch.equal, parameters, first.parameters()))
    assert all(value.grad is None for value in blocks.parameters())


def test_a_shared_encoder_learns_by_the_sum_of_the_losses():
    """Its first step is that of a plain gradient of the summed losses; no block sees another's."""
    encoder = own_encoder()
    encoder.dropout.p = 0.0
    make = partial(torch.optim.SGD, lr=0.1)
    shared = own_blocks(encoder=encoder, share_encoder=True, optimizer=make)
    copies = own_blocks(encoder=encoder, optimizer=make)
    before = shared.encoders[0].conv.weight.clone()
    assert torch.equal(before, encoder.conv.weight)
    for blocks in (shared, copies):
        blocks.train_steps(X, Y, INDICES[:1, 0])
    moves = [each.conv.weight - before for each in copies.encoders]
    assert len(copies.encoders) == T and len(shared.encoders) == 1
    close(shared.encoders[0].conv.weight - before, sum(moves))
    for t in range(T):
        for mine, want in zip(
            shared.networks[t].parameters(), copies.networks[t].parameters(), strict=True
        ):
            close(mine, want)
    assert torch.equal(encoder.conv.weight, before)  # the caller's own is not trained


def test_a_poisoned_block_leaves_a_shared_encoder_to_the_others():
    blocks = own_blocks(encoder=own_encoder(), share_encoder=True)
    with torch.no_grad():
        blocks.block(2).logits.weight.fill_(float("nan"))
    before = state(blocks)
    blocks.train_steps(X, Y, INDICES[:1, 0])
    assert all(value.isfinite().all() for value in blocks.encoders.parameters())
    assert "encoders.0.conv.weight" in changed(before, state(blocks))
    with torch.no_grad():
        for t in (1, 3):
            blocks.block(t).logits.weight.fill_(float("nan"))
    before = state(blocks)
    blocks.train_steps(X, Y, INDICES[:1, 0])
    assert changed(before, state(blocks)) == {"draws"}


def test_a_frozen_shared_encoder_stays_as_it_is():
    encoder = own_encoder().requires_grad_(False)
    blocks = own_blocks(encoder=encoder, share_encoder=True)
    before = state(blocks)
    blocks.train_steps(X, Y, INDICES[:3, 0])
    moved = changed(before, state(blocks))
    assert moved and not any(name.startswith("encoders") for name in moved)
    assert blocks.encoders[0].training


# rates, counters, replicas


def test_groups_keep_their_proportions_under_a_rate():
    def make(params):
        weights, biases = params[::2], params[1::2]
        return torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.05}], lr=0.1)

    scheduled, plain = own_blocks(optimizer=make), own_blocks(optimizer=make)
    assert scheduled.optimizer.lr == 0.1
    for group in (group for each in plain.optimizer.each for group in each.param_groups):
        group["lr"] /= 2
    plain.train_steps(X, Y, INDICES[:2, 0])
    scheduled.train_steps(X, Y, INDICES[:2, 0], lr=0.05)
    assert not changed(state(plain), state(scheduled))
    assert scheduled.optimizer.lr == 0.1  # its own again


@pytest.mark.parametrize("encoder", ["none", "copies", "shared"])
@pytest.mark.parametrize("kind", ["dt", "ct"])
def test_a_replica_trains_as_alone(kind, encoder):
    options = {}
    if encoder != "none":
        options = {"encoder": own_encoder(), "share_encoder": encoder == "shared"}
    both = own_blocks(kind, seed=[5, 8], **options)
    both.train_steps(X, Y, INDICES[:4])
    answers = both.predict(X, samples=2, steps=None if kind == "dt" else 5)
    for replica, seed in enumerate([5, 8]):
        alone = own_blocks(kind, seed=seed, **options)
        alone.train_steps(X, Y, INDICES[:4, replica])
        one = both.replica(replica)
        assert not changed(state(alone), state(one))
        assert state(alone).keys() == state(one).keys()
        answer = alone.predict(X, samples=2, steps=None if kind == "dt" else 5)
        assert torch.equal(answers.z[:, replica], answer.z[:, 0])
        for each in (alone, one):  # both go on the same way
            each.train_steps(X, Y, INDICES[4:6, replica])
        assert not changed(state(alone), state(one))


def test_torchs_generators_stay_as_they_were():
    blocks = own_blocks(encoder=own_encoder())
    before = torch.random.get_rng_state()
    blocks.train_steps(X, Y, INDICES[:2, 0])
    own_blocks()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dropout_follows_from_seed_block_and_step():
    """However torch's generator stands, and in whatever calls the steps are made."""
    one, other = own_blocks(), own_blocks()
    one.train_steps(X, Y, INDICES[:4, 0])
    for k in range(4):
        torch.rand(3)
        other.train_steps(X, Y, INDICES[k : k + 1, 0])
    assert not changed(state(one), state(other))


class Drawing(nn.Module):
    """Keeps what torch draws in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.logits, self.drawn = nn.Linear(M, M), []

    def forward(self, x, z):
        self.drawn.append(torch.rand(2))
        return self.logits(z)


def test_every_seed_block_and_step_draws_anew():
    def drawn(draws: int = 0) -> torch.Tensor:
        networks = [Drawing() for _ in range(2 * T)]
        blocks = noprop.ModuleBlocks(networks, GOALS["dt"], M, seed=[5, 8])
        blocks.draws += draws
        blocks.train_steps(X, Y, INDICES[:3])
        return torch.stack([torch.stack(network.drawn) for network in networks])

    first = drawn()  # (N, K, 2)
    assert len(first.flatten(0, 1).unique(dim=0)) == 2 * T * 3
    assert torch.equal(drawn(), first)
    assert torch.equal(drawn(draws=1)[:, :2], first[:, 1:])
