"""A model and one way to train it by AdamW: ours and its rivals."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import noprop_kernels as nk

from .models import Task, groups

LR = 1e-3


class Trainer:
    """Eager torch with fused AdamW; the others differ in `prepare` and `step`.

    Args:
        task: what to train.
        dtype: of the weights.
    """

    compiles = False

    def __init__(self, task: Task, dtype: torch.dtype = torch.float32) -> None:
        self.task, self.model = task, task.model().to(dtype)
        self.run: Callable[[nn.Module, Tensor], Tensor] = task.loss
        self.prepare()

    def prepare(self) -> None:
        self.optimizer: Any = torch.optim.AdamW(groups(self.model), lr=LR, fused=True)

    def step(self, rows: Tensor) -> Tensor:
        loss = self.run(self.model, rows)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def steps(self, indices: Tensor) -> Tensor:
        """Losses (K,) of K steps on the rows indices (K, B)."""
        return torch.stack([self.step(rows) for rows in indices])


class Ours(Trainer):
    def prepare(self) -> None:
        inner = torch.optim.AdamW(groups(self.model), lr=LR, fused=True)
        self.optimizer = nk.OptimizerInBackward(self.model, inner)


class Plain(Trainer):
    """torch's AdamW without options: the standard of the checks, also in float64."""

    def prepare(self) -> None:
        self.optimizer = torch.optim.AdamW(groups(self.model), lr=LR)


class Compiled(Trainer):
    """The whole forward and backward compiled."""

    compiles = True

    def prepare(self) -> None:
        super().prepare()
        model = torch.compile(self.model)
        self.run = lambda _, rows: self.task.loss(model, rows)


class Hooks(Trainer):
    """torch's recipe: an optimizer for each parameter, stepped by a hook of its gradient."""

    def prepare(self) -> None:
        self.optimizers = {
            value: torch.optim.AdamW([value], LR, weight_decay=group["weight_decay"], fused=True)
            for group in groups(self.model)
            for value in group["params"]
        }
        for value in self.optimizers:
            value.register_post_accumulate_grad_hook(self.hook)

    def hook(self, value: Tensor) -> None:
        self.optimizers[value].step()
        self.optimizers[value].zero_grad()

    def step(self, rows: Tensor) -> Tensor:
        loss = self.run(self.model, rows)
        loss.backward()
        return loss.detach()


class Optimi(Trainer):
    """optimi's gradient release."""

    def prepare(self) -> None:
        optimi: Any = __import__("optimi")
        torchs = {"betas": (0.9, 0.999), "eps": 1e-8}  # optimi's defaults differ
        self.optimizer = optimi.AdamW(groups(self.model), lr=LR, gradient_release=True, **torchs)
        optimi.prepare_for_gradient_release(self.model, self.optimizer)


TRAINERS: dict[str, type[Trainer]] = {
    "ours": Ours,
    "eager_fused": Trainer,
    "compiled": Compiled,
    "hooks": Hooks,
    "optimi": Optimi,
}


def gap(name: str) -> str | None:
    """Why a trainer cannot run here, or None."""
    if name == "optimi" and find_spec("optimi") is None:
        return "optimi is not installed; pip install torch-optimi"
    return None
