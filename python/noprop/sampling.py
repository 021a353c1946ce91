"""How a model goes from z_0 to its answer, and how well a z at the end tells a class.

With the levels signal and noise of z ~ N(signal u_y, noise^2 I), the likelihood of class y grows
with signal <u_y, z> - signal^2 |u_y|^2 / 2. Under an FM, whose z_1 is u_y itself, that is the
nearest embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels import functional
from noprop_kernels.samplers import choose_sampler

ANSWER_STEPS = 20  # of the answer, which draws nothing


class Sampler(NamedTuple):
    """The kind of a sampler, as `nk.DenoisingBlocks.predict` names it, and its number of steps."""

    kind: str
    steps: int

    def __str__(self) -> str:
        return f"{self.kind} of {self.steps:,} steps"


def check_pair(op: str, name: str, value: object) -> tuple[str | None, int | None]:
    """A kind and its steps; None of both where none are given.

    Raises:
        ValueError: it is no pair.
    """
    if value is None:
        return None, None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{op}: {name} must be a pair of a kind and its steps, got {value!r}")
    return value[0], value[1]


def answer_sampler(
    op: str, goal: nk.DT | nk.CT | nk.FM, kind: str | None, steps: int | None
) -> Sampler:
    """The sampler without noise: of DT the chain, of CT by default ddim, of FM euler.

    Raises:
        ValueError: the goal has no such sampler without noise, or steps do not fit.
    """
    few = goal.steps if isinstance(goal, nk.DT) else ANSWER_STEPS
    return Sampler(*choose_sampler(op, goal.samplers, kind, steps, noise=False, default_steps=few))


def paper_sampler(
    op: str, goal: nk.DT | nk.CT | nk.FM, kind: str | None, steps: int | None
) -> Sampler:
    """The sampler of the paper's protocol, from z_0 ~ N(0, I): of CT by default ancestral, with
    noise in every step, of FM euler, of 1,000 steps.

    Raises:
        ValueError: the goal has no such sampler, or steps do not fit.
    """
    named = (op, goal.samplers, kind, steps)
    return Sampler(*choose_sampler(*named, noise=True, default_steps=goal.steps))


def samplers_of(
    op: str, goal: nk.DT | nk.CT | nk.FM, kind: str | None, steps: int | None
) -> tuple[Sampler, Sampler]:
    """The answer's and the paper's samplers of one kind; without noise ancestral is ddim.

    Raises:
        ValueError: kind or steps do not fit.
    """
    quiet = None if kind == "ancestral" else kind
    return answer_sampler(op, goal, quiet, steps), paper_sampler(op, goal, kind, steps)


def last_signal(goal: nk.DT | nk.CT | nk.FM) -> tuple[float, float]:
    """The signal of the last z, and its square."""
    if isinstance(goal, nk.DT):  # from float64, and not by way of a rounded root
        alpha_bar = float(goal.schedule.alpha_bar[-1])
        return alpha_bar**0.5, alpha_bar
    signal = goal.last().signal.item()
    return signal, signal**2


def score_weights(W_embed: Tensor, signal: float, square: float) -> tuple[Tensor, Tensor]:
    """Weight (M, D) and bias (M,) of the scores as a dense layer of z."""
    return signal * W_embed, -square / 2 * W_embed.square().sum(1)


def scores(
    W_embed: Tensor | None, z: Tensor, signal: float, square: float, *, backend: str | None
) -> Tensor:
    """signal <u_y, z> - signal^2 |u_y|^2 / 2 (..., M) of z (..., D); W_embed None: one-hot."""
    if W_embed is None:  # <u_y, z> is column y of z
        return signal * z - square / 2
    weight, bias = score_weights(W_embed, signal, square)
    return functional.dense(z, weight, bias, backend=backend)


def signal_at(goal: nk.CT | nk.FM, t: float) -> tuple[float, float]:
    """The signal of z_t, and its square."""
    signal = goal.levels(torch.tensor(t, dtype=torch.float64, device="cpu")).signal.item()
    return signal, signal**2
