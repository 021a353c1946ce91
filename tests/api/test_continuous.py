"""DenoisingBlocks under CT and FM: one block, a t drawn for every row, samplers."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close as close

import noprop_kernels as nk
from noprop_kernels import philox
from noprop_kernels.backends import dispatch
from noprop_kernels.stack import engine
from support.blocks import (
    GOAL,
    B,
    D,
    F,
    M,
    assert_close,
    assert_same,
    batch,
    data,
    indices,
    snapshot,
)
from support.blocks import make as make_dt

PLAN = nk.plans.mlp(F, D, M, hidden=6, time=True)
GOALS = {
    "ct": nk.CT(),
    "ct uniform, stratified": nk.CT(weight="uniform", stratified=True),
    "fm": nk.FM(),
    "fm sigma": nk.FM(sigma=0.2),
}
EMBEDDING = torch.randn(M, D, generator=torch.Generator().manual_seed(5))
SGD = nk.SGD(lr=0.1, momentum=0.9)


def make(goal: str = "ct", **options) -> nk.DenoisingBlocks:
    return nk.DenoisingBlocks(PLAN, GOALS[goal], **({"optimizer": SGD} | options))


def error_of(blocks: nk.DenoisingBlocks, logits: Tensor, y: Tensor) -> Tensor:
    """The rows' squared errors by the equations."""
    goal, W = blocks.goal, blocks.W_embed
    u_y = functional.one_hot(y, M).float() if W is None else W[y]
    coefficients = logits if isinstance(goal, nk.FM) else logits.softmax(-1)
    u_hat = coefficients if W is None else coefficients @ W
    target = u_y
    if isinstance(goal, nk.FM):
        address = (blocks.seeds, philox.STREAM_EPS, 0, blocks.draws, 0)
        target = u_y - philox.normal(*address, len(y), D)[0]
    return (u_hat - target).square().sum(-1)


@pytest.mark.parametrize("embedding", [None, EMBEDDING], ids=["one-hot", "embedding"])
@pytest.mark.parametrize("goal", GOALS)
def test_a_step_is_the_paper_s(backend, goal: str, embedding: Tensor | None) -> None:
    """Eqs. 9 and 12 on the z and t that the block draws."""
    blocks, twin = (make(goal, embedding=embedding) for _ in range(2))
    x, y = batch()
    t, z = twin.times(B)[0], twin.add_noise(y)[0]
    levels = twin.goal.levels(t)
    block = twin.block(1)
    error = error_of(twin, block(x, z, nk.embed_time(t, 64)), y)
    step = blocks.train_step(x, y)
    close(step.error[0], error.detach(), rtol=1e-4, atol=1e-5)
    close(step.loss[0], (levels.weight * error.detach()).mean(), rtol=1e-4, atol=1e-5)
    assert step.applied.all() and blocks.draws.tolist() == [1]
    (levels.weight * error).mean().backward()
    for name, param in block.named_parameters():
        assert_close(blocks.get_parameter(name)[0], param.detach() - 0.1 * param.grad, name)


@pytest.mark.parametrize("goal", GOALS)
def test_loss_has_the_step_s_gradient(backend, goal: str) -> None:
    blocks = make(goal, embedding=EMBEDDING)
    x, y = batch()
    loss = blocks.loss(x, y)
    loss.sum().backward()
    grads = blocks.gradients(x, y)
    close(loss.detach(), grads.loss)
    for name, param in blocks.named_parameters():
        assert_close(param.grad, grads.by_name[name], name)


def test_z_is_drawn_at_its_t(backend) -> None:
    """z = signal u_y + noise eps, row by row, of the paper's levels."""
    for goal, sigma in (("ct", 0), ("fm", 0), ("fm sigma", 0.2)):
        blocks = make(goal)
        y = batch()[1]
        address = (blocks.seeds, philox.STREAM_EPS, 0, blocks.draws, 0, B, D)
        eps = philox.normal(*address)[0]
        other = philox.normal(blocks.seeds, philox.STREAM_EPS_1, *address[2:])[0]
        t = blocks.times(B)[0]
        levels = blocks.goal.levels(t)
        u_y = functional.one_hot(y, M)
        want = levels.signal[:, None] * u_y + levels.noise[:, None] * eps + sigma * other
        close(blocks.add_noise(y)[0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("goal", GOALS)
def test_steps_in_one_call_are_steps_one_by_one(backend, goal: str) -> None:
    X, Y = data()
    rows = indices(4, B)
    one, many = make(goal, seed=[3, 4]), make(goal, seed=[3, 4])
    losses = torch.stack([one.train_step(X[i], Y[i]).loss for i in rows])
    assert torch.equal(many.train_steps(X, Y, rows), losses)
    assert_same(snapshot(many), snapshot(one))


def test_a_replica_trains_as_alone(backend) -> None:
    X, Y = data()
    rows = indices(3, B)
    together, alone = make(seed=[3, 4]), make(seed=4)
    losses = together.train_steps(X, Y, rows)
    assert torch.equal(alone.train_steps(X, Y, rows), losses[:, 1:])
    for name, value in snapshot(alone).items():
        assert torch.equal(snapshot(together)[name][1:], value), name
    assert not torch.equal(together.times(B)[0], together.times(B)[1])


@pytest.mark.parametrize("goal", ["ct uniform, stratified", "fm"])
def test_parts_of_a_batch_add(backend, goal: str) -> None:
    blocks = make(goal)
    x, y = batch()
    whole = blocks.gradients(x, y)
    parts = [
        blocks.gradients(x[part], y[part], first_row=part.start, rows=B)
        for part in (slice(0, 2), slice(2, B))
    ]
    both = parts[0] + parts[1]
    assert torch.equal(both.error, whole.error)
    for name, grad in whole.by_name.items():
        assert_close(both.by_name[name], grad, name)
    t = blocks.times(B)
    assert torch.equal(blocks.times(4, first_row=2, rows=B), t[:, 2:])
    z = blocks.add_noise(y)
    assert torch.equal(blocks.add_noise(y[2:], first_row=2, rows=B), z[:, 2:])


@pytest.mark.parametrize("goal", ["ct", "ct uniform, stratified"])
def test_t_are_the_reference_s(backend, goal: str) -> None:
    """The same numbers by whoever draws them, and the same embedding but for roundings."""
    seeds = [7, -(2**62)]
    t = make(goal, seed=seeds).times(1001, first_row=3, rows=2000)
    with nk.use_backend("reference"):
        want = make(goal, seed=seeds).times(1001, first_row=3, rows=2000)
    assert torch.equal(t, want)
    assert torch.equal(make(goal, seed=seeds).times(1, first_row=9, rows=2000), t[:, 6:7])
    rows = torch.cat([t.flatten(), torch.tensor([0.0, 1.0])])
    for width in (2, 10, 64):
        plan = nk.Plan(
            {"x": (F,), "z": (D,), "t": (width,)}, {"logits": nk.Dense(("x", "z", "t"), M)}
        )
        made = engine.time_input(nk.DenoisingBlocks(plan, GOALS[goal]), rows)
        close(made, nk.embed_time(rows, width), rtol=0, atol=6e-8)


def test_t_are_uniform_and_strata_hold_one_each() -> None:
    blocks = make()
    t = blocks.times(20_000)[0]
    assert t.dtype == torch.float64 and t.min() >= 0 and t.max() < 1
    assert abs(t.mean() - 0.5) < 5 * (1 / 12 / 20_000) ** 0.5
    assert abs(t.var() - 1 / 12) < 0.003
    strata = make("ct uniform, stratified").times(50)[0] * 50
    assert torch.equal(strata.floor(), torch.arange(50).double())
    before = make().times(B)
    blocks.advance()
    assert not torch.equal(blocks.times(B), before)


# what callers give


def test_forward_takes_t_and_d_x_comes_back_as_x(backend) -> None:
    blocks = make(embedding=EMBEDDING)
    x, y = batch()
    z, t = torch.randn(B, D), torch.rand(B)
    logits = blocks.forward(x.requires_grad_(), z, t=t)
    want = blocks.block(1)(x.detach(), z, nk.embed_time(t.double(), 64))
    close(logits[0], want, rtol=1e-4, atol=1e-5)
    assert torch.equal(blocks.forward(x, z, t=t.double()[None]), logits)
    logits.sum().backward()
    assert x.grad.shape == (B, F)
    step = blocks.train_step(x.detach(), y, input_grad=True, levels_grad=True)
    assert step.d_x.shape == (1, B, F) and step.d_signal.shape == step.d_noise.shape == (1, B)
    assert step.d_W_embed.shape == (1, M, D)


def test_an_update_under_a_loss_of_one_s_own(backend) -> None:
    blocks = make()
    x, y = batch()
    t, z = blocks.times(B), blocks.add_noise(y)
    logits = blocks.forward(x, z, t=t)
    update = blocks.backward_update(logits, torch.randn(1, B, M))
    assert update.applied.all() and blocks.draws.tolist() == blocks.updates.tolist() == [1]


def test_the_output_head_reads_z_1(backend) -> None:
    head = nk.OutputHead(D, M, goal=nk.CT(), embedding=EMBEDDING, optimizer=SGD)
    y = batch()[1]
    twin = nk.OutputHead(D, M, goal=nk.CT(), embedding=EMBEDDING, optimizer=SGD)
    last = nk.CT().last()
    eps = philox.normal(twin.seeds, philox.STREAM_HEAD, 0, twin.draws, 0, B, D)[0]
    logits = twin.forward(last.signal * EMBEDDING[y] + last.noise * eps)[0]
    close(head.train_step(y, 1).loss[0], functional.cross_entropy(logits, y).detach())
    with pytest.raises(ValueError, match="goal must not be an FM, whose classes are read by the"):
        nk.OutputHead(M, M, goal=nk.FM())


# samplers


def trained(goal: str, **options) -> nk.DenoisingBlocks:
    blocks = make(goal, **options)
    for _ in range(3):
        blocks.train_step(*batch())
    return blocks


def walked(blocks: nk.DenoisingBlocks, x: Tensor, sampler: str, steps: int, z: Tensor) -> Tensor:
    """The last z by the block's own modules, in float64, without noise."""
    table, block = blocks.goal.table(sampler, steps), blocks.to_modules()[0].double().eval()
    base, total = z.double(), 0
    z = base
    for e in range(len(table.t)):
        t = nk.embed_time(table.t[e].expand(len(x)), 64).double()
        logits = block(x.double(), z, t)
        coefficients = logits if blocks.goal.head == "linear" else logits.softmax(-1)
        k = table.a[e] * (coefficients @ blocks.W_embed.double()) + table.b[e] * z
        total = total + table.weight[e] * k
        if table.ends[e]:
            z = base = table.keep[e] * base + total
            total = 0
        else:
            z = base + table.next[e] * k
    return z.detach()


@pytest.mark.parametrize(
    "goal, sampler",
    [
        (goal, sampler)
        for goal in ("ct", "fm")
        for sampler in GOALS[goal].samplers
        if sampler != "ancestral"
    ],
)
def test_predict_is_the_sampler(backend, goal: str, sampler: str) -> None:
    skip_without_samplers(backend)
    blocks = trained(goal, embedding=EMBEDDING)
    x = batch()[0]
    p = blocks.predict(x, noise=False, sampler=sampler, steps=6, keep=3)
    assert p.z.shape == (3, 1, 1, B, D) and p.logits.shape == (3, 1, 1, B, M)
    close(
        p.z[-1, 0, 0].double(),
        walked(blocks, x, sampler, 6, torch.zeros(B, D)),
        rtol=1e-4,
        atol=1e-5,
    )
    every = blocks.predict(x, noise=False, sampler=sampler, steps=6, keep="all")
    assert torch.equal(every.z[1::2], p.z) and torch.equal(every.u_hat[1::2], p.u_hat)
    noisy = blocks.predict(x, sampler=sampler, steps=6, samples=2, seed=7)
    seeds = torch.tensor([7])
    for sample in range(2):
        z_0 = philox.normal(seeds, philox.STREAM_INFERENCE, 0, sample, philox.BLOCK_Z_0, B, D)[0]
        close(noisy.z[sample, 0].double(), walked(blocks, x, sampler, 6, z_0), rtol=1e-4, atol=1e-5)


def test_the_ancestral_chain_draws_its_noise_by_the_step(backend) -> None:
    skip_without_samplers(backend)
    blocks = trained("ct", embedding=EMBEDDING)
    x = batch()[0]
    p = blocks.predict(x, steps=4, keep="all", seed=7)
    table = blocks.goal.table("ancestral", 4)
    for i in range(1, 4):
        address = (torch.tensor([7]), philox.STREAM_INFERENCE, 0, 0, i, B, D)
        mean = table.a[i] * p.u_hat[i, 0, 0] + table.b[i] * p.z[i - 1, 0, 0]
        close(
            p.z[i, 0, 0],
            mean + table.sqrt_c[i] * philox.normal(*address)[0],
            rtol=0,
            atol=1e-5,
        )


def test_defaults_and_rows(backend) -> None:
    skip_without_samplers(backend)
    for goal, with_noise, without in (("ct", "ancestral", "ddim"), ("fm", "euler", "euler")):
        blocks = trained(goal, seed=[3, 4])
        x = batch()[0]
        for noise, sampler in ((True, with_noise), (False, without)):
            p = blocks.predict(x, noise=noise, steps=10)
            assert torch.equal(p.z, blocks.predict(x, noise=noise, sampler=sampler, steps=10).z)
            part = blocks.predict(x[2:], noise=noise, steps=10, first_row=2)
            exact = 1e-5 if backend == "reference" else 0  # torch.mm's sums depend on the shape
            close(part.z, p.z[:, :, 2:], rtol=exact, atol=exact)
        before = snapshot(blocks)
        blocks.predict(x, steps=2)
        assert_same(snapshot(blocks), before)


def skip_without_samplers(backend: str) -> None:
    if backend in ("triton", "cuda"):
        pytest.skip(f"{backend} has no samplers")


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_gpu_backends_refuse_samplers_by_name(backend: str, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    text = f"{backend}: has no kernels for the samplers of CT and FM, which cpu and reference have"
    with pytest.raises(nk.BackendError, match=text):
        make(backend=backend).predict(batch()[0], steps=2)


def test_explain_says_who_has_samplers(monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "triton_gap", lambda device: None)
    text = nk.explain(make())
    gap = "has no kernels for the samplers of CT and FM, which cpu and reference have"
    assert f"  triton: could run\n    but for predict: {gap}\n" in text + "\n"
    assert text.count("but for predict") == 1
    assert "but for predict" not in nk.explain(make_dt()) + nk.explain(PLAN)


@pytest.mark.parametrize("noise", [True, False])
def test_predict_in_torch_compile(noise: bool) -> None:
    blocks = trained("ct")
    x = batch()[0]

    @torch.compile(fullgraph=True, backend="eager")
    def compiled(x: Tensor) -> Tensor:
        return blocks.predict(x, noise=noise, steps=3).z

    assert torch.equal(compiled(x), blocks.predict(x, noise=noise, steps=3).z)


X, Z = batch()[0], torch.zeros(B, D)


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda b: b.forward(X, Z), r"t must be a tensor \(6,\) or"),
        (lambda b: b.forward(X, Z, t=torch.ones(3)), "t must have shape"),
        (lambda b: b.forward(X, Z, t=2 * torch.ones(B)), r"t must lie in \[0, 1\], got 2..2"),
        (lambda b: b.loss({"x": X, "t": Z}, batch()[1]), r"x must be tensors by .* \['x'\]"),
        (lambda b: b.times(0), "B must be an integer of at least 1"),
        (lambda b: b.predict(X, keep=3, steps=10), "keep .* a divisor of the 10 steps, got 3"),
        (lambda b: b.predict(X, keep=True, steps=10), "keep must be .*, got True"),
        (lambda b: b.predict(X, noise=False, sampler="ancestral"), "where noise is false"),
        (lambda b: b.predict(X, steps=65536), "steps must be an integer of at most 65535"),
        (lambda b: make_dt().forward(X, Z, t=torch.ones(B)), "t must be None under a DT"),
        (lambda b: make_dt().times(B), "goal must be a CT or FM, which draw t, got DT"),
        (lambda b: make_dt().predict(X, sampler="ddim"), "sampler must be one of"),
        (lambda b: make_dt().predict(X, steps=4), "steps must be the 3 blocks, got 4"),
        (lambda b: nk.DenoisingBlocks(make_dt().plan, nk.CT()), 'plan must have an input "t" of'),
        (lambda b: nk.DenoisingBlocks(PLAN, GOAL.schedule), "goal must be a DT, CT or FM"),
    ],
)
def test_what_does_not_fit_is_refused(call, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call(make())


@pytest.mark.parametrize("goal", [nk.CT(), nk.CT(weight="uniform"), nk.FM()])
@pytest.mark.parametrize("t", [None, [0.5], torch.tensor([1]), torch.tensor([True])])
def test_levels_are_of_floats(goal, t):
    with pytest.raises(ValueError, match="levels: t must be a tensor of floats, got"):
        goal.levels(t)
