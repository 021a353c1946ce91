"""Shared: the first embeddings, the update, the state, and what does not fit."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import philox
from support.blocks import GOAL, M, assert_same, make, snapshot

CT = nk.CT(nk.GammaNetwork(hidden=6))
SEEDS = [3, 4, 5]
OPTIMIZERS = {
    "sgd": (nk.SGD(lr=0.1, weight_decay=0.02), torch.optim.SGD),
    "momentum": (nk.SGD(lr=0.1, momentum=0.9), torch.optim.SGD),
    "adam": (nk.Adam(lr=0.1, weight_decay=0.02), torch.optim.Adam),
    "adamw": (nk.AdamW(lr=0.1, weight_decay=0.02), torch.optim.AdamW),
}


def make_shared(seed: int | list[int] = 3, **options) -> nk.Shared:
    return nk.Shared(CT, nk.LearnedEmbedding(M, 4), seed=seed, **options)


def gradients(shared: nk.Shared, seed: int = 0) -> dict[str, Tensor]:
    """Random ones, those of a replica the same whichever others there are."""
    found = {}
    for i, (name, value) in enumerate(shared.named_parameters()):
        columns = value[0].numel()
        address = (shared.seeds, philox.STREAM_EPS, i, seed, 0, 1, columns)
        found[name] = philox.normal(*address).view(value.shape)
    return found


def everyone(shared: nk.Shared) -> Tensor:
    return torch.ones(shared.replicas, dtype=torch.bool)


# embeddings


def test_the_first_embeddings() -> None:
    """Orthonormal rows where they can be, else normal numbers of their addresses."""
    wide = nk.Shared(GOAL, nk.LearnedEmbedding(4, 9), seed=SEEDS).W_embed
    assert wide.shape == (3, 4, 9) and wide.dtype == torch.float32 and wide.is_contiguous()
    products = wide.detach().double() @ wide.detach().double().mT
    torch.testing.assert_close(
        products, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), rtol=0, atol=1e-6
    )
    assert not torch.equal(wide[0], wide[1])
    numbers = philox.normal(torch.tensor(SEEDS), 4, 3, 0, 0xFFFE, 9, 4, dtype=torch.float64)
    for init in ("orthogonal", "normal"):  # 9 rows of 4 cannot be orthonormal
        tall = nk.Shared(GOAL, nk.LearnedEmbedding(9, 4, init, 0.5), seed=SEEDS).W_embed
        assert torch.equal(tall.detach(), (0.5 * numbers).float())
    normal = nk.Shared(GOAL, nk.LearnedEmbedding(4, 9, "normal"), seed=SEEDS).W_embed
    assert not torch.allclose(normal, wide)
    given = torch.randn(4, 9)
    start = nk.Shared(GOAL, nk.LearnedEmbedding(4, 9, given, 2.0), seed=SEEDS).W_embed
    assert torch.equal(start.detach(), (2 * given).expand(3, 4, 9))


def test_a_large_gaussian_gives_every_rotation() -> None:
    """The signs of QR are removed: the rows' mean over seeds is 0, as of uniform rotations."""
    rows = nk.Shared(GOAL, nk.LearnedEmbedding(2, 3), seed=[*range(400)]).W_embed.detach()
    assert rows.mean(0).abs().max() < 5 * (1 / 3 / 400) ** 0.5


@pytest.mark.parametrize(
    ("make_it", "text"),
    [
        (lambda: nk.LearnedEmbedding(0, 4), "M must be"),
        (lambda: nk.LearnedEmbedding(3, 4, "ones"), "init must be a tensor or of"),
        (lambda: nk.LearnedEmbedding(3, 4, torch.ones(4, 3)), r"init must have shape \(3, 4\)"),
        (lambda: nk.LearnedEmbedding(1, 1, torch.full((1, 1), torch.nan)), "init must be finite"),
        (lambda: nk.LearnedEmbedding(3, 4, scale=0), "scale must be above 0"),
        (lambda: nk.LearnedEmbedding(3, 4, detach_target=1), "detach_target must be true or false"),
        (lambda: nk.Shared(GOAL.schedule), "goal must be a DT, CT or FM"),
        (lambda: nk.Shared(GOAL, torch.ones(3)), "embedding must have shape"),
        (lambda: nk.Shared(GOAL, "learned"), "embedding must be a tensor"),
        (lambda: nk.Shared(GOAL, optimizer="adam"), "optimizer must be"),
        (lambda: nk.Shared(GOAL, seed=[]), "seed must be"),
    ],
)
def test_arguments_that_do_not_fit(make_it, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make_it()


# the update


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_updates_are_torch_s(name: str) -> None:
    optimizer, torch_s = OPTIMIZERS[name]
    shared = make_shared(optimizer=optimizer)
    twins = {n: torch.nn.Parameter(p.detach().clone()) for n, p in shared.named_parameters()}
    options = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
    if "momentum" in optimizer.hyper():
        options["momentum"] = optimizer.momentum
    other = torch_s(twins.values(), **options)
    for step in range(4):
        grads = gradients(shared, step)
        assert shared.update(grads, everyone(shared)).all()
        for n, value in twins.items():
            value.grad = grads[n]
        other.step()
    for n, value in shared.named_parameters():
        torch.testing.assert_close(value, twins[n], rtol=1e-5, atol=1e-6)
    assert shared.updates.tolist() == shared.draws.tolist() == [4]


def test_an_update_at_another_rate() -> None:
    one, other = make_shared(SEEDS), make_shared(SEEDS)
    grads = gradients(one)
    one.update(grads, everyone(one), lr=0.5)
    other.update(grads, everyone(one), lr=torch.tensor([0.5, 0.5, 0.0]))
    for name, value in one.named_parameters():
        assert torch.equal(value[:2], other.get_parameter(name)[:2])
        assert not torch.equal(value[2], other.get_parameter(name)[2])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_replica_is_updated_as_alone(name: str) -> None:
    optimizer = OPTIMIZERS[name][0]
    together = make_shared(SEEDS, optimizer=optimizer)
    alone = make_shared(SEEDS[1], optimizer=optimizer)
    for step in range(3):
        for shared in (together, alone):
            shared.update(gradients(shared, step), everyone(shared))
    for key, value in snapshot(alone).items():
        assert torch.equal(snapshot(together)[key][1:2], value), key


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_replica_whose_gradient_is_not_finite_stays(wrong: float) -> None:
    """And so does one that was not to be applied; the third moves."""
    shared, clean = make_shared(SEEDS), make_shared(SEEDS)
    apply = torch.tensor([True, False, True])
    for each in (shared, clean):
        each.update(gradients(each), everyone(each))
    before, grads = snapshot(shared), gradients(shared, 1)
    clean.update(grads, everyone(clean))
    grads["gamma.b1"] = grads["gamma.b1"].clone()
    grads["gamma.b1"][0, 2] = wrong
    assert shared.update(grads, apply).tolist() == [False, False, True]
    after = snapshot(shared)
    for name, value in before.items():
        if name == "draws":
            continue
        assert torch.equal(after[name][:2], value[:2]), name
        assert torch.equal(after[name][2], snapshot(clean)[name][2]), name
    assert shared.draws.tolist() == [2, 2, 2] and shared.updates.tolist() == [1, 1, 2]


def test_weights_of_gamma_stay_positive_behind_random_updates() -> None:
    shared = make_shared(optimizer=nk.SGD(lr=0.3))
    for step in range(100):
        shared.update(gradients(shared, step), everyone(shared))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    gamma, slope = shared.present_goal().schedule.with_slope(t)
    assert bool((gamma.diff() < 0).all()) and bool((slope < 0).all())
    assert bool((shared.present_goal().levels(t).weight > 0).all())


def refused_update(change: str) -> None:
    shared = make_shared(SEEDS, optimizer=None if change == "optimizer" else nk.SGD())
    grads, apply, options = gradients(shared), everyone(shared), {}
    if change == "names":
        del grads["W_embed"]
    elif change == "shape":
        grads["W_embed"] = grads["W_embed"][:1]
    elif change == "dtype":
        grads["W_embed"] = grads["W_embed"].double()
    elif change == "apply":
        apply = apply[:1]
    elif change == "lr":
        options["lr"] = -1
    elif change == "eval":
        shared.eval()
    elif change == "frozen":
        shared.W_embed.requires_grad_(False)
    before = snapshot(shared)
    try:
        shared.update(grads, apply, **options)
    finally:
        assert_same(snapshot(shared), before)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("optimizer", "optimizer must not be None here; give one to Shared"),
        ("names", r"grads must have \['W_embed', 'gamma.w1'"),
        ("shape", "W_embed must have shape"),
        ("dtype", "W_embed must be torch.float32"),
        ("apply", "apply must have shape"),
        ("lr", "lr must be finite and at least 0"),
        ("eval", "mode must be that of train"),
        ("frozen", "parameters must all be leaves that require a gradient"),
    ],
)
def test_an_update_that_does_not_fit_moves_nothing(change: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        refused_update(change)


# the prior


@pytest.mark.parametrize("schedule", [[0.2, 0.6, 0.9], [0.0, 0.6, 0.9]], ids=["noisy", "pure"])
def test_the_prior_s_gradient_is_alpha_bar_0_u(schedule: list[float]) -> None:
    shared = nk.Shared(nk.DT(nk.NoiseSchedule(torch.tensor(schedule))), nk.LearnedEmbedding(3, 4))
    y = torch.tensor([0, 2, 2, 0, 2])
    shared.prior(y).sum().backward()
    share = torch.tensor([0.4, 0.0, 0.6])[:, None]
    want = schedule[0] * share * shared.W_embed.detach()[0]
    torch.testing.assert_close(shared.W_embed.grad[0], want)
    assert (shared.prior(y) == 0) == (schedule[0] == 0)


def test_the_prior_moves_gamma_s_end_alone() -> None:
    shared = make_shared()
    shared.prior(torch.tensor([1, 0])).sum().backward()
    gamma_1 = shared.present_goal().schedule.ends()[0][0]
    first = torch.sigmoid(-gamma_1)
    squared = shared.W_embed.detach()[0, :2].double().square().sum(-1).mean()
    # by ab' = -ab (1 - ab) and log(1 - ab)' = ab
    d_gamma_1 = 0.5 * (-first * (1 - first) * (squared - 4) - 4 * first)
    torch.testing.assert_close(
        shared.gamma.gamma_0.grad.double(), d_gamma_1[None], rtol=1e-5, atol=0
    )
    for name in ("w1", "b1", "w2"):
        grad = shared.get_parameter(f"gamma.{name}").grad
        assert grad is None or not grad.any()


def test_one_hot_labels_have_a_prior() -> None:
    shared = nk.Shared(nk.CT())
    y = torch.tensor([1, 0])
    torch.testing.assert_close(
        shared.prior(y, 3), nk.CT().prior(torch.ones(1, dtype=torch.float64), 3)
    )
    with pytest.raises(ValueError, match="M must be"):
        shared.prior(y)


# the state


def test_the_state_goes_to_a_dict_and_back() -> None:
    shared = make_shared(SEEDS)
    shared.update(gradients(shared), everyone(shared))
    names = {"gamma.w1", "gamma.b1", "gamma.w2", "gamma.gamma_0", "gamma.delta", "W_embed"}
    want = names | {f"{name}_{m}" for name in names for m in "mv"} | {"seeds", "draws", "updates"}
    assert set(shared.state_dict()) == want
    loaded = make_shared(SEEDS)
    loaded.load_state_dict(snapshot(shared))
    copies = [loaded, copy.deepcopy(shared), pickle.loads(pickle.dumps(shared))]
    shared.update(gradients(shared, 1), everyone(shared))
    for each in copies:
        each.update(gradients(each, 1), everyone(each))
        assert_same(snapshot(each), snapshot(shared))


def test_a_state_that_does_not_fit_is_refused() -> None:
    shared = make_shared(SEEDS)
    state, before = snapshot(make_shared(SEEDS)), snapshot(shared)
    for change, text in (
        ({"seeds": torch.tensor([1, 2, 3])}, "seeds must be"),
        ({"W_embed": torch.zeros(3, M, 5)}, "W_embed must have shape"),
        ({"updates": torch.tensor([-1, 0, 0])}, "updates must be in"),
        ({"other": torch.zeros(1)}, "with \\['other'\\]"),
    ):
        with pytest.raises(ValueError, match=text):
            shared.load_state_dict(state | change)
        assert_same(snapshot(shared), before)
    with pytest.raises(ValueError, match="must stay torch.float32"):
        shared.double()
    with pytest.raises(ValueError, match="goal must stay"):
        shared.goal = nk.FM()
    with pytest.raises(ValueError, match="optimizer must keep the moments"):
        shared.optimizer = nk.SGD()


def test_blocks_and_head_keep_it_out_of_their_state() -> None:
    shared = nk.Shared(GOAL, nk.LearnedEmbedding(M, 5))
    blocks, plain = make(shared=shared), make()
    head = nk.OutputHead(5, M, goal=GOAL, shared=shared)
    assert blocks.state_dict().keys() == plain.state_dict().keys()
    assert len(list(blocks.parameters())) == len(list(plain.parameters()))
    assert blocks.shared is head.shared is shared and blocks.D == 5
    assert not any(name.startswith("shared") for name in head.state_dict())
    with pytest.raises(ValueError, match="shared must stay"):
        blocks.shared = None
    assert "learned=['W_embed']" in repr(shared)


@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_another_device_than_shared_s_is_refused(kind: str) -> None:
    embedding = nk.LearnedEmbedding(M, 5) if kind == "learned" else torch.eye(M)
    blocks = make(shared=nk.Shared(GOAL, embedding))
    blocks.shared.to("meta")
    with pytest.raises(ValueError, match="W_embed must"):
        blocks.add_noise(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shared": "it"}, "shared must be a Shared"),
        ({"shared": nk.Shared(GOAL), "embedding": torch.eye(M)}, "embedding must be None"),
        ({"shared": nk.Shared(nk.DT(GOAL.schedule, eta=0.5))}, "shared must have the goal"),
        ({"shared": nk.Shared(GOAL), "seed": [1, 2]}, "shared must have 2 replicas"),
        (
            {
                "shared": nk.Shared(GOAL, nk.LearnedEmbedding(M, 5), seed=[1, 2]),
                "seed": [1, 2],
            },
            "seed must be one where W_embed is learned",
        ),
        ({"shared": nk.Shared(GOAL, torch.ones(M + 1, 5))}, "embeddings of 5 classes"),
    ],
)
def test_blocks_and_head_refuse_what_does_not_fit(options: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make(**options)
    with pytest.raises(ValueError, match=text):
        nk.OutputHead(5, M, goal=GOAL, **options)


def test_a_learned_gamma_needs_shared() -> None:
    plan = nk.plans.mlp(7, M, M, hidden=6, time=True)
    for make_it in (
        lambda: nk.DenoisingBlocks(plan, CT),
        lambda: nk.OutputHead(M, M, goal=CT),
    ):
        with pytest.raises(ValueError, match="without shared=, got a GammaNetwork"):
            make_it()
    shared = nk.Shared(GOAL, torch.ones(M, 5))
    with pytest.raises(ValueError, match="D must be 5, shared's, got 4"):
        nk.OutputHead(4, M, goal=GOAL, shared=shared)


# the output head's gradients


def test_the_head_s_gradients_in_its_levels_are_autograd_s(backend) -> None:
    W = torch.randn(M, 3, generator=torch.Generator().manual_seed(7))
    head = nk.OutputHead(3, M, goal=GOAL, embedding=W, seed=[5, 6])
    weights = {name: value.detach().double() for name, value in head.named_parameters()}
    y = torch.tensor([0, 2, 1, 2])
    step = head.train_step(y, 2, levels_grad=True)
    last = GOAL.last()
    for r, seed in enumerate((5, 6)):
        table = W.double().requires_grad_()
        signal, noise = (
            value.double().expand(4).clone().requires_grad_() for value in (last.signal, last.noise)
        )
        address = (torch.tensor([seed]), philox.STREAM_HEAD, 0, 0, 1, 4, 3)
        eps = philox.normal(*address, dtype=torch.float64)[0]
        z = signal[:, None] * table[y] + noise[:, None] * eps
        logits = z @ weights["logits.weight"][r].T + weights["logits.bias"][r]
        torch.nn.functional.cross_entropy(logits, y).backward()
        for got, want in (
            (step.d_W_embed[r], table.grad),
            (step.d_signal[r], signal.grad),
            (step.d_noise[r], noise.grad),
        ):
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)
    without = nk.OutputHead(3, M, goal=GOAL, embedding=W, seed=[5, 6])
    assert without.train_step(y, 2).d_W_embed is None
    assert_same(snapshot(without), snapshot(head))
