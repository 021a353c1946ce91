"""The paper's DT block (arXiv:2503.24322v2, fig. 5) as a user writes it: torch.nn's modules.

Its first map is a method of its own, since all blocks can share that convolution's input.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, max_pool2d

from ....problem.problem import Problem, Weights

Drops = Mapping[str, float | Tensor]  # by convolution: dropout's rate, or its factors in a check


def dropped(x: Tensor, drop: float | Tensor) -> Tensor:
    """Dropout of a map (..., H, W), which may be cropped."""
    if isinstance(drop, Tensor):
        return x * drop[..., : x.shape[-2], : x.shape[-1]]
    return dropout(x, drop)


def each(drops: Drops, change: Callable[[Tensor], Tensor]) -> Drops:
    """With factors (T, B, C, H, W) as a form of the network reads them."""
    return {name: change(d) if isinstance(d, Tensor) else d for name, d in drops.items()}


def beside(value: Tensor) -> Tensor:
    """(T, B, C, ...) with the blocks' channels beside each other: (B, T C, ...)."""
    return value.transpose(0, 1).flatten(1, 2)


class Normed(nn.Linear):
    """A linear layer with batch norm behind it."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__(ins, outs)
        self.norm = nn.BatchNorm1d(outs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class PaperBlock(nn.Module):
    """u_hat (B, D), one-hot, of images x (B, C, H, W) and z (B, D), with slice t of the weights."""

    def __init__(self, problem: Problem, t: int) -> None:
        super().__init__()
        plan, H = problem.shape.plan, problem.shape.H
        C, *_ = plan.shapes["x"]
        self.c1, self.c2, self.c3 = nn.Conv2d(C, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 128, 3)
        self.hx, self.hz = Normed(plan.widths["c3"], H), Normed(plan.widths["z"], H)
        self.skip, self.sum = Normed(H, H), Normed(H, H)
        self.f1, self.f2 = Normed(2 * H, H), Normed(H, 128)
        self.logits = nn.Linear(128, problem.shape.M)
        self.load_state_dict({name: w[t] for name, w in problem.weights.items()}, strict=False)

    def forward(self, x: Tensor, z: Tensor, drops: Drops) -> Tensor:
        x = max_pool2d(self.c1(x).relu(), 2)
        return self.rest(dropped(x, drops["c1"]), z, drops)

    def rest(self, x: Tensor, z: Tensor, drops: Drops) -> Tensor:
        """u_hat of the first map and z."""
        x = dropped(self.c2(x).relu(), drops["c2"])
        x = dropped(max_pool2d(self.c3(x).relu(), 2), drops["c3"])
        hz = self.hz(z).relu()
        hz = hz + self.sum(self.skip(hz).relu())
        f = self.f1(torch.cat([self.hx(x.flatten(1)), hz], dim=1)).relu()
        return self.logits(self.f2(f).relu()).softmax(dim=1)


def images(problem: Problem, x: Tensor, cropped: bool = True) -> Tensor:
    """x (B, F) as (B, C, H, W), without the pixels that no result depends on."""
    plan = problem.shape.plan
    x = x.unflatten(1, plan.shapes["x"])
    if not cropped:
        return x
    height, width = (size + 2 for size in plan.live()["c1"])
    return x[..., :height, :width]


def without_counts(weights: Weights) -> Weights:
    """Without how often each batch norm ran, which nothing reads."""
    return {name: w for name, w in weights.items() if not name.endswith("num_batches_tracked")}
