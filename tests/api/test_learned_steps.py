"""Coupled steps: every part moves by the gradient of one torch graph of the whole loss."""

import copy

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import philox
from noprop_kernels.backends.cpu import extension
from noprop_kernels.embedding_step import embedding_step
from noprop_kernels.stack import training
from support.blocks import IMAGES, B, M, assert_same, batch, images, snapshot
from support.learned import GOALS, NOISY, SGD, WIDTH, make
from support.learned_graph import F64, Graph, assert_close, gradients_of

CASES = [
    *((goal, order, False) for goal, order in (("dt", "paper"), ("dt", "all-t"))),
    *((goal, "paper", False) for goal in GOALS if goal[:2] != "dt"),
    *((goal, "all-t", True) for goal in ("dt", "ct", "fm")),
]


@pytest.mark.parametrize(("goal", "order", "detach_target"), CASES)
def test_every_part_moves_by_the_gradient_of_the_whole_loss(
    backend, goal: str, order: str, detach_target: bool
) -> None:
    """At the values before the step: W_embed by target, u_hat, z, the head's z_T, the prior and
    FM's anchor; gamma by all its levels; each block by its own loss."""
    coupled = make(goal, order, detach_target=detach_target)
    x, y = batch()
    for _ in range(2):  # the second is not at the first values, nor at draw 0
        t = 2 if goal == "dt" and order == "paper" else None
        graph, before = Graph(coupled, y, t), snapshot(coupled)
        T = GOALS[goal].T
        want = graph.gradients(x, T if t is None else 1)
        done = coupled.step(x, y, t)
        assert done.applied.tolist() == [True]
        assert_close(gradients_of(coupled, before), want)
        losses = [value for name, value in graph.terms.items() if name.startswith("block")]
        torch.testing.assert_close(
            done.loss.double(), torch.stack(losses).detach(), rtol=1e-4, atol=1e-6
        )
        head_loss = graph.terms.get("head", graph.terms.get("anchor"))
        assert done.head_loss is not None and head_loss is not None
        torch.testing.assert_close(
            done.head_loss[0].double(), head_loss.detach(), rtol=1e-4, atol=1e-6
        )
        prior = graph.terms.get("prior", torch.zeros((), dtype=F64)).detach()
        torch.testing.assert_close(done.prior[0].double(), prior, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("goal", [goal for goal in GOALS if goal != "dt huge"])
def test_only_fm_s_cross_entropy_reaches_the_blocks(backend, goal: str) -> None:
    """Another output head leaves a step of the blocks as it is, except where it ends FM's path."""
    one, other = make(goal), make(goal)
    with torch.no_grad():
        other.head.logits.weight[:, 0] += 1
    x, y = batch()
    t = 1 if goal == "dt" else None
    one.step(x, y, t)
    other.step(x, y, t)
    same = [
        torch.equal(a, b)
        for a, b in zip(one.blocks.parameters(), other.blocks.parameters(), strict=True)
    ]
    assert not any(same[:1]) if goal.startswith("fm") else all(same)
    assert not torch.equal(one.shared.W_embed, other.shared.W_embed)


@pytest.mark.parametrize("seed", [3, [3, 4]], ids=["one", "two replicas"])
@pytest.mark.parametrize("embedding", [None, torch.eye(M, WIDTH) + 0.5], ids=["one-hot", "fixed"])
@pytest.mark.parametrize(
    ("goal", "order"), [("dt", "paper"), ("dt", "all-t"), ("ct fixed", "paper"), ("fm", "paper")]
)
def test_with_nothing_learned_it_is_the_parallel_calls(
    backend, goal: str, order: str, embedding: Tensor | None, seed: int | list[int]
) -> None:
    """Bit for bit, beside objects without anything shared."""
    coupled = make(goal, order, embedding=embedding, seed=seed)
    options = {"embedding": embedding, "optimizer": SGD, "seed": seed}
    blocks = nk.DenoisingBlocks(coupled.blocks.plan, GOALS[goal], **options)
    D, head = blocks.D, None
    if coupled.head is not None:
        head = nk.OutputHead(D, M, goal=GOALS[goal], **options)
    x, y = batch()
    for t in (1, 3, 3):
        named = t if goal == "dt" and order == "paper" else None
        done = coupled.step(x, y, named, lr=0.02)
        assert torch.equal(done.loss, blocks.train_step(x, y, blocks=named, lr=0.02).loss)
        if head is not None:
            step = head.train_step(y, named or 1, lr=0.02)
            assert torch.equal(done.head_loss, step.loss)
        assert done.applied.all()
    for mine, alone in ((coupled.blocks, blocks), (coupled.head, head)):
        if alone is not None:
            want = {name: value for name, value in snapshot(alone).items() if name != "W_embed"}
            assert_same(snapshot(mine), want)
    assert coupled.shared.draws.tolist() == [3] * coupled.shared.replicas


def test_replicas_with_a_learned_gamma_train_as_alone(backend) -> None:
    """Bit for bit, and so do they predict."""
    x, y = batch()
    together = make("ct", embedding=None, seed=[3, 4])
    alone = make("ct", embedding=None, seed=4)
    for _ in range(3):
        both, one = together.step(x, y), alone.step(x, y)
        assert torch.equal(both.loss[1:], one.loss)
        assert torch.equal(both.head_loss[1:], one.head_loss)
        assert torch.equal(both.prior[1:], one.prior)
    for name, value in snapshot(alone).items():
        assert torch.equal(snapshot(together)[name][1:], value), name
    with nk.use_backend("reference"):
        for noise in (True, False):
            both = together.blocks.predict(x, noise=noise, steps=4, keep="all")
            one = alone.blocks.predict(x, noise=noise, steps=4, keep="all")
            assert torch.equal(both.z[:, :, 1:], one.z)
            assert torch.equal(both.logits[:, :, 1:], one.logits)
            of_two = together.blocks.predict(x, noise=noise, steps=4, keep="all", replica=1)
            assert torch.equal(of_two.z, one.z)


@pytest.mark.parametrize("goal", ["dt", "ct", "fm"])
def test_prediction_is_at_the_present_values(goal: str) -> None:
    coupled = make(goal, "all-t")
    x, y = batch()
    coupled.step(x, y)
    shared, options = coupled.shared, {} if goal == "dt" else {"steps": 5}
    fixed = nk.DenoisingBlocks(
        coupled.blocks.plan,
        shared.present_goal() if goal != "ct" else nk.CT(tabled(shared)),
        embedding=shared.W_embed.detach()[0],
        seed=3,
        optimizer=SGD,
    )
    fixed.load_state_dict(coupled.blocks.state_dict() | {"W_embed": shared.W_embed.detach()[0]})
    with nk.use_backend("reference"):
        got, want = (each.predict(x, **options) for each in (coupled.blocks, fixed))
    torch.testing.assert_close(got.z, want.z, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.u_hat, want.u_hat, rtol=1e-6, atol=1e-6)


def tabled(shared: nk.Shared) -> nk.Gamma:
    """gamma at the points that the test's sampler asks for."""
    return nk.Gamma(shared.present_goal().schedule(torch.arange(6, dtype=F64) / 5))


def test_a_sampled_step_trains_the_block_that_stream_6_draws(backend) -> None:
    x, y = batch()
    sampled, named = make("dt", "sampled"), make("dt")
    seen = set()
    for draw in range(8):
        u = philox.uniform(torch.tensor([3]), philox.STREAM_TIME, 0, draw, 0xFFFE, 1, 1)
        t = 1 + int(3 * u)
        seen.add(t)
        assert torch.equal(sampled.step(x, y).loss, named.step(x, y, t).loss)
    assert seen == {1, 2, 3}
    assert_same(snapshot(sampled), snapshot(named))


@pytest.mark.parametrize("large", [1e25, 1.9e19], ids=["gradients", "the loss alone"])
@pytest.mark.parametrize("goal", ["dt", "ct", "ct fixed", "fm"])
@pytest.mark.parametrize("detach_target", [False, True])
def test_a_step_that_is_not_finite_moves_nothing(
    backend, goal: str, detach_target: bool, large: float
) -> None:
    """Of the blocks whose loss it is and what is shared, and under an FM of the head."""
    coupled = make(goal, "all-t", detach_target=detach_target)
    x, y = batch()
    coupled.step(x, y)
    with torch.no_grad():
        coupled.shared.W_embed[0, 0, 0] = large  # whose square is beyond float32
    y[0] = 0
    before = snapshot(coupled)
    done = coupled.step(x, y)
    assert not done.applied.any() and not done.loss.isfinite().all()
    parts = ("shared", "blocks", *(["head"] if goal == "fm" else []))
    assert_stayed(coupled, before, parts, ~done.loss.isfinite())


@pytest.mark.parametrize("goal", ["dt", "ct", "ct fixed", "fm"])
def test_an_infinite_loss_of_the_head_leaves_what_is_shared(backend, goal: str) -> None:
    """Its gradients are finite: -log softmax of a logit that is -inf. Under an FM the block, whose
    loss it is too, stays as well; else it moves."""
    coupled = make(goal, "all-t")
    x, y = batch()
    coupled.step(x, y)
    with torch.no_grad():
        coupled.head.logits.bias[0, y[0]] = -torch.inf
    before = snapshot(coupled)
    done = coupled.step(x, y)
    assert not done.applied.any() and done.head_loss == torch.inf and done.loss.isfinite().all()
    parts = ("shared", "head", *(["blocks"] if goal == "fm" else []))
    assert_stayed(coupled, before, parts, torch.tensor([True]))
    moved = not torch.equal(before["blocks.h.weight"], coupled.blocks.h.weight)
    assert moved == (goal != "fm")


def test_one_infinite_loss_of_a_block_leaves_what_is_shared(backend) -> None:
    """Where all gradients are finite: block 3's weight times its error is not."""
    coupled = make("dt huge", "all-t")
    x, y = batch()
    before = snapshot(coupled)
    done = coupled.step(x, y)
    assert done.loss.isfinite().tolist() == [True, True, False] and not done.applied.any()
    assert_stayed(coupled, before, ("shared", "blocks"), ~done.loss.isfinite())
    assert not torch.equal(before["head.logits.bias"], coupled.head.logits.bias)


def assert_stayed(
    coupled: nk.Coupled, before: dict[str, Tensor], parts: tuple[str, ...], slices: Tensor
) -> None:
    """The state of these parts, of the blocks in these slices; draws have advanced, and forward
    moves a norm's statistics."""
    for name, value in snapshot(coupled).items():
        if name.endswith("draws"):
            assert torch.equal(value, before[name] + 1), name
        elif name.startswith(parts) and "running" not in name:
            part = slices if name.startswith("blocks") else ...
            assert torch.equal(value[part], before[name][part]), name


@pytest.mark.parametrize("goal", ["dt", "ct", "fm"])
@pytest.mark.parametrize("copied", ["loaded", "copied"])
def test_a_resumed_run_has_the_same_bits(backend, goal: str, copied: str) -> None:
    optimizer = nk.Adam(lr=0.01)
    coupled = make(goal, "all-t", optimizer=optimizer)
    x, y = batch()
    for _ in range(2):
        coupled.step(x, y)
    if copied == "copied":
        resumed = copy.deepcopy(coupled)
        assert resumed.blocks.shared is resumed.head.shared is resumed.shared
        assert resumed.shared is not coupled.shared
    else:
        resumed = make(goal, "all-t", optimizer=optimizer)
        resumed.load_state_dict(snapshot(coupled))
    assert_same(snapshot(resumed), snapshot(coupled))
    for _ in range(2):
        assert torch.equal(resumed.step(x, y).loss, coupled.step(x, y).loss)
    assert_same(snapshot(resumed), snapshot(coupled))


@pytest.mark.parametrize("goal", ["dt", "ct", "fm"])
def test_a_step_forms_its_gradients_whatever_the_mode(goal: str) -> None:
    one, other = make(goal, "all-t"), make(goal, "all-t")
    x, y = batch()
    one.step(x, y)
    with torch.no_grad():
        other.step(x, y)
    assert_same(snapshot(other), snapshot(one))


def test_the_step_in_torch_is_the_kernels_step(backend) -> None:
    """With dropout, batch norm and images, at the same addresses: gradients and every moved bit of
    state within rounding."""
    goal = nk.DT(NOISY)

    def blocks_of() -> tuple[nk.DenoisingBlocks, nk.OutputHead]:
        shared = nk.Shared(goal, nk.LearnedEmbedding(M, M, "normal"), optimizer=SGD)
        options = {"shared": shared, "optimizer": SGD}
        return nk.DenoisingBlocks(IMAGES, goal, **options), nk.OutputHead(
            M, M, goal=goal, **options
        )

    x, y = images()
    (fused, _), (parts, head) = blocks_of(), blocks_of()
    for _ in range(2):
        want = training.train_step(fused, x, y, None, None, None, False, levels_grad=True)
        got = embedding_step(parts, head, parts.shared, x, y, None, None, None)
        torch.testing.assert_close(got.loss, want.loss, rtol=1e-5, atol=1e-7)
        for name in ("d_signal", "d_noise"):
            torch.testing.assert_close(
                getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-6
            )
        torch.testing.assert_close(got.d_weight, want.error / B, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(got.d_W_embed, want.d_W_embed.mean(0), rtol=1e-4, atol=1e-6)
    for name, value in snapshot(fused).items():
        torch.testing.assert_close(snapshot(parts)[name], value, rtol=1e-4, atol=1e-6, msg=name)


WEIGHTS = {"snr": "snr", "uniform": "uniform", "min-snr": ("min-snr", 3.0)}


@pytest.mark.parametrize("seed", [3, [3, 4]], ids=["one", "two replicas"])
@pytest.mark.parametrize("detach_target", [False, True])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_learned_gamma_s_steps_by_the_kernels_are_those_by_torch(
    monkeypatch, weight: str, detach_target: bool, seed: int | list[int]
) -> None:
    """Over several steps, at another rate than the optimizer's too, within rounding."""
    network = nk.GammaNetwork(hidden=70)
    goal = nk.CT(network, eta=0.05, weight=WEIGHTS[weight], stratified=True)
    monkeypatch.setitem(GOALS, "ct", goal)
    adam = nk.Adam(lr=0.01, weight_decay=0.02, eps=1e-2)  # which damps what is near 0
    options = {"embedding": None if isinstance(seed, list) else "learned", "optimizer": adam}
    options |= {"detach_target": detach_target, "seed": seed}
    x, y = batch()
    states, steps = [], []
    for backend in ("cpu", "reference"):
        coupled = make("ct", **options)
        with nk.use_backend(backend):
            steps.append([coupled.step(x, y, lr=0.02 if k == 1 else None) for k in range(4)])
        states.append(snapshot(coupled))
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=2e-4, atol=1e-5, msg=name)
    for got, want in zip(*steps, strict=True):
        for name, value in vars(want).items():
            torch.testing.assert_close(getattr(got, name), value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("threads", [1, 5])
def test_a_learned_gamma_s_steps_are_the_same_on_any_threads(monkeypatch, threads: int) -> None:
    monkeypatch.setitem(GOALS, "ct", nk.CT(nk.GammaNetwork(hidden=3000), eta=0.05))
    coupled, other = make("ct"), make("ct")
    x, y = batch()
    with nk.use_backend("cpu"):
        for _ in range(3):
            monkeypatch.setattr(extension, "threads", lambda: 2)
            coupled.step(x, y)
            monkeypatch.setattr(extension, "threads", lambda: threads)
            other.step(x, y)
    assert_same(snapshot(other), snapshot(coupled))


def test_a_graph_sees_that_a_step_has_moved_what_is_shared(backend) -> None:
    coupled = make("ct")
    for name in ("gamma.w1", "W_embed"):
        before = coupled.shared.get_parameter(name).square().sum()
        coupled.step(*batch())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            before.backward()
