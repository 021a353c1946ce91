"""Steps of blocks, output head and what they share and learn, one batch after another.

Each moves by the gradient at the values that all had before the step (algorithms 1 to 3 of
arXiv:2503.24322v2), so that no call can run several steps of the blocks alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk

from .model import Model
from .normalisation import Normalisation

ORDERS = ("paper", "all-t", "sampled")  # of a DT's blocks


@dataclass(frozen=True)
class Losses:
    """Of K steps.

    Attributes:
        blocks: (K, T), of the blocks; 0 of one that a step did not train.
        trained: (K, T) bool, whether a step trained the block.
        head: (K, 1), of the output head.
    """

    blocks: Tensor
    trained: Tensor
    head: Tensor


class CoupledSteps:
    """Trains a model that learns something that its parts share.

    Attributes:
        passes: over the batches in an epoch: of a DT as many as blocks, in each of which the order
            "paper" trains one block, and "sampled" a block drawn for each batch; else 1.
        named: whether each pass trains one block, whose t a step is told.

    Raises:
        ValueError: the parts do not belong together, or the order is unknown.
    """

    def __init__(self, model: Model, order: str) -> None:
        shared = model.shared
        assert shared is not None  # a model that shares nothing needs no such steps
        assert isinstance(model.blocks, nk.DenoisingBlocks)  # as what is shared demands
        self.model = model
        self.coupled = nk.Coupled(model.blocks, model.head, shared, order=order)
        self.passes = passes(model, order)
        self.named = order == "paper" and model.blocks.T > 1

    def check_rates(self, lr_schedule: str) -> None:
        """
        Raises:
            ValueError: a falling rate is asked for, and the parts have several.
        """
        parts = self.model.optimized.values()
        rates = {part.optimizer.lr for part in parts if part.optimizer is not None}
        if lr_schedule != "constant" and len(rates) > 1:
            raise ValueError(
                f"fit: lr_schedule must be 'constant' where blocks, head and shared have learning "
                f"rates of their own, got {lr_schedule!r} and {sorted(rates)}"
            )

    def run(self, batch: dict[str, Any], block: int, rates: list[float | None]) -> Losses:
        """K steps.

        Args:
            batch: the arguments of `train_steps`, of K batches.
            block: the t that the order "paper" trains.
            rates: of each step; None: the optimizers' own.
        """
        blocks = self.model.blocks
        losses, trained, of_head = [], [], []
        for (x, y), lr in zip(batches(batch), rates, strict=True):
            before = blocks.draws.clone()
            step = self.coupled.step(x, y, block if self.named else None, lr=lr)
            ran = blocks.draws != before
            losses.append(torch.zeros_like(ran, dtype=torch.float32).masked_scatter(ran, step.loss))
            trained.append(ran)
            if step.head_loss is not None:
                of_head.append(step.head_loss)
        return Losses(*(torch.stack(values).cpu() for values in (losses, trained, of_head)))


def passes(model: Model, order: str) -> int:
    """Passes over the batches in an epoch that move the blocks."""
    shared = model.shared
    return 1 if shared is None or not shared.learns or order == "all-t" else model.blocks.T


def batches(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (x (B, F) float32, y (B,)) of the arguments of `train_steps`."""
    X, Y, indices = batch["X"], batch["Y"], batch["indices"]
    if indices is not None:
        X, Y = X[indices], Y[indices]
    K, B = Y.shape
    rows = X.reshape(K * B, -1)
    if batch["normalize"] is not None:
        rows = Normalisation.of(batch["normalize"]).apply(rows)
    return list(zip(rows.view(K, B, -1).unbind(0), Y.unbind(0), strict=True))
