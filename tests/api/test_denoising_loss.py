"""nk.DenoisingLoss against torch's operations."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import noprop_kernels as nk
from support.compare import assert_matches

B, M, D = 9, 5, 3


def given(rows=B, classes=M, width=D):
    generator = torch.Generator().manual_seed(1)
    randn = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    y = torch.randint(classes, (rows,), generator=generator)
    weight = torch.rand(rows, generator=generator) + 0.5
    return randn(rows, classes), y, weight, randn(classes, width), randn(rows, width)


def twin(logits, y, weight, W_embed, eps, head, flow):
    """The losses, by torch."""
    if head == "cross_entropy":
        return weight * cross_entropy(logits, y, reduction="none")
    if W_embed is None:
        W_embed = torch.eye(logits.shape[1], dtype=logits.dtype)
    u_hat = (logits if head == "linear" else logits.softmax(-1)) @ W_embed
    return weight * (u_hat - (W_embed[y] - flow * eps)).square().sum(-1)


CASES = {
    "softmax": ("softmax", 0.0, True),
    "one-hot": ("softmax", 0.0, False),
    "linear": ("linear", 0.0, True),
    "flow": ("linear", 1.0, True),
    "flow, one-hot": ("linear", 0.5, False),
    "cross_entropy": ("cross_entropy", 0.0, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows, classes, width", [(B, M, D), (1, 2, 3), (130, 33, 17)])
def test_losses_and_gradients_are_those_of_torch(backend, case, rows, classes, width):
    head, flow, embedded = CASES[case]
    width = width if embedded else classes
    logits, y, weight, W_embed, eps = given(rows, classes, width)

    def differentiated(loss, dtype):
        leaves = [value.to(dtype).requires_grad_() for value in (logits, weight, W_embed)]
        losses = loss(*leaves)
        factor = torch.linspace(-1, 2, rows, dtype=dtype)
        used = leaves if embedded else leaves[:2]
        return losses.detach(), *torch.autograd.grad((losses * factor).sum(), used)

    def by_torch(logits, weight, W_embed):
        return twin(
            logits, y, weight, W_embed if embedded else None, eps.to(logits.dtype), head, flow
        )

    def ours(logits, weight, W_embed):
        module = nk.DenoisingLoss(nn.Parameter(W_embed) if embedded else None, head=head, flow=flow)
        if embedded:
            del module.W_embed
            module.W_embed = W_embed  # the leaf, and not a Parameter of its own
        return module(logits, y, weight, eps=eps if flow else None)

    exact, plain = (differentiated(by_torch, dtype) for dtype in (torch.float64, torch.float32))
    for got, want, torch_s in zip(differentiated(ours, torch.float32), exact, plain, strict=True):
        assert_matches(got, want, torch_s, terms=rows + classes + width)


@pytest.mark.parametrize("head, flow", [("softmax", 0.0), ("linear", 1.0)])
def test_fixed_embeddings_have_the_bits_of_learned_ones(backend, head, flow):
    """And backward may run again."""
    logits, y, _, W_embed, eps = given()
    found = []
    for table in (W_embed, nn.Parameter(W_embed)):
        leaf = logits.clone().requires_grad_()
        losses = nk.DenoisingLoss(table, head=head, flow=flow)(leaf, y, eps=eps if flow else None)
        factor = torch.linspace(-1, 2, B)
        for _ in range(2):
            losses.backward(factor, retain_graph=True)
        found.append((losses.detach(), leaf.grad))
    assert all(map(torch.equal, *found)) and bool(found[0][1].any())


@pytest.mark.parametrize("learned", [True, False])
def test_a_second_derivative_is_refused(backend, learned):
    logits, y, _, W_embed, _ = given()
    loss, leaf = nk.DenoisingLoss(nn.Parameter(W_embed) if learned else W_embed), logits.clone()
    total = loss(leaf.requires_grad_(), y).square().sum()
    (d_logits,) = torch.autograd.grad(total, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        d_logits.sum().backward()


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_what_fits_is_checked_by_the_kernels_alone(backend, monkeypatch):
    def by_name(*_):
        raise AssertionError

    monkeypatch.setattr(nk.functional, "check_errors", by_name)
    logits, y, weight, W_embed, eps = given()
    nk.DenoisingLoss()(logits.requires_grad_(), y, weight)
    nk.DenoisingLoss(W_embed, flow=1.0)(logits, y, eps=eps)
    for other in (logits.double(), logits.T.contiguous().T):
        with pytest.raises(AssertionError):
            nk.DenoisingLoss()(other, y)


def test_weight_is_one_a_number_or_one_per_row(backend):
    logits, y, weight, _, _ = given()
    loss = nk.DenoisingLoss()
    unit = loss(logits, y)
    assert torch.equal(loss(logits, y, 0.25), 0.25 * unit)
    assert torch.equal(loss(logits, y, weight), weight * unit)
    assert unit.shape == (B,)


def test_strided_logits_and_no_rows(backend):
    wide, y, _, W_embed, _ = given(2 * B, 2 * M)
    logits = wide[::2, ::2]
    loss = nk.DenoisingLoss(W_embed[:M])
    assert torch.equal(loss(logits, y[::2] % M), loss(logits.contiguous(), y[::2] % M))
    empty = logits[:0].requires_grad_()
    losses = loss(empty, y[:0])
    losses.sum().backward()
    assert losses.shape == (0,) and empty.grad.shape == (0, M)


def test_not_finite_rows_stay_by_themselves(backend):
    logits, y, _, W_embed, _ = given()
    loss = nk.DenoisingLoss(W_embed)
    clean = loss(logits, y)
    logits[4, 2] = torch.nan
    losses = loss(logits, y)
    assert losses[4].isnan() and torch.equal(
        losses[torch.arange(B) != 4], clean[torch.arange(B) != 4]
    )


def test_embeddings_are_a_buffer_or_learned():
    _, _, _, W_embed, _ = given()
    fixed, learned = nk.DenoisingLoss(W_embed), nk.DenoisingLoss(nn.Parameter(W_embed.clone()))
    assert [*fixed.parameters()] == [] and [*learned.parameters()][0].shape == (M, D)
    for module in (fixed, learned):
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        other = nk.DenoisingLoss(torch.zeros(M, D))
        other.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
        assert torch.equal(other.W_embed, W_embed)
        assert torch.equal(copy.deepcopy(module).W_embed, W_embed)
    assert nk.DenoisingLoss().state_dict() == {}


def test_head_of_the_blocks_own_loss(backend):
    """Blocks trained by DenoisingLoss and backward_update move as by train_step."""
    goal, plan = nk.DT(nk.NoiseSchedule.cosine(3)), nk.plans.mlp(7, M, M, hidden=6)
    step, own = (nk.DenoisingBlocks(plan, goal, held=[2]) for _ in range(2))
    x, y = torch.randn(B, 7, generator=torch.Generator().manual_seed(0)), given()[1]
    weight = goal.levels(own.t).weight[0]
    for _ in range(3):
        step.train_step(x, y)
        logits = own(x, own.add_noise(y))
        leaf = logits.detach()[0].requires_grad_()
        nk.DenoisingLoss()(leaf, y, weight).mean().backward()
        own.backward_update(logits, leaf.grad[None])
    for name, value in step.named_parameters():
        torch.testing.assert_close(own.get_parameter(name), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: nk.DenoisingLoss(head="mse"), "head must be one of"),
        (lambda: nk.DenoisingLoss(torch.ones(3)), "W_embed must have shape"),
        (lambda: nk.DenoisingLoss(torch.ones(4, 3))(*given()[:2]), r"W_embed must have shape \(5,"),
        (lambda: nk.DenoisingLoss(flow=1.0)(*given()[:2]), "eps must be given where flow is not 0"),
        (lambda: nk.DenoisingLoss()(*given()[:2], eps=given()[4]), "eps must be given where flow"),
        (
            lambda: nk.DenoisingLoss(torch.ones(5, 3), head="cross_entropy")(*given()[:2]),
            "W_embed must be None",
        ),
        (lambda: nk.DenoisingLoss()(given()[0][0], given()[1]), r"logits must have shape \(any, "),
        (lambda: nk.DenoisingLoss()(given()[0], given()[1][1:]), r"y must have shape \(9,\)"),
        (lambda: nk.DenoisingLoss()(given()[0], given()[1] + 1), "(labels|y) must"),
        (lambda: nk.DenoisingLoss()(*given()[:2], torch.ones(3)), r"weight must have shape \(9,\)"),
    ],
)
def test_wrong_arguments_are_refused(backend, make, text):
    with pytest.raises(ValueError, match=text):
        make()
