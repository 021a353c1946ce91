"""OutputHead: a learner of its own, on z_T of the labels alone."""

import copy
import io
import math
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.philox import STREAM_HEAD, normal
from support.blocks import (
    GOAL,
    B,
    D,
    F,
    M,
    T,
    assert_close,
    assert_same,
    batch,
    indices,
    make,
    snapshot,
)

W = torch.randn(M, 3, generator=torch.Generator().manual_seed(7))


def make_head(**options) -> nk.OutputHead:
    return nk.OutputHead(3, M, goal=GOAL, embedding=W, **options)


def radial_probs(logits: torch.Tensor, W_embed: torch.Tensor, sigma: float) -> torch.Tensor:
    """log softmax(r), r_m = -|softmax(logits) @ W_embed - u_m|^2 / (2 sigma^2)."""
    u_tilde = logits.softmax(-1) @ W_embed
    r = -(u_tilde[..., None, :] - W_embed).square().sum(-1) / (2 * sigma**2)
    return r.log_softmax(-1)


def skip_without_radial(backend: str) -> None:
    if backend not in dispatch.HEADS["radial"]:
        pytest.skip(f"{backend} has no radial head")


def z_T(y: torch.Tensor, seed: int, t: int, draw: int, W_embed: torch.Tensor = W) -> torch.Tensor:
    """sqrt(alpha_bar_T) u_y + sqrt(1 - alpha_bar_T) eps at the head's address."""
    D = W_embed.shape[1]
    eps = normal(torch.tensor([seed]), STREAM_HEAD, 0, draw, t - 1, len(y), D)[0]
    alpha_bar = GOAL.schedule.alpha_bar[-1]
    return (alpha_bar.sqrt() * W_embed[y] + (1 - alpha_bar).sqrt() * eps).float()


def check_steps(head: nk.OutputHead, ts: list[int], error_of: Callable[..., Tensor]) -> None:
    """Trains as torch's AdamW does on the mean of error_of(twin, y, t, draw), the rows' errors."""
    twin = torch.nn.Linear(head.D, M)
    with torch.no_grad():
        twin.weight.copy_(head.logits.weight[0])
        twin.bias.copy_(head.logits.bias[0])
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=1e-3)
    for draw, t in enumerate(ts):
        y = batch(seed=draw)[1]
        step = head.train_step(y, t)
        optimizer.zero_grad()
        error = error_of(twin, y, t, draw)
        error.mean().backward()
        optimizer.step()
        torch.testing.assert_close(step.error[0], error.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(step.loss[0], error.mean().detach(), rtol=1e-4, atol=1e-5)
        assert step.applied.all()
    torch.testing.assert_close(head.logits.weight[0], twin.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.logits.bias[0], twin.bias, rtol=1e-4, atol=1e-5)
    assert head.draws.tolist() == head.updates.tolist() == [len(ts)]


def test_steps_are_torchs_cross_entropy_and_adamw(backend):
    def error_of(twin, y, t, draw):
        return functional.cross_entropy(twin(z_T(y, 5, t, draw)), y, reduction="none")

    check_steps(make_head(seed=5), [1, 1, 3, 2], error_of)


@pytest.mark.parametrize("one_hot", [False, True])
def test_radial_steps_are_those_of_its_equations_and_adamw(backend, one_hot):
    skip_without_radial(backend)
    if one_hot:
        head, W_embed = nk.OutputHead(M, M, goal=GOAL, kind="radial", seed=5), torch.eye(M)
    else:
        head, W_embed = make_head(kind="radial", sigma=0.6, seed=5), W

    def error_of(twin, y, t, draw):
        log_probs = radial_probs(twin(z_T(y, 5, t, draw, W_embed)), W_embed, head.sigma)
        return -log_probs[torch.arange(B), y]

    check_steps(head, [1, 3, 2], error_of)


def test_a_radial_loss_falls(backend):
    skip_without_radial(backend)
    Y = torch.arange(M).repeat(10)
    options = {"goal": GOAL, "kind": "radial", "optimizer": nk.SGD(lr=1.0)}
    near, far = (nk.OutputHead(M, M, sigma=sigma, **options) for sigma in (0.4, 1.0))
    for head in (near, far):
        losses = head.train_steps(Y, indices(200, 25, rows=50), 1)[:, 0]
        assert losses[-20:].mean() < 0.9 * losses[0] and losses.isfinite().all()
        assert (head.log_probs(torch.eye(M))[0].argmax(-1) == torch.arange(M)).all()
    assert near.log_probs(torch.eye(M)).amax().exp() > 0.8


@pytest.mark.parametrize("kind", ["softmax", "radial"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_log_probs(backend, kind, one_hot):
    if one_hot:
        head = nk.OutputHead(M, M, goal=GOAL, kind=kind, sigma=0.6, seed=[1, 2])
    else:
        head = make_head(kind=kind, sigma=0.6, seed=[1, 2])
    z = torch.randn(B, head.D, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = head.log_probs(z)
    logits, W_embed = head(z), torch.eye(M) if one_hot else W
    want = logits.log_softmax(-1) if kind == "softmax" else radial_probs(logits, W_embed, 0.6)
    assert got.shape == (2, B, M) and head.log_probs(z[:0]).shape == (2, 0, M)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (d_got,) = torch.autograd.grad(got[..., 1].sum(), z)
    (d_want,) = torch.autograd.grad(want[..., 1].sum(), z)
    torch.testing.assert_close(d_got, d_want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"z must have shape .any, {head.D}., got"):
        head.log_probs(torch.zeros(B, 9))


def test_a_radial_probability_of_one_hot_embeddings_is_bounded():
    head = nk.OutputHead(10, 10, goal=GOAL, kind="radial")
    with torch.no_grad():
        head.logits.weight.copy_(1000 * torch.eye(10))
    probs = head.log_probs(torch.eye(10)).exp()
    bound = 1 / (1 + 9 / math.e)
    torch.testing.assert_close(probs.amax(-1), torch.full((1, 10), bound))
    assert round(bound, 2) == 0.23


def test_a_radial_head_is_copied_pickled_and_told(backend):
    head = make_head(kind="radial", sigma=0.5)
    z = torch.ones(2, 3)
    for same in (copy.deepcopy(head), pickle.loads(pickle.dumps(head)), reloaded(head)):
        assert (same.kind, same.sigma) == ("radial", 0.5)
        assert torch.equal(same.log_probs(z), head.log_probs(z))
    assert "kind='radial', sigma=0.5, M=5, D=3" in repr(head)
    assert "kind='softmax', M=5" in repr(make_head()) and "sigma" not in repr(make_head())
    for name in ("kind", "sigma"):
        with pytest.raises(ValueError, match=f"OutputHead: {name} must stay"):
            setattr(head, name, getattr(head, name))


def reloaded(head: nk.OutputHead) -> nk.OutputHead:
    file = io.BytesIO()
    torch.save(head, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_gpu_backends_refuse_a_radial_head_by_name(name):
    text = f"{name}: has no kernels for the radial head, which cpu and reference have"
    head = make_head(kind="radial", backend=name)
    before = snapshot(head)
    with pytest.raises(nk.BackendError, match=text):
        head.train_step(torch.tensor([0]), 1)
    assert_same(snapshot(head), before)
    assert f"  {text}\n" in nk.explain(head) + "\n"
    assert "radial" not in nk.explain(make_head(backend=name))


def test_many_steps_are_single_steps(backend):
    Y = batch(20)[1]
    rows, t = indices(3, B), torch.tensor([2, 1, 3])
    many, one, gathered = make_head(), make_head(), make_head()
    losses = many.train_steps(Y, rows, t)
    assert losses.shape == (3, 1)
    singles = [one.train_step(Y[i], int(t[k])).loss for k, i in enumerate(rows)]
    assert torch.equal(losses, torch.stack(singles))
    assert torch.equal(gathered.train_steps(Y[rows], None, t), losses)
    assert_same(snapshot(many), snapshot(one))
    same_t, repeated = make_head(), make_head()
    same = same_t.train_steps(Y, rows, 2)
    assert torch.equal(same, repeated.train_steps(Y, rows, torch.full((3,), 2)))
    assert not torch.equal(same[1:], losses[1:])
    assert many.train_steps(Y, indices(0, B), 1).shape == (0, 1)


def test_a_replica_equals_training_alone_and_resumes(backend):
    Y = batch(20)[1]
    rows = indices(4, 2, B)
    both = make_head(seed=[1, 2])
    losses = both.train_steps(Y, rows, 1)
    for r in range(2):
        alone, resumed = make_head(seed=r + 1), make_head(seed=r + 1)
        alone.train_steps(Y, rows[:2, r], 1)
        resumed.load_state_dict(copy.deepcopy(alone.state_dict()))
        tail = resumed.train_steps(Y, rows[2:, r], 1)
        assert torch.equal(tail[:, 0], losses[2:, r])
        for name, value in both.state_dict().items():
            if name != "W_embed":
                assert torch.equal(resumed.state_dict()[name][0], value[r]), name


def test_its_noise_is_not_the_blocks(backend):
    y = batch()[1]
    blocks = make(plan="mlp", seed=0)
    head = nk.OutputHead(M, M, goal=GOAL, seed=0, optimizer=nk.SGD(lr=0.0))
    assert head.D == D == M
    error = head.train_step(y, 1).error[0]
    with_blocks_eps = functional.cross_entropy(head(blocks.add_noise(y, blocks=1)[0])[0], y)
    assert (error.mean() - with_blocks_eps).abs() > 1e-3
    # both are uniform numbers over the root of the layer's width, here of two addresses
    ours, theirs = head.logits.weight[0, 0, :4] * D**0.5, blocks.hx.weight[0, 0, :4] * F**0.5
    assert (ours - theirs).abs().max() > 1e-3


def test_forward_is_linear_and_differentiable(backend):
    head = make_head(seed=[1, 2])
    z = torch.randn(B, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = head(z)
    want = z @ head.logits.weight.mT + head.logits.bias[:, None]
    assert_close(logits, want)
    logits.square().sum().backward()
    got = z.grad.clone(), head.logits.weight.grad.clone()
    z.grad = head.logits.weight.grad = None
    want.square().sum().backward()
    assert_close(got[0], z.grad)
    assert_close(got[1], head.logits.weight.grad)
    own = torch.stack([z.detach(), -z.detach()])
    assert torch.equal(head(own)[0], logits[0]) and head(z[:0]).shape == (2, 0, M)


def test_it_learns_the_label(backend):
    Y = torch.arange(M).repeat(10)
    head = nk.OutputHead(M, M, goal=GOAL, optimizer=nk.SGD(lr=1.0))
    head.train_steps(Y, indices(200, 25, rows=50), 1)
    assert (head(torch.eye(M))[0].argmax(-1) == torch.arange(M)).all()


@pytest.mark.parametrize(
    "call, text",
    [
        (
            lambda h: h.train_step(torch.zeros(0, dtype=torch.int64), 1),
            "y must have at least 1 row",
        ),
        (
            lambda h: h.train_step(torch.tensor([M]), 1),
            r"train_step: labels must be in 0\.\.4, got 5 at row 0",
        ),
        (lambda h: h.train_step(torch.tensor([0]), 0), r"t must be in 1..3, got \[0\]"),
        (lambda h: h.train_step(torch.tensor([0]), T + 1), r"t must be in 1..3, got \[4\]"),
        (lambda h: h.train_step(torch.tensor([0]), 1.0), r"t must be an int or a tensor \(1,\)"),
        (
            lambda h: h.train_steps(
                torch.zeros(9).long(), indices(2, 3, rows=9), torch.ones(3).long()
            ),
            r"t must have shape \(2,\), got \(3,\)",
        ),
        (lambda h: h(torch.zeros(B, 4)), r"z must have shape \(any, 3\), got \(6, 4\)"),
    ],
)
def test_bad_arguments(call, text):
    head = make_head()
    before = snapshot(head)
    with pytest.raises(ValueError, match=text):
        call(head)
    assert_same(snapshot(head), before)


def test_construction():
    for arguments, text in [
        ({"D": 3, "M": 5}, "D must be M = 5 without an embedding, got 3"),
        ({"D": 4, "M": 5, "embedding": W}, r"embedding must have shape \(5, 4\), got \(5, 3\)"),
        ({"D": 0, "M": 5}, "D must be an integer of at least 1, got 0"),
        ({"D": 5, "M": 5, "kind": "x"}, r"kind must be one of \('softmax', 'radial'\), got 'x'"),
        ({"D": 5, "M": 5, "kind": ["radial"]}, "kind must be one of .*, got .'radial'."),
        ({"D": 5, "M": 5, "sigma": 0}, "sigma must be above 0, got 0"),
        ({"D": 5, "M": 5, "kind": "radial", "sigma": math.nan}, "sigma must be above 0, got nan"),
        ({"D": 5, "M": 5, "kind": "radial", "sigma": "a"}, "sigma must be above 0, got 'a'"),
    ]:
        with pytest.raises(ValueError, match=f"OutputHead: {text}"):
            nk.OutputHead(**arguments, goal=GOAL)
    with pytest.raises(ValueError, match="train_step: optimizer must not be None"):
        make_head(optimizer=None).train_step(torch.tensor([0]), 1)
