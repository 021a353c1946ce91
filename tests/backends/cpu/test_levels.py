"""A learned gamma's levels, their gradient and the update of what is shared: PyTorch's in float64,
the same on any number of threads and beside any replicas."""

import random
from types import ModuleType

import pytest
import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.backends.calls import Rule
from noprop_kernels.backends.cpu import extension
from noprop_kernels.backends.reference.equations import optimizer_step
from noprop_kernels.backends.shared_calls import (
    LevelsCall,
    LevelsGradientCall,
    LevelsOut,
    SharedUpdateCall,
)
from noprop_kernels.gamma_network import NAMES, LearnedGamma
from noprop_kernels.goal import Levels

F32, F64 = torch.float32, torch.float64
D = 7
WEIGHTS = {"snr": "snr", "uniform": "uniform", "min-snr": ("min-snr", 5.0)}
ROWS = ("d_signal", "d_noise", "d_weight", "d_last_signal", "d_last_noise")


def made(R: int, B: int, hidden: int, weight: str, seed: int) -> LevelsGradientCall:
    """Calls whose outputs are NaN; a replica's numbers are its own, whichever others there are."""
    generators = [torch.Generator().manual_seed(100 * seed + r) for r in range(R)]

    def normal(*shape: int, dtype: torch.dtype = F32) -> Tensor:
        return torch.stack([torch.randn(shape, generator=g, dtype=dtype) for g in generators])

    def empty(*shape: int, dtype: torch.dtype = F32) -> Tensor:
        return torch.full((R, *shape), torch.nan, dtype=dtype)

    gamma = {name: 2 * normal(hidden) for name in ("w1", "b1", "w2")}
    gamma["w1"][:, 0] = 30.0  # softplus is linear there, and tanh is at its end
    gamma["gamma_0"], gamma["delta"] = normal() - 3, normal() + 8
    t = torch.stack([torch.rand(B, generator=g, dtype=F64) for g in generators])
    out = LevelsOut(
        net=empty(B + 2, dtype=F64),
        net_slope=empty(B, dtype=F64),
        **{name: empty(B) for name in ("signal", "noise", "weight")},
        **{name: empty() for name in ("last_signal", "last_noise")},
        **{name: empty(dtype=F64) for name in ("prior", "alpha_bar_0")},
    )
    u_squared = normal(dtype=F64).square() + 0.1
    levels = LevelsCall(gamma, weight, 0.3, 5.0, t, u_squared, D, out)
    of_rows = {name: normal(B) for name in ROWS}
    grads = {name: torch.full_like(value, torch.nan) for name, value in gamma.items()}
    return LevelsGradientCall(levels, **of_rows, grads=grads)


def run(kernels: ModuleType, call: LevelsGradientCall) -> dict[str, Tensor]:
    """All outputs."""
    kernels.levels(call.levels)
    kernels.levels_gradient(call)
    return vars(call.levels.out) | {f"grad {name}": value for name, value in call.grads.items()}


class Exact(nk.CT):
    """Its levels are not rounded."""

    def _levels(self, gamma: Tensor, weight: Tensor) -> Levels:
        noise = torch.sigmoid(gamma).sqrt()
        return Levels(torch.sigmoid(-gamma).sqrt(), noise, 0.5 * self.eta * weight)


def in_torch(call: LevelsGradientCall) -> dict[str, Tensor]:
    """The same by PyTorch and its autograd, in float64."""
    of = call.levels
    leaves = {name: of.gamma[name].double().requires_grad_() for name in NAMES}
    goal = Exact(LearnedGamma(leaves), eta=2 * of.scale, weight=WEIGHTS[of.weight])
    levels = goal.levels(of.t[None])
    _, gamma_0 = goal.gamma.ends()
    last = torch.sigmoid(-gamma_0).sqrt(), torch.sigmoid(gamma_0).sqrt()
    prior = goal.prior(of.u_squared, D)
    outputs = [levels.signal[0], levels.noise[0], levels.weight[0], *last]
    seeds = [getattr(call, name).double() for name in ROWS]
    seeds[3:] = [value.sum(1) for value in seeds[3:]]
    total = prior.sum() + sum((o * s).sum() for o, s in zip(outputs, seeds, strict=True))
    grads = torch.autograd.grad(total, list(leaves.values()))
    names = ("signal", "noise", "weight", "last_signal", "last_noise")
    found = dict(zip(names, outputs, strict=True))
    found |= {"prior": prior, "alpha_bar_0": torch.sigmoid(-goal.gamma.ends()[0])}
    found = {name: value.detach() for name, value in found.items()}
    return found | {f"grad {name}": g for name, g in zip(leaves, grads, strict=True)}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """Within roundings of float64, and one of float32 where the number is stored so."""
    for name, exact in want.items():
        value, size = got[name], exact.abs().flatten(1) if exact.ndim > 1 else exact.abs()[:, None]
        rounding = 2.0**-24 if value.dtype == F32 else 0.0
        # sums of a replica's terms of both signs lose digits of its largest entry
        allowed = rounding * exact.abs() + 1e-12 * size.amax(1).view(-1, *[1] * (exact.ndim - 1))
        error = (value.double() - exact).abs()
        assert bool((error <= allowed).all()), f"{name}: {(error / allowed).max():.3g}"


SIZES = [(1, 1, 2), (1, 128, 64), (2, 129, 65), (1, 130, 300), (3, 7, 1024), (1, 128, 1024)]


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize(("R", "B", "hidden"), SIZES)
def test_they_are_torch_s(kernels: ModuleType, R: int, B: int, hidden: int, weight: str) -> None:
    call = made(R, B, hidden, weight, seed=B)
    assert_close(run(kernels, call), in_torch(call))


@pytest.mark.parametrize("seed", range(40))
def test_they_are_torch_s_at_random_sizes(kernels: ModuleType, seed: int) -> None:
    draw = random.Random(seed)
    sizes = draw.randint(1, 4), draw.randint(1, 300), draw.randint(2, 400)
    call = made(*sizes, draw.choice([*WEIGHTS]), seed)
    assert_close(run(kernels, call), in_torch(call))


@pytest.mark.parametrize(("R", "B", "hidden"), [(3, 70, 9), (3, 200, 700), (2, 128, 1024)])
def test_threads_and_other_replicas_change_no_bit(
    kernels: ModuleType, monkeypatch, R: int, B: int, hidden: int
) -> None:
    def with_threads(count: int, replicas: int) -> dict[str, Tensor]:
        monkeypatch.setattr(extension, "threads", lambda: count)
        return run(kernels, made(replicas, B, hidden, "snr", seed=5))

    together = with_threads(1, R)
    for threads in (2, 5):
        for name, value in with_threads(threads, R).items():
            assert torch.equal(value, together[name]), name
    for name, value in with_threads(3, 1).items():
        assert torch.equal(value, together[name][:1]), name


OPTIMIZERS = {
    "sgd": nk.SGD(lr=0.1, weight_decay=0.02),
    "momentum": nk.SGD(lr=0.1, momentum=0.9, weight_decay=0.02),
    "nesterov": nk.SGD(lr=0.1, momentum=0.9, nesterov=True),
    "adam": nk.Adam(lr=0.1, weight_decay=0.02),
    "adamw": nk.AdamW(lr=0.1, weight_decay=0.02),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_is_the_reference_s(kernels: ModuleType, name: str) -> None:
    """Of the replicas that apply and whose gradients are finite; draws advance in all."""
    optimizer, R = OPTIMIZERS[name], 4
    generator = torch.Generator().manual_seed(3)
    shapes = {"w1": (R, 37), "W_embed": (R, 3, 5), "delta": (R,)}
    params = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    moments = {m: {n: torch.rand_like(p) for n, p in params.items()} for m in optimizer.moments}
    m, v = (moments.get(moment, {}) for moment in ("m", "v"))
    grads = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    grads["W_embed"][2, 1, 4] = torch.inf
    apply = torch.tensor([True, False, True, True])
    updates, draws = torch.tensor([0, 3, 5, 9]), torch.tensor([1, 4, 6, 9])
    lr = torch.tensor([[0.1, 0.1, 0.1, 0.05]], dtype=F64)
    rule = Rule(optimizer, lr, torch.full((R,), optimizer.weight_decay, dtype=F64))
    moves = torch.tensor([True, False, False, True])
    want = {}
    for key in shapes:
        old = params[key], m.get(key), v.get(key)
        options = {"lr": lr[0], "weight_decay": rule.weight_decay, "updates": updates + 1}
        new = optimizer_step(optimizer, old[0], grads[key], *old[1:], **options)
        where = moves.view(-1, *[1] * (old[0].ndim - 1))
        for kind, before, after in zip(("", "_m", "_v"), old, new, strict=True):
            if before is not None:
                want[key + kind] = torch.where(where, after, before)
    applied = torch.zeros(R, dtype=torch.bool)
    kernels.update_shared(
        SharedUpdateCall(params, m, v, grads, apply, applied, updates, draws, rule)
    )
    got = params | {k + "_m": x for k, x in m.items()} | {k + "_v": x for k, x in v.items()}
    assert got.keys() == want.keys()
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, rtol=1e-6, atol=1e-7)
        assert torch.equal(got[key][~moves], value[~moves])
    assert applied.tolist() == moves.tolist()
    assert updates.tolist() == [1, 3, 5, 10] and draws.tolist() == [2, 5, 7, 10]


def refused(kernels: ModuleType, change: str) -> None:
    call = made(2, 6, 5, "snr", seed=1)
    levels = call.levels
    if change == "b1":
        levels.gamma["b1"] = levels.gamma["b1"][:, :4]
    elif change == "lacking":
        del levels.gamma["w1"]
    elif change == "dtype":
        levels.t = levels.t.float()
    elif change == "out":
        levels.out.net = levels.out.net[:, :-1]
    elif change == "weight":
        levels.weight = "max-snr"
    elif change == "shared":
        levels.out.signal = levels.out.noise
    elif change == "rows":
        call.d_noise = call.d_noise[:, :5]
    elif change == "grads":
        call.grads["w2"] = call.grads["b1"]
    kernels.levels(levels)
    kernels.levels_gradient(call)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("b1", r"levels: b1 must have shape \(2, 5\), got \(2, 4\)"),
        ("lacking", "levels: w1 must be among the parameters"),
        ("dtype", "levels: t must be torch.float64"),
        ("out", r"levels: net must have shape \(2, 8\)"),
        ("weight", "levels: weight must be one of the kernels', got max-snr"),
        ("shared", "must share no memory"),
        ("rows", "levels: d_noise must have shape"),
        ("grads", "must share no memory"),
    ],
)
def test_what_does_not_fit_is_refused(kernels: ModuleType, change: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        refused(kernels, change)
