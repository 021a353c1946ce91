"""The levels of a coupled step, its prior, and the gradients of what is shared.

Where a CT learns its gamma and the backend has `levels`, these are calls of it; else PyTorch and
its autograd form them.
"""

from typing import Protocol

import torch
from torch import Tensor

from .backends.shared_calls import LevelsCall, LevelsGradientCall, LevelsOut
from .blocks import DenoisingBlocks
from .continuous import CT
from .embedding_step import BlockStep
from .goal import Goal, Levels
from .results import Step
from .stack import engine
from .stack.shared import GAMMA, Shared


class StepLevels(Protocol):
    """Of one step.

    Attributes:
        given: t and the levels there, apart from any graph; None where the goal draws no t.
        last: the levels of the output head's z; None: by the head itself.
        prior: (R,) float64, apart from any graph.
    """

    @property
    def given(self) -> engine.TimedLevels | None: ...

    @property
    def last(self) -> Levels | None: ...

    @property
    def prior(self) -> Tensor: ...

    def gradients(self, block: BlockStep, at_end: Step | None) -> dict[str, Tensor]:
        """The gradient of the whole loss in each parameter of what is shared, at the values before
        the step."""
        ...

    def update(self, grads: dict[str, Tensor], apply: Tensor, lr: float | None) -> Tensor:
        """Shared.update."""
        ...


def step_levels(blocks: DenoisingBlocks, shared: Shared, y: Tensor) -> StepLevels:
    """Those of the next step, on the labels y (B,)."""
    if shared.learns_schedule and hasattr(engine.backend_of(blocks), "levels"):
        return KernelLevels(blocks, shared, y)
    return GraphLevels(blocks, shared, y)


class GraphLevels:
    """By PyTorch."""

    last: Levels | None = None

    def __init__(self, blocks: DenoisingBlocks, shared: Shared, y: Tensor) -> None:
        self.shared = shared
        self.given: engine.TimedLevels | None = None
        self.levels: Levels | None = None
        with torch.enable_grad():
            self.goal: Goal = shared.present_goal(grad=True)
            if self.goal.timed:
                t = blocks.times(len(y))[None]
                self.levels = self.goal.levels(t)
                of = (self.levels.signal, self.levels.noise, self.levels.weight)
                self.given = t, Levels(*(value.detach() for value in of))
            self.graph_prior = shared.prior(y, blocks.M)
        self.prior = self.graph_prior.detach()

    def gradients(self, block: BlockStep, at_end: Step | None) -> dict[str, Tensor]:
        outputs, seeds = [self.graph_prior], [torch.ones_like(self.graph_prior)]
        if self.shared.learns_schedule:
            levels = self.levels
            assert levels is not None and at_end is not None
            with torch.enable_grad():
                last = self.goal.last()
            outputs += [levels.signal, levels.noise, levels.weight, last.signal, last.noise]
            of_rows = [block.d_signal, block.d_noise, block.d_weight]
            seeds += [value[None] for value in of_rows if value is not None]
            of_last = [at_end.d_signal, at_end.d_noise]
            seeds += [row_sums(value) for value in of_last if value is not None]
        reached = [
            (output, seed)
            for output, seed in zip(outputs, seeds, strict=True)
            if output.requires_grad
        ]
        names = self.shared.layout.params
        params = [self.shared.get_parameter(name) for name in names]
        grads = [torch.zeros_like(value) for value in params]
        if reached and params:
            given = torch.autograd.grad(
                *([each[0] for each in reached], params, [each[1] for each in reached]),
                allow_unused=True,
                materialize_grads=True,
            )
            grads = list(given)
        by_name = dict(zip(names, grads, strict=True))
        if self.shared.learns_embedding:
            by_name["W_embed"] = by_name["W_embed"] + embedding_gradient(block, at_end)
        return by_name

    def update(self, grads: dict[str, Tensor], apply: Tensor, lr: float | None) -> Tensor:
        return self.shared.update(grads, apply, lr=lr)


class KernelLevels:
    """By a backend's calls, of a CT whose gamma is learned."""

    def __init__(self, blocks: DenoisingBlocks, shared: Shared, y: Tensor) -> None:
        self.blocks, self.shared, self.y = blocks, shared, y
        goal, B, D = shared.goal, len(y), blocks.D
        assert isinstance(goal, CT)
        t = blocks.times(B)
        empty, F64, R = torch.empty, torch.float64, shared.replicas
        out = LevelsOut(
            net=empty(R, B + 2, dtype=F64, device=t.device),
            net_slope=torch.empty_like(t),
            signal=engine.empty(blocks, R, B),
            noise=engine.empty(blocks, R, B),
            weight=engine.empty(blocks, R, B),
            last_signal=engine.empty(blocks, R),
            last_noise=engine.empty(blocks, R),
            prior=empty(R, dtype=F64, device=t.device),
            alpha_bar_0=empty(R, dtype=F64, device=t.device),
        )
        u_squared, self.share = shared.u_squared(y)
        weight, most = goal.weight, 0.0
        if not isinstance(weight, str):
            weight, most = weight
        gamma, scale = shared.gamma_parameters(), 0.5 * goal.eta
        self.call = LevelsCall(gamma, weight, scale, most, t, u_squared, D, out)
        engine.run(blocks, "levels", self.call)
        levels = (out.signal[None], out.noise[None], out.weight[None])
        self.given: engine.TimedLevels | None = t[None], Levels(*levels)
        ones = torch.ones_like(out.last_signal)
        self.last: Levels | None = Levels(out.last_signal, out.last_noise, ones)
        self.prior = out.prior

    def gradients(self, block: BlockStep, at_end: Step | None) -> dict[str, Tensor]:
        assert at_end is not None
        seeds = (block.d_signal, block.d_noise, block.d_weight, at_end.d_signal, at_end.d_noise)
        d_signal, d_noise, d_weight, d_last_signal, d_last_noise = (
            value for value in seeds if value is not None
        )
        grads = {name: torch.empty_like(value) for name, value in self.call.gamma.items()}
        call = LevelsGradientCall(
            *(self.call, d_signal, d_noise, d_weight, d_last_signal, d_last_noise, grads)
        )
        engine.run(self.blocks, "levels_gradient", call)
        by_name = {GAMMA + name: value for name, value in grads.items()}
        if self.shared.learns_embedding:
            W_embed = self.shared.W_embed
            assert W_embed is not None and self.share is not None
            with torch.no_grad():
                prior = (self.call.out.alpha_bar_0 * self.share)[:, None] * W_embed.double()
            by_name["W_embed"] = prior.float() + embedding_gradient(block, at_end)
        return by_name

    def update(self, grads: dict[str, Tensor], apply: Tensor, lr: float | None) -> Tensor:
        call, written = self.shared.update_call(grads, apply, lr)
        engine.run(self.blocks, "update_shared", call, written)
        return call.applied


def embedding_gradient(block: BlockStep, at_end: Step | None) -> Tensor:
    """(M, D), by the paths that the steps know, of the only replica."""
    assert block.d_W_embed is not None
    if at_end is None:
        return block.d_W_embed
    assert at_end.d_W_embed is not None
    return block.d_W_embed + at_end.d_W_embed[0]


def row_sums(value: Tensor) -> Tensor:
    """The sum over B of each replica apart: (R, B) -> (R,)."""
    return torch.stack([one.sum() for one in value.unbind(0)])
