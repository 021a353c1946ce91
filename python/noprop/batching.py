"""The batches of an epoch, and those of replicas: each has its own order and augmentation."""

from typing import Any

import torch
from torch import Tensor

from .augmentation import CropFlip
from .feeding import Feed


class Batches:
    """The batches of an epoch: full ones, and a short last one if rows remain.

    A last batch of one row is left out where the plan has batch norm, which needs two.

    Attributes:
        left_out: rows of an epoch that no step uses, 0 or 1.
    """

    def __init__(self, rows: int, batch_size: int, has_norm: bool) -> None:
        self.size = batch_size
        self.full, self.tail = divmod(rows, batch_size)
        self.left_out = 1 if self.tail == 1 and has_norm else 0
        self.tail -= self.left_out
        if self.steps == 0:
            raise ValueError(f"fit: x must have at least 2 rows for batch norm, got {rows}")

    @property
    def steps(self) -> int:
        return self.full + (self.tail > 0)

    @property
    def rows(self) -> int:
        return self.full * self.size + self.tail

    def take(self, order: Tensor, step: int, K: int) -> Tensor:
        """Indices (k, B) of at most K steps from `step` on, all of one size; of orders (R, rows)
        (k, R, B).
        """
        start = step * self.size
        k, B = (1, self.tail) if step >= self.full else (min(K, self.full - step), self.size)
        steps = order[..., start : start + k * B].unflatten(-1, (k, B))
        return steps.movedim(-2, 0).contiguous()


class Batching:
    """Gives the arguments of `train_steps`, from one feed for all replicas.

    Args:
        feed: the data.
        seeds: of each replica's order and augmentation; one is that of all.
        crops: of each seed, or none.
    """

    def __init__(self, feed: Feed, seeds: list[int], crops: list[CropFlip]) -> None:
        self.feed, self.seeds, self.crops = feed, seeds, crops

    def order(self, epoch: int) -> Tensor:
        """An epoch's rows in the order of training: (rows,), of several seeds (R, rows)."""
        orders = [self.feed.order(seed, epoch) for seed in self.seeds]
        return orders[0] if len(orders) == 1 else torch.stack(orders)

    def take(self, indices: Tensor, first_step: int) -> dict[str, Any]:
        """K steps from `first_step` of the training on, for rows (K, B) or (K, R, B)."""
        if indices.ndim == 2:
            batch = self.feed.take(indices)
            return self.crops[0](batch, first_step) if self.crops else batch
        if not self.crops:
            return as_rows(self.feed.take(indices))
        each = [
            crop(self.feed.take(of_replica), first_step)
            for crop, of_replica in zip(self.crops, indices.unbind(1), strict=True)
        ]
        names = [name for name in ("X", "Y", "row_weight") if name in each[0]]
        gathered = {name: torch.stack([batch[name] for batch in each], 1) for name in names}
        return as_rows(each[0] | gathered)


def as_rows(batch: dict[str, Any]) -> dict[str, Any]:
    """Gathered batches (K, R, B, F) as a data set of K R B rows, each taken once, since
    `train_steps` takes batches of replicas by indices alone; others as they are.
    """
    if batch["indices"] is not None:
        return batch
    Y = batch["Y"]
    indices = torch.arange(Y.numel(), dtype=torch.int64, device=Y.device).view(Y.shape)
    made = batch | {"X": batch["X"].flatten(0, 2), "Y": Y.flatten(), "indices": indices}
    if "row_weight" in made:
        made["row_weight"] = made["row_weight"].flatten()
    return made
