"""How a model goes from z_0 to its answer, and how well a z at the end tells a class.

With the levels signal and noise of z ~ N(signal u_y, noise^2 I), the likelihood of class y grows
with signal <u_y, z> - signal^2 |u_y|^2 / 2. Under an FM, whose z_1 is u_y itself, that is the
nearest embedding.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from noprop_kernels import functional
from noprop_kernels.goal import Goal
from noprop_kernels.samplers import choose_sampler

from .errors import InputError
from .json_records import Json, field
from .variants import variant_of

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


def answer_sampler(op: str, goal: Goal, kind: str | None, steps: int | None) -> Sampler:
    """The sampler without noise: of DT the chain, of CT by default ddim, of FM euler.

    Raises:
        ValueError: the goal has no such sampler without noise, or steps do not fit.
    """
    few = ANSWER_STEPS if variant_of(op, goal).sampled else goal.steps
    return Sampler(*choose_sampler(op, goal.samplers, kind, steps, noise=False, default_steps=few))


def paper_sampler(op: str, goal: Goal, kind: str | None, steps: int | None) -> Sampler:
    """The sampler of the paper's protocol, from z_0 ~ N(0, I): of CT by default ancestral, with
    noise in every step, of FM euler, of 1,000 steps.

    Raises:
        ValueError: the goal has no such sampler, or steps do not fit.
    """
    named = (op, goal.samplers, kind, steps)
    return Sampler(*choose_sampler(*named, noise=True, default_steps=goal.steps))


def samplers_of(
    op: str, goal: Goal, kind: str | None, steps: int | None
) -> tuple[Sampler, Sampler]:
    """The answer's and the paper's samplers of one kind; without noise ancestral is ddim.

    Raises:
        ValueError: kind or steps do not fit.
    """
    quiet = None if kind == "ancestral" else kind
    return answer_sampler(op, goal, quiet, steps), paper_sampler(op, goal, kind, steps)


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


def signal_at(goal: Goal, t: float) -> tuple[float, float]:
    """The signal of z_t, and its square."""
    signal = goal.levels(torch.tensor(t, dtype=torch.float64, device="cpu")).signal.item()
    return signal, signal**2


# of every DT, as its first versions wrote it and older readers expect it
CHAIN = {"kind": "ancestral", "equation": "arXiv:2503.24322v2, eq. 3", "from": "N(0, I)"}


def samplers_to_json(goal: Goal, answer: Sampler, paper: Sampler) -> Json:
    if not variant_of("save", goal).sampled:
        return {"sampler": CHAIN}
    return {"sampler": answer._asdict(), "paper_sampler": paper._asdict()}


def samplers_from_json(goal: Goal, record: Json) -> dict[str, Sampler]:
    """The samplers of a saved model, as arguments of `Model`.

    Raises:
        InputError: one is missing or cannot be read, or is not a DT's.
    """
    if not variant_of("load", goal).sampled:
        if field(record, "sampler", dict) != CHAIN:
            raise InputError(f"a saved model must have the sampler {CHAIN}")
        return {}
    samplers = {}
    for name in ("sampler", "paper_sampler"):
        saved = field(record, name, dict)
        samplers[name] = Sampler(field(saved, "kind", str), field(saved, "steps", int))
    return samplers
