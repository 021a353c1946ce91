"""The noise of ModuleBlocks' steps: that of nk.DenoisingBlocks at the same address."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from noprop_kernels import philox

if TYPE_CHECKING:
    from .stack import NetworkStack


@dataclass(frozen=True)
class Noised:
    """What n slices read and aim at in a step.

    Attributes:
        z, target: (n, B, D).
        weight: (n, B).
        t: (n, B) float64, where the goal draws it.
    """

    z: Tensor
    target: Tensor
    weight: Tensor
    t: Tensor | None

    def of(self, j: int) -> "Noised":
        """The part of the j-th slice, without the first dimension."""
        t = None if self.t is None else self.t[j]
        return Noised(self.z[j], self.target[j], self.weight[j], t)


def embed(blocks: "NetworkStack", y: Tensor) -> Tensor:
    """u_y: (..., B) -> (..., B, D) float32."""
    return one_hot(y, blocks.D).float() if blocks.W_embed is None else blocks.W_embed[y]


def draw_times(blocks: "NetworkStack", index: Tensor, B: int) -> Tensor:
    """t (n, B) float64 in [0, 1) of the next step, by stream 6."""
    at = (blocks.seeds[index], philox.STREAM_TIME, 0, blocks.draws[index], 0, B, 1)
    u = philox.uniform(*at, dtype=torch.float64)[..., 0]
    if not blocks.goal.stratified:
        return u
    return (torch.arange(B, dtype=torch.float64, device=u.device) + u) / B


def noised(blocks: "NetworkStack", index: Tensor, y: Tensor, row_weight: Tensor | None) -> Noised:
    """z = signal * u_y + noise * eps + sigma * eps_1 and target = u_y - flow * eps.

    Args:
        index: (n,) positions of the slices, on their device.
        y: (n, B) labels.
        row_weight: (n, B), by which the rows' weights are multiplied, or None.
    """
    goal, (n, B), D = blocks.goal, (len(index), y.shape[-1]), blocks.D
    block = index % blocks.T  # the paper's t - 1

    def normal(stream: int) -> Tensor:
        at = (blocks.seeds[index], stream, 0, blocks.draws[index], block, B, D)
        return philox.normal(*at)

    t = draw_times(blocks, index, B) if goal.timed else None
    levels = goal.levels((block + 1).cpu() if t is None else t[None])

    def spread(value: Tensor) -> Tensor:
        value = value.to(index.device)
        return value[:, None].expand(n, B) if t is None else value[0]

    u_y, eps = embed(blocks, y), normal(philox.STREAM_EPS)
    z = spread(levels.signal)[..., None] * u_y + spread(levels.noise)[..., None] * eps
    if goal.sigma != 0:
        z = z + goal.sigma * normal(philox.STREAM_EPS_1)
    target = u_y if goal.flow == 0 else u_y - goal.flow * eps
    weight = spread(levels.weight)
    return Noised(z, target, weight if row_weight is None else weight * row_weight, t)


def predict_embedding(blocks: "NetworkStack", logits: Tensor) -> Tensor:
    """u_hat = softmax(logits) @ W_embed, or logits @ W_embed of the head "linear"."""
    p = logits if blocks.goal.head == "linear" else logits.softmax(-1)
    return p if blocks.W_embed is None else p @ blocks.W_embed


def mean_loss(blocks: "NetworkStack", logits: Tensor, made: Noised) -> Tensor:
    """sum over rows of weight * |u_hat - target|^2 / B, of a slice's logits (B, M)."""
    error = (predict_embedding(blocks, logits) - made.target).square().sum(-1)
    return (made.weight * error).sum() / len(error)
