"""nk.functional: each function against the blocks, the modules or torch."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import gelu, linear, one_hot

import noprop_kernels as nk
from noprop_kernels import functional as F
from noprop_kernels.philox import STREAM_EPS_1, normal
from noprop_kernels.plan import ACTIVATION_NAMES

B, M, D = 9, 5, 3
GOAL = nk.DT(nk.NoiseSchedule.cosine(T=3))


def rows(*shape, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_(grad)


def labels():
    return torch.randint(M, (B,), generator=torch.Generator().manual_seed(1))


def close(got, want, **options):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-6, **options)


# add_noise


@pytest.mark.parametrize("embedded", [True, False])
def test_noise_is_that_of_blocks_at_the_same_address(backend, embedded):
    W_embed = rows(M, D) if embedded else None
    plan = nk.plans.mlp(7, D if embedded else M, M, hidden=4)
    blocks = nk.DenoisingBlocks(plan, GOAL, embedding=W_embed, seed=[-3, 8])
    blocks.advance()
    numbers = GOAL.levels(torch.tensor(3))
    z, eps = F.add_noise(
        labels(),
        numbers.signal.item(),
        numbers.noise.item(),
        seed=8,
        draw=1,
        block=2,
        first_row=4,
        W_embed=W_embed,
        num_classes=M,
    )
    assert torch.equal(z, blocks.add_noise(labels(), blocks=3, first_row=4)[1])
    want = normal(torch.tensor([8]), 0, 0, 1, 2, B, z.shape[1], first_row=4)[0]
    torch.testing.assert_close(eps, want, rtol=0, atol=2e-6)


def test_noise_and_its_gradients_are_the_formula(backend):
    y, W_embed = labels(), rows(M, D, grad=True)
    signal, noise = torch.rand(B).requires_grad_(), torch.rand(B).requires_grad_()
    z, eps = F.add_noise(y, signal, noise, seed=5, W_embed=W_embed, sigma=0.3)
    eps_1 = normal(torch.tensor([5]), STREAM_EPS_1, 0, 0, 0, B, D)[0]
    twin = signal[:, None] * W_embed[y] + noise[:, None] * eps + 0.3 * eps_1
    close(z, twin)
    assert not eps.requires_grad
    leaves, d_z = (signal, noise, W_embed), rows(B, D, seed=2)
    for got, want in zip(
        torch.autograd.grad(z, leaves, d_z), torch.autograd.grad(twin, leaves, d_z), strict=True
    ):
        close(got, want)


def test_one_hot_noise_of_a_learned_number(backend):
    signal = torch.tensor(0.7, requires_grad=True)
    z, eps = F.add_noise(labels(), signal, 0.2, seed=0, num_classes=M)
    close(z, 0.7 * one_hot(labels(), M) + 0.2 * eps)
    z.square().sum().backward()
    close(signal.grad, (2 * z * one_hot(labels(), M)).sum())
    z, eps = F.add_noise(labels()[:0], 1.0, 0.0, seed=0, num_classes=M)
    assert z.shape == eps.shape == (0, M)


# dense


@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(9, 7), (2, 3, 7), (7,), (1, 1), (0, 7), (129, 33)])
def test_dense_and_its_gradients_are_torch_s(backend, shape, bias, activation):
    x, w = rows(*shape, grad=True), rows(5, shape[-1], seed=1, grad=True)
    b = rows(5, seed=2, grad=True) if bias else None
    y = F.dense(x, w, b, activation=activation)
    twin = linear(x, w, b)
    twin = {None: lambda y: y, "relu": torch.relu, "gelu": gelu}[activation](twin)
    close(y, twin)
    leaves, d_y = [value for value in (x, w, b) if value is not None], rows(*y.shape, seed=3)
    for got, want in zip(
        torch.autograd.grad(y, leaves, d_y), torch.autograd.grad(twin, leaves, d_y), strict=True
    ):
        close(got, want)
    with torch.no_grad():
        assert torch.equal(F.dense(x, w, b, activation=activation), y)


def gelu_of(x):
    """GELU of x (B,) and its derivative, by a layer of weight 1."""
    rows = x[:, None].requires_grad_()
    y = F.dense(rows, torch.ones(1, 1), activation="gelu")
    return y[:, 0].detach(), torch.autograd.grad(y.sum(), rows)[0][:, 0]


def test_gelu_to_a_float_s_digits(backend):
    """Against erf in float64, at a million points where no kernel is emulated."""
    points = 10**6 if backend in ("cpu", "reference") else 20_000
    x = torch.cat([torch.linspace(-15, 15, points // 2), 2 * rows(points // 2)])
    y, slope = gelu_of(x)
    exact = x.double().requires_grad_()
    want = gelu(exact)
    error = (y - want.detach()).abs() / exact.detach().abs().clamp(min=1)
    assert error.max() < 2e-7
    assert (slope - torch.autograd.grad(want.sum(), exact)[0]).abs().max() < 4e-7


def test_gelu_far_from_0(backend):
    far = [-torch.inf, -3e38, -40.0, 40.0, 3e38, torch.inf, torch.nan]
    y, slope = gelu_of(torch.tensor(far))
    close(y, torch.tensor([0, 0, 0, *far[3:]]), equal_nan=True)
    close(slope, torch.tensor([0, 0, 0, 1, 1, 1, torch.nan]), equal_nan=True)


def test_gelu_falls_and_rises_as_it_should():
    """On the CPU, whose tail keeps its digits: down to the minimum at -0.7518, then up."""
    x = torch.arange(-20_000, 10_000) / 1000
    change = gelu_of(x)[0].diff()
    assert (change[x[1:] < -0.755] <= 0).all() and (change[x[:-1] > -0.748] >= 0).all()
    assert (change[(x[1:] > -12) & (x[1:] < -0.755)] < 0).all()


def test_precision_is_that_of_the_operands():
    x, w = rows(9, 7), rows(5, 7, seed=1)
    y = F.dense(x, w, precision="bfloat16", backend="reference")
    close(y, linear(x.bfloat16().float(), w.bfloat16().float()))
    options = {"precision": "bfloat16", "backend": "reference"}
    layer = nk.Linear(7, 5, bias=False, optimizer=nk.AdamW(), **options)
    layer.load_state_dict({"weight": w})
    assert torch.equal(layer(x), y)
    with pytest.raises(nk.BackendError, match="precision must be one of"):
        F.dense(x, w, precision="tf32", backend="cpu")


FORWARDS = {
    "dense": lambda v: F.dense(v(2, 4), rows(5, 4), rows(5)),
    "dense of a weight": lambda v: F.dense(rows(2, 4), v(5, 4)),
    "denoising_loss": lambda v: F.denoising_loss(v(2, 5), torch.tensor([4, 0])),
    "add_noise of a level": lambda v: F.add_noise(labels(), v(B), 0.3, seed=0, num_classes=M),
    "add_noise of a table": lambda v: F.add_noise(labels(), 0.7, 0.3, seed=0, W_embed=v(M, D)),
    "Linear that is evaluated": lambda v: nk.Linear(4, 5, optimizer=nk.AdamW()).eval()(v(2, 4)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # by make_dual
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("case", FORWARDS)
def test_a_tangent_is_refused_and_not_lost(backend, case, grad):
    """Forward mode, of which kernels have none; a tensor without one is as always."""
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        with pytest.raises(NotImplementedError, match="jvp"):
            FORWARDS[case](lambda *shape: forward_ad.make_dual(rows(*shape), rows(*shape, seed=1)))
        inside = FORWARDS[case](rows)
    outside = FORWARDS[case](rows)
    for got, want in zip(
        *(v if isinstance(v, tuple) else (v,) for v in (inside, outside)), strict=True
    ):
        assert "Linear" in case or torch.equal(got, want)


def test_dense_of_strided_tensors(backend):
    x, w = rows(9, 14)[:, ::2], rows(7, 5).T.requires_grad_()
    F.dense(x, w).sum().backward()
    close(w.grad, x.sum(0).expand(5, 7))


def test_dense_forms_the_gradients_that_are_asked_for(backend):
    x, w, b = rows(9, 7), rows(5, 7), rows(5, grad=True)
    F.dense(x, w, b).sum().backward()
    assert torch.equal(b.grad, torch.full((5,), 9.0)) and w.grad is None
    assert not F.dense(x, w).requires_grad


def test_dense_notices_what_changed_since_the_forward(backend):
    x, w = rows(9, 7), rows(5, 7, grad=True)
    y = F.dense(x, w)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# dense_update_


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    "optimizer", [nk.SGD(lr=0.1), nk.SGD(lr=0.1, momentum=0.9), nk.AdamW(lr=0.01)], ids=repr
)
def test_updates_are_those_of_linear(backend, optimizer, bias):
    layer = nk.Linear(7, 5, bias, optimizer=optimizer)
    w = layer.weight.detach().clone()
    b = layer.bias.detach().clone() if bias else None
    state = {}
    for k in range(3):
        x, d_y = rows(2, 3, 7, seed=k, grad=True), rows(2, 3, 5, seed=10 + k)
        layer.optimizer.lr = optimizer.lr / (k + 1)
        layer(x).backward(d_y)
        applied, d_x = F.dense_update_(
            *(x, d_y, w, b),
            optimizer=optimizer,
            state=state,
            lr=optimizer.lr / (k + 1),
            input_grad=k > 0,
        )
        assert applied.tolist() == [True]
        assert d_x is None if k == 0 else torch.equal(d_x, x.grad)
    assert torch.equal(w, layer.weight) and (b is None or torch.equal(b, layer.bias))
    for name, value in layer.named_buffers():
        assert torch.equal(state.pop(name), value), name
    assert not state


def test_update_of_a_parameter_in_place(backend):
    w = torch.nn.Parameter(rows(5, 7))
    before, version = w.detach().clone(), w._version
    F.dense_update_(rows(4, 7), rows(4, 5), w, optimizer=nk.SGD(lr=0.1), state={})
    close(w.detach(), before - 0.1 * rows(4, 5).T @ rows(4, 7))
    assert w._version > version


def test_update_skips_what_is_not_finite(backend):
    w, state = rows(5, 7), {}
    before = w.clone()
    d_y = rows(4, 5)
    d_y[1, 1] = torch.inf
    applied, _ = F.dense_update_(rows(4, 7), d_y, w, optimizer=nk.AdamW(), state=state)
    assert applied.tolist() == [False]
    assert torch.equal(w, before) and not any(value.any() for value in state.values())


def test_update_of_no_rows_is_that_of_a_gradient_of_zero(backend):
    w, state, optimizer = rows(5, 7), {}, nk.AdamW(lr=0.1, weight_decay=0.5)
    before = w.clone()
    applied, _ = F.dense_update_(rows(0, 7), rows(0, 5), w, optimizer=optimizer, state=state)
    assert applied.tolist() == [True] and state["updates"].tolist() == [1]
    close(w, before * (1 - 0.1 * 0.5))


# arguments


@pytest.mark.parametrize(
    "options, text",
    [
        ({"y": torch.ones(3)}, "y must be torch.int64"),
        ({"seed": 0.5}, "seed must be an int64"),
        ({"draw": -1}, "draw must be an integer of at least 0"),
        ({"num_classes": None}, "num_classes must be an integer of at least 1"),
        ({"signal": torch.ones(2)}, r"signal must have shape \(9,\)"),
        ({"W_embed": torch.ones(2)}, r"W_embed must have shape \(any, any\)"),
        ({"num_classes": 2}, "must"),
    ],
)
def test_wrong_arguments_of_add_noise(backend, options, text):
    arguments = {"y": labels(), "signal": 1.0, "noise": 1.0, "seed": 0, "num_classes": M}
    with pytest.raises(ValueError, match=text):
        F.add_noise(**(arguments | options))


@pytest.mark.parametrize(
    "options, text",
    [
        ({"x": rows(4, 6)}, r"x must have shape \(any, 7\)"),
        ({"weight": rows(5)}, r"weight must have shape \(any, any\)"),
        ({"bias": rows(4)}, r"bias must have shape \(5,\)"),
        (
            {"activation": "tanh"},
            r"activation must be one of \(None, 'relu', 'gelu'\), got 'tanh'",
        ),
        ({"precision": "float16"}, "precision must be one of"),
    ],
)
def test_wrong_arguments_of_dense(options, text):
    with pytest.raises(ValueError, match=f"dense: {text}"):
        F.dense(**({"x": rows(4, 7), "weight": rows(5, 7)} | options))


@pytest.mark.parametrize("optimizer", [nk.AdamW(), nk.SGD(lr=0.1, momentum=0.9), nk.SGD(lr=0.1)])
def test_dense_update_has_the_same_bits_for_rows_that_are_not_contiguous(optimizer, backend):
    x, d_y = rows(6, 7), rows(6, 5)
    ends = []
    for given in (x, x.T.contiguous().T):
        w, b = rows(5, 7).clone(), rows(5).clone()
        state = {}
        for _ in range(3):
            applied, d_x = F.dense_update_(
                *(given, d_y, w, b), optimizer=optimizer, state=state, input_grad=True
            )
            assert applied.item()
        ends.append([w, b, d_x, *state.values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert ends[0][-1].item() == 3


def test_dense_update_tells_torch_what_it_wrote(backend):
    w, state = rows(5, 7), {}
    for _ in range(2):
        before = w._version
        F.dense_update_(rows(4, 7), rows(4, 5), w, optimizer=nk.SGD(lr=0.1), state=state)
        assert w._version > before


@pytest.mark.parametrize(
    "options, text",
    [
        ({"d_y": rows(3, 5)}, r"d_y must have the rows of x, \(4,\), got \(3,\)"),
        ({"d_y": rows(4, 6)}, r"d_y must have shape \(any, 5\)"),
        ({"optimizer": None}, "optimizer must be SGD, Adam or AdamW, got NoneType"),
        ({"optimizer": nk.SGD(weight_decay=(0.1,))}, "optimizer must have one weight_decay"),
        ({"lr": -1.0}, "lr must be finite and at least 0"),
        ({"state": {"updates": torch.zeros(1)}}, r"state must have \['weight_m', 'weight_v'"),
        ({"weight": rows(7, 5).T}, "weight must be contiguous"),
    ],
)
def test_wrong_arguments_of_dense_update_change_nothing(options, text):
    w = rows(5, 7)
    arguments = {"x": rows(4, 7), "d_y": rows(4, 5), "weight": w}
    arguments |= {"optimizer": nk.AdamW(), "state": {}}
    with pytest.raises(ValueError, match=f"dense_update_: {text}"):
        F.dense_update_(**(arguments | options))
    assert torch.equal(w, rows(5, 7))
