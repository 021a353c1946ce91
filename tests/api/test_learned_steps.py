"""Coupled steps: every part moves by the gradient of one torch graph of the whole loss."""

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import noprop_kernels as nk
from noprop_kernels import philox
from noprop_kernels.backends.cpu import backend as cpu
from noprop_kernels.embedding_step import embedding_step
from noprop_kernels.stack import training
from support.blocks import IMAGES, NORM, B, F, M, assert_same, batch, images, snapshot

F64 = torch.float64
WIDTH = 4  # D, of learned embeddings
SGD = nk.SGD(lr=0.01, momentum=0.5)  # whose moment holds the gradient
NOISY = nk.NoiseSchedule(torch.tensor([0.15, 0.4, 0.7, 0.95]))  # so that DT has a prior
GOALS = {
    "dt": nk.DT(NOISY, eta=0.3),
    "dt huge": nk.DT(NOISY, eta=1e37),
    "ct": nk.CT(nk.GammaNetwork(hidden=9), eta=0.05),
    "ct fixed": nk.CT(eta=0.05),
    "ct uniform": nk.CT(nk.GammaNetwork(hidden=9), weight="uniform", stratified=True),
    "fm": nk.FM(),
    "fm sigma": nk.FM(sigma=0.3),
}
CASES = [
    *((goal, order, False) for goal, order in (("dt", "paper"), ("dt", "all-t"))),
    *((goal, "paper", False) for goal in GOALS if goal[:2] != "dt"),
    *((goal, "all-t", True) for goal in ("dt", "ct", "fm")),
]


def make_plan(timed: bool, D: int = WIDTH) -> nk.Plan:
    """Every input reaches every logit through a batch norm and a smooth activation."""
    inputs = {"x": (F,), "z": (D,)} | ({"t": (6,)} if timed else {})
    return nk.Plan(
        inputs,
        {
            "h": nk.Dense(tuple(inputs), 8, norm=NORM, activation="gelu"),
            "logits": nk.Dense("h", M),
        },
    )


def make(
    goal: str,
    order: str = "paper",
    *,
    embedding: object = "learned",
    detach_target: bool = False,
    optimizer: nk.SGD | nk.Adam = SGD,
    seed: int = 3,
) -> nk.Coupled:
    if embedding == "learned":
        embedding = nk.LearnedEmbedding(M, WIDTH, "normal", 0.8, detach_target)
    options = {"optimizer": optimizer, "seed": seed}
    shared = nk.Shared(GOALS[goal], embedding, **options)
    D = M if shared.W_embed is None else WIDTH
    options["shared"] = shared
    blocks = nk.DenoisingBlocks(make_plan(GOALS[goal].timed, D), GOALS[goal], **options)
    learns = shared.learns_embedding
    head = None
    if learns or GOALS[goal].flow == 0:
        head = nk.OutputHead(D, M, goal=GOALS[goal], **options)
    return nk.Coupled(blocks, head, shared, order=order)


@dataclass
class Graph:
    """The whole loss of a coupled step in float64, on the noise and the t of its next step."""

    coupled: nk.Coupled
    y: Tensor
    t: int | None
    terms: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        coupled = self.coupled
        shared, blocks, head = coupled.shared, coupled.blocks, coupled.head
        self.leaves = {
            f"shared.{name}": value.detach()[0].to(F64).clone().requires_grad_()
            for name, value in shared.named_parameters()
        }
        self.W = self.leaves.get("shared.W_embed")
        if self.W is None:
            self.W = torch.eye(M, dtype=F64) if shared.W_embed is None else shared.W_embed.to(F64)
        self.modules = [copy.deepcopy(module).to(F64) for module in blocks.to_modules()]
        for i, module in enumerate(self.modules):
            for name, value in module.named_parameters():
                self.leaves[f"blocks.{i}.{name}"] = value
        if head is not None:
            for name, value in head.named_parameters():
                leaf = value.detach()[0].to(F64).clone().requires_grad_()
                self.leaves[f"head.{name}"] = leaf

    def read(self, z: Tensor) -> Tensor:
        names = ("head.logits.weight", "head.logits.bias")
        return functional.linear(z, *(self.leaves[name] for name in names))

    def eps(self, stack: torch.nn.Module, block: int, stream: int = 0) -> Tensor:
        slot = block if isinstance(stack, nk.DenoisingBlocks) else 0
        address = (stack.seeds[:1], stream, 0, stack.draws[slot], block)
        return philox.normal(*address, len(self.y), self.W.shape[1], dtype=F64)[0]

    def gamma(self, t: Tensor) -> Tensor:
        """Appendix B, with torch's own derivative behind it."""
        if f"shared.gamma.{'delta'}" not in self.leaves:
            return self.coupled.blocks.goal.schedule(t) if t.ndim else 6 - 9 * t
        of = {name: self.leaves[f"shared.gamma.{name}"] for name in ("w1", "b1", "w2", "delta")}
        soft = functional.softplus

        def net(at: Tensor) -> Tensor:
            at = at[..., None] - 0.5
            return (soft(of["w2"]) * torch.tanh(soft(of["w1"]) * at + of["b1"])).sum(-1)

        ends = net(torch.tensor([0.0, 1.0], dtype=F64))
        gbar = (net(t) - ends[0]) / (ends[1] - ends[0])
        return self.leaves["shared.gamma.gamma_0"] + soft(of["delta"]) * (1 - gbar)

    def timed(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """t, signal, noise and weight of the rows."""
        goal = self.coupled.blocks.goal
        t = self.coupled.blocks.times(len(self.y))[0]
        if isinstance(goal, nk.FM):
            return t, t, 1 - t, torch.ones_like(t)
        t = t.requires_grad_()
        gamma = self.gamma(t)
        if goal.weight == "snr":
            snr = torch.exp(-gamma)
            (slope,) = torch.autograd.grad(snr.sum(), t, create_graph=True)
        else:
            slope = torch.ones_like(t)
        alpha_bar = torch.sigmoid(-gamma)
        weight = 0.5 * goal.eta * slope
        return t.detach(), alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), weight

    def block_loss(self, x: Tensor, t: int) -> Tensor:
        coupled, y = self.coupled, self.y
        goal, blocks, W = coupled.blocks.goal, coupled.blocks, self.W
        inputs = [x.to(F64)]
        if isinstance(goal, nk.DT):
            alpha_bar = goal.schedule.alpha_bar[t - 1 : t]
            signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            snr = goal.schedule.snr
            weight = 0.5 * goal.T * goal.eta * (snr[t] - snr[t - 1])
        else:
            times, signal, noise, weight = self.timed()
        eps = self.eps(blocks, t - 1)
        z = signal[:, None] * W[y] + noise[:, None] * eps
        if goal.sigma:
            z = z + goal.sigma * self.eps(blocks, t - 1, philox.STREAM_EPS_1)
        inputs.append(z)
        if goal.timed:
            inputs.append(nk.embed_time(times, 6).to(F64))
        logits = self.modules[t - 1](*inputs)
        u_hat = (logits if goal.flow else logits.softmax(-1)) @ W
        target = (W.detach() if coupled.shared.detach_target else W)[y] - goal.flow * eps
        loss = (weight * (u_hat - target).square().sum(-1)).mean()
        if goal.flow and coupled.head is not None:
            end = z + noise[:, None] * u_hat
            self.terms["anchor"] = functional.cross_entropy(self.read(end), y)
        return loss

    def run(self, x: Tensor) -> None:
        """Sets the terms: block losses by t, the head's, the prior, FM's anchor."""
        coupled, y, W = self.coupled, self.y, self.W
        goal = coupled.blocks.goal
        for t in range(1, goal.T + 1) if self.t is None else (self.t,):
            self.terms[f"block {t}"] = self.block_loss(x, t)
        if goal.flow:
            return
        if isinstance(goal, nk.DT):
            first, last = goal.schedule.alpha_bar[[0, -1]]
        else:
            first, last = torch.sigmoid(-self.gamma(torch.tensor([0.0, 1.0], dtype=F64)))
        z = last.sqrt() * W[y]
        z = z + (1 - last).sqrt() * self.eps(coupled.head, (self.t or 1) - 1, philox.STREAM_HEAD)
        self.terms["head"] = functional.cross_entropy(self.read(z), y)
        squared = W[y].square().sum(-1).mean()
        D = W.shape[1]
        self.terms["prior"] = 0.5 * (first * squared - D * first - D * torch.log(1 - first))

    def gradients(self, x: Tensor, count: int) -> dict[str, Tensor]:
        """Of each part's whole loss; what is shared takes the mean over `count` blocks."""
        self.run(x)
        blocks = sum(value for name, value in self.terms.items() if name.startswith("block"))
        rest = sum(value for name, value in self.terms.items() if not name.startswith("block"))
        names = [*self.leaves]
        options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        of_blocks = torch.autograd.grad(blocks, self.leaves.values(), **options)
        of_rest = [torch.zeros_like(value) for value in of_blocks]
        if isinstance(rest, Tensor):
            of_rest = torch.autograd.grad(rest, self.leaves.values(), **options)
        parts = zip(names, of_blocks, of_rest, strict=True)
        return {name: (a / count if name.startswith("shared") else a) + b for name, a, b in parts}


def gradients_of(coupled: nk.Coupled, before: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of the last step, from the moments, by the names of Graph."""
    found = {}
    for name, value in coupled.state_dict().items():
        if not name.endswith("_m"):
            continue
        grad = value - SGD.momentum * before[name]
        param = coupled.get_parameter(name.removesuffix("_m")).detach()
        torch.testing.assert_close(param, before[name.removesuffix("_m")] - SGD.lr * value)
        part, _, rest = name.removesuffix("_m").partition(".")
        if part == "blocks":
            found |= {f"blocks.{i}.{rest}": each for i, each in enumerate(grad)}
        else:
            found[f"{part}.{rest}"] = grad[0]
    return found


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Equal up to float32, in units of the part's largest entry."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        part = name.rpartition(".")[0]
        largest = max(float(v.abs().max()) for k, v in want.items() if k.startswith(part))
        error = (got[name].double() - value).abs().max()
        assert error <= 2e-5 * largest, f"{name}: {error:.2e} of {largest:.2e}"


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
            monkeypatch.setattr(cpu, "threads", lambda: 2)
            coupled.step(x, y)
            monkeypatch.setattr(cpu, "threads", lambda: threads)
            other.step(x, y)
    assert_same(snapshot(other), snapshot(coupled))


def test_a_graph_sees_that_a_step_has_moved_what_is_shared(backend) -> None:
    coupled = make("ct")
    for name in ("gamma.w1", "W_embed"):
        before = coupled.shared.get_parameter(name).square().sum()
        coupled.step(*batch())
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            before.backward()


def test_the_order_paper_needs_its_t_and_the_others_have_none() -> None:
    x, y = batch()
    for goal, order, t, text in (
        ("dt", "paper", None, 't must be given in the order "paper"'),
        ("dt", "paper", 4, "t must be"),
        ("dt", "all-t", 1, "t must be None with order 'all-t'"),
        ("dt", "sampled", 1, "t must be None with order 'sampled'"),
        ("ct", "paper", 2, "t must be None with one block"),
    ):
        coupled = make(goal, order)
        before = snapshot(coupled)
        with pytest.raises(ValueError, match=text):
            coupled.step(x, y, t)
        assert_same(snapshot(coupled), before)


def refused_step(change: str) -> None:
    coupled, (x, y) = make("fm"), batch()
    if change == "optimizer":
        plain = nk.Shared(GOALS["fm"], nk.LearnedEmbedding(M, WIDTH), optimizer=None)
        blocks = nk.DenoisingBlocks(make_plan(True), GOALS["fm"], shared=plain)
        coupled = nk.Coupled(blocks, nk.OutputHead(WIDTH, M, goal=GOALS["fm"], shared=plain), plain)
    before = snapshot(coupled)
    try:
        if change == "eval":
            coupled.eval()
        if change == "lr":
            coupled.step(x, y, lr=torch.ones(1))
        elif change == "negative":
            coupled.step(x, y, lr=-1.0)
        elif change == "y":
            coupled.step(x, y[:3])
        elif change == "labels":
            coupled.step(x, y + M)
        elif change == "graph":
            coupled.step(x.clone().requires_grad_(), y)
        else:
            coupled.step(x, y)
    finally:
        assert_same(snapshot(coupled), before)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("optimizer", "optimizer must not be None"),
        ("eval", "mode must be that of train"),
        ("lr", "lr must be a number or None"),
        ("negative", "lr must be finite and at least 0"),
        ("y", "y must have shape"),
        ("labels", "labels must be in 0..4"),
        ("graph", "inputs must not require a gradient"),
    ],
)
def test_what_does_not_fit_moves_nothing(change: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        refused_step(change)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    dt, ct, fm = make("dt"), make("ct"), make("fm")
    fixed = make("fm", embedding=None)
    own = nk.DenoisingBlocks(make_plan(False, M), GOALS["dt"])
    held = nk.DenoisingBlocks(make_plan(False), GOALS["dt"], shared=dt.shared, held=[1])
    two = make("dt", embedding=None, seed=[1, 2])
    for make_it, text in (
        (lambda: nk.Coupled(dt.head, dt.head, dt.shared), "blocks must be DenoisingBlocks"),
        (lambda: nk.Coupled(dt.blocks, dt.blocks, dt.shared), "head must be an OutputHead or None"),
        (lambda: nk.Coupled(dt.blocks, dt.head, None), "shared must be a Shared"),
        (lambda: nk.Coupled(dt.blocks, dt.head, ct.shared), "blocks must be made with this shared"),
        (lambda: nk.Coupled(dt.blocks, make("dt").head, dt.shared), "head must be made with this"),
        (lambda: nk.Coupled(own, dt.head, dt.shared), "this shared=, got none"),
        (lambda: nk.Coupled(dt.blocks, None, dt.shared), "head must be an OutputHead under this"),
        (lambda: nk.Coupled(fm.blocks, None, fm.shared), "head must be an OutputHead under this"),
        (lambda: nk.Coupled(held, dt.head, dt.shared), "blocks must hold all of the 3 blocks"),
        (lambda: nk.Coupled(dt.blocks, dt.head, dt.shared, order="any"), "order must be one of"),
        (lambda: nk.Coupled(two.blocks, two.head, two.shared, order="sampled"), "with 2 replicas"),
        (
            lambda: nk.OutputHead(M, M, goal=GOALS["fm"], shared=fixed.shared),
            "goal must not be an FM",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            make_it()


def test_calls_that_would_leave_what_is_shared_behind_are_refused() -> None:
    X, Y = batch()
    rows = torch.arange(B)[None]
    for goal in ("dt", "ct"):
        coupled = make(goal)
        with pytest.raises(ValueError, match="shared must learn nothing.*take Coupled.step"):
            coupled.blocks.train_steps(X, Y, rows)
        with pytest.raises(ValueError, match="shared must learn nothing.*take Coupled.step"):
            coupled.head.train_steps(Y, rows, 1)
    fixed = make("dt", embedding=None)
    assert fixed.blocks.train_steps(X, Y, rows).shape == (1, 3)
    head = make("fm").head
    for call in (lambda: head.train_step(Y, 1), lambda: head.train_steps(Y, rows, 1)):
        with pytest.raises(ValueError, match="goal must not be an FM"):
            call()
