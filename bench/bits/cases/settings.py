"""The blocks of a case and their data: a plan, a goal, an optimizer, a precision."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import noprop_kernels as nk

from .plans import PLANS, Sizes, timed

T, K = 3, 3
OPTIMIZERS = {
    "sgd": nk.SGD(lr=0.1, weight_decay=1e-3),
    "momentum": nk.SGD(lr=0.05, momentum=0.9),
    "nesterov": nk.SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": nk.Adam(lr=1e-2, weight_decay=1e-2, betas=(0.8, 0.95), eps=1e-6),
    "adamw": nk.AdamW(lr=1e-2),
}
PRECISIONS = ("float32", "bfloat16", "tf32")
DT = "dt"
GOALS = {
    DT: lambda: nk.DT(nk.NoiseSchedule.cosine(T)),
    "ct": lambda: nk.CT(),
    "ct stratified": lambda: nk.CT(weight=("min-snr", 5.0), stratified=True),
    "fm": lambda: nk.FM(),
    "fm sigma": lambda: nk.FM(sigma=0.2),
}  # made by a case, so that a commit without one has the others
Results = Iterator[tuple[str, Any]]


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Setting(NamedTuple):
    """The blocks of one case."""

    s: Sizes
    plan: str
    optimizer: str | None
    precision: str
    goal: str = DT

    def made_plan(self) -> nk.Plan:
        return PLANS[self.plan](self.s) if self.goal == DT else timed(self.s)

    def table(self) -> Tensor | None:
        if self.plan == "one_hot":
            return None
        return torch.randn(self.s.M, self.s.D, generator=random(5))

    def blocks(self, goal: Any = None, **options: Any) -> nk.DenoisingBlocks:
        return nk.DenoisingBlocks(
            self.made_plan(),
            goal or GOALS[self.goal](),
            optimizer=None if self.optimizer is None else OPTIMIZERS[self.optimizer],
            seed=self.s.seeds,
            precision=self.precision,
            **(options or {"embedding": self.table()}),
        )

    def data(self, rows: int, dtype: torch.dtype = torch.float32) -> tuple[dict, Tensor]:
        """The caller's inputs by name, and labels."""
        generator, x = random(rows), {}
        for name, shape in self.made_plan().inputs.items():
            if name == "z" or (name == "t" and self.goal != DT):
                continue
            if dtype == torch.uint8:
                made = torch.randint(256, (rows, *shape), generator=generator, dtype=dtype)
            else:
                made = torch.randn(rows, *shape, generator=generator).to(dtype)
            x[name] = made
        return x, torch.randint(self.s.M, (rows,), generator=generator)
