"""A part's result must be float64's."""

import time

import torch

from ..contenders.contender import Contender
from ..contenders.rivals.stacked import join
from ..contenders.rivals.step_compiled import adamw, rates
from ..problem import twin
from ..problem.problem import Weights
from . import layers
from .given import UPDATES, Part

CHECK_CALLS = 3


def wanted(given: Part) -> Weights:
    """What the part's result must be, float64."""
    p = given.problem
    if given.maths in layers.LAYERS:
        return layers.wanted(given)
    x, u_y = given.x.double(), given.u_y.double()
    if given.maths == "head":
        logits = given.logits.double().requires_grad_()
        error = (logits.softmax(dim=2) - u_y).square().sum(dim=2).mean(dim=1)
        losses = p.weight.double() * error
        losses.sum().backward()
        assert logits.grad is not None
        return {"losses": losses.detach(), "d_logits": logits.grad}
    w = {name: value.double().requires_grad_() for name, value in p.weights.items()}
    if given.maths == "update":
        grads = {name: value.double() for name, value in given.grads.items()}
    else:
        z = given.z.double()
        logits = torch.stack([twin.logits(w, t, x, z[t]) for t in range(p.shape.T)])
        if given.maths == "forward":
            return {"logits": logits.detach()}
        found = torch.autograd.grad(logits, list(w.values()), given.d_logits.double())
        grads = dict(zip(w, found, strict=True))
        if given.maths == "backward":
            return grads
    w, m, v = (
        {name: value.detach().double() for name, value in weights.items()}
        for weights in (p.weights, given.m, given.v)
    )
    return adamw((w, m, v), grads, *rates(p.lr, p.weight_decay, UPDATES + 1))[0]


def check_part(contender: Contender) -> list[float]:
    """Lets it do its part, and compares the first result; returns the seconds of each call.

    Noise must have the mean and deviation of N(0, 1), within six deviations of theirs. Other
    results are compared as a whole: the root mean square error may be 5e-3 of the size, or of the
    distance that weights moved, since one rounding may flip a ReLU at zero, which changes a row of
    `tiny`'s gradient by 1 / sqrt(128) and the whole by 1 / sqrt(128 * 640) = 3.5e-3.

    Raises:
        Mismatch: it differs.
    """
    assert isinstance(contender, Part)
    seconds, first = [], {}
    for number in range(CHECK_CALLS):  # the first compiles
        begin = time.perf_counter()
        result = contender.once()
        seconds.append(time.perf_counter() - begin)
        if number == 0:  # later ones may move what it returned
            first = {name: value.detach().double() for name, value in result.items()}
    if "f.x" in first:
        first = join(first)
    if contender.maths in ("draw", "noise"):
        check_normal(contender, first)
        return seconds
    moves = contender.maths in ("update", "backward_update")
    start_of = contender.problem.weights
    if contender.maths in layers.MOVING:
        moves, start_of = True, layers.Layer(contender).w
    for name, want in wanted(contender).items():
        start = start_of[name].double() if moves else torch.zeros(())
        size = twin.root_mean_square(want - start)
        error = twin.root_mean_square(first[name] - want)
        rounding = torch.finfo(torch.float32).eps * twin.root_mean_square(start)
        if not error <= 5e-3 * size + rounding:
            raise twin.Mismatch(f"{name} differs from float64's by {error:.1e} of {size:.1e}")
    return seconds


def check_normal(given: Part, result: Weights) -> None:
    eps = result["eps"] if given.maths == "draw" else (result["z"] - given.signal * given.u_y)
    eps = eps if given.maths == "draw" else eps / given.noise
    n = eps.numel()
    mean, variance = eps.mean().item(), eps.var().item()
    if not (abs(mean) <= 6 * n**-0.5 and abs(variance - 1) <= 6 * (2 / n) ** 0.5):
        raise twin.Mismatch(f"noise has mean {mean:.3f} and variance {variance:.3f}")
