"""Calls of the training loop: steps of blocks or head, their losses and learning rates.

K, the steps of a call, is chosen by measured time; no result depends on it.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from noprop_kernels.optimizers import Optimizer

from .batching import Batches, Batching
from .callbacks import Steps
from .coupled_steps import CoupledSteps
from .epochs import Epoch, Progress
from .model import Model
from .modules.optimizers import BlockOptimizers
from .pace import Pace
from .replicas import slices_of
from .units import Units

CALL_SECONDS = 0.2  # aim for one call: Ctrl-C and the progress bar respond in this time


def learning_rates(lr: float, schedule: str, first: int, K: int, total: int) -> Tensor:
    """(K,) float64: rates of the steps first, first + 1, ... of `total`; independent of K.

    "cosine" falls from lr to 0 as lr (1 + cos(pi step / total)) / 2.
    """
    if schedule == "constant":
        return torch.full((K,), lr, dtype=torch.float64, device="cpu")
    # math.cos, step by step: a vectorised cosine's last bit may depend on K
    shares = [(1 + math.cos(math.pi * step / total)) / 2 for step in range(first, first + K)]
    return lr * torch.tensor(shares, dtype=torch.float64, device="cpu")


class Loop:
    """Runs one call of the blocks or the head from `progress` on.

    Attributes:
        steps: steps of an epoch for each block; the head has T times as many.
        trouble: a line on the first loss of the last call that was not finite, by the replica that
            had one, the earliest first.
        early: the blocks' optimizer in the first half of the epochs; None: their own.
    """

    def __init__(
        self,
        model: Model,
        units: Units,
        batching: Batching,
        batch_size: int,
        epochs: int,
        lr_schedule: str,
        order: str,
    ) -> None:
        self.model, self.batching, self.feed = model, batching, batching.feed
        self.units, self.head = units, model.head if units.head else None
        self.epochs, self.lr_schedule = epochs, lr_schedule
        self.batches = Batches(self.feed.rows, batch_size, model.blocks.plan.has_norm())
        self.steps = self.batches.steps
        self.block_pace, self.head_pace = Pace(CALL_SECONDS), Pace(CALL_SECONDS)
        self.trouble: dict[int, str] = {}
        self.early: Optimizer | None = None
        self.coupled: CoupledSteps | None = None
        shared = model.shared
        if shared is not None and shared.learns:
            self.coupled = CoupledSteps(model, order)
            self.coupled.check_rates(lr_schedule)

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch that move the blocks, in all passes."""
        return self.steps if self.coupled is None else self.steps * self.coupled.passes

    @property
    def rated_steps(self) -> int:
        """Steps of an epoch by which the blocks' rate falls: in the order "paper" of one pass, so
        that each block has the same rates."""
        named = self.coupled is not None and self.coupled.named
        return self.steps if named else self.epoch_steps

    def begins_pass(self, progress: Progress) -> bool:
        """Whether the next step is the first of a further pass over the epoch's batches."""
        done = progress.block_steps
        return 0 < done < self.epoch_steps and done % self.steps == 0

    def complete(self, progress: Progress) -> bool:
        if self.coupled is not None:
            return progress.block_steps >= self.epoch_steps
        block_steps = self.steps if self.units.blocks else 0
        head_steps = 0 if self.head is None else self.model.blocks.T * self.steps
        return progress.block_steps >= block_steps and progress.head_steps >= head_steps

    def check(self) -> None:
        for learner in self.model.learners.values():
            learner.check()

    def epochs_of(self, progress: Progress) -> list[Epoch]:
        """The record of the epoch that `progress` has completed, of each replica."""
        blocks, rows = self.model.blocks, self.batches.rows
        R, n = blocks.replicas, len(self.units.blocks)
        steps = self.rated_steps
        # the head's, which takes more steps, falls to the same rates
        optimizer = (
            blocks.optimizer if self.units.blocks or self.head is None else self.head.optimizer
        )
        last = self.rates(optimizer, progress.epoch, steps - 1, steps, 1)
        all_skipped = progress.skipped or [0] * (R * n)  # early runs did not count them
        head_skipped = progress.head_skipped or [0] * R
        all_seen = progress.seen or [rows] * (R * n)
        passes = blocks.T if self.coupled is None else self.coupled.passes  # of the head
        epochs = []
        for replica in range(R):
            own = slices_of(replica, n)
            loss_sum, skipped = progress.loss_sum[own], all_skipped[own]
            counts = [seen - out for seen, out in zip(all_seen[own], skipped, strict=True)]
            head_loss = None
            if self.head is not None:
                samples = passes * rows - head_skipped[replica]
                head_loss = _mean(progress.head_loss_sum[replica], samples)
            epochs.append(
                Epoch(
                    epoch=progress.epoch + 1,
                    loss=list(map(_mean, loss_sum, counts)),
                    error=self.errors(loss_sum, counts),
                    head_loss=head_loss,
                    lr=last.item(),
                    skipped=skipped,
                    seconds=progress.epoch_seconds,
                    samples_per_second=rows / progress.epoch_seconds,
                    replica=replica,
                    replicas=R,
                    blocks=self.units.blocks,
                )
            )
        return epochs

    def which(self, replica: int) -> str:
        """The replica, where there are several."""
        if self.model.replicas == 1:
            return ""
        return f" of replica {replica}, seed {self.model.seeds[replica]},"

    def errors(self, loss_sum: list[float], counts: list[int]) -> list[float | None]:
        """Per block, the mean error of so many samples; None where a block has no one weight."""
        blocks, ts = self.model.blocks, self.units.blocks
        if blocks.goal.timed:
            return [None] * len(ts)
        t = torch.tensor(ts, dtype=torch.int64, device="cpu")
        weights = blocks.goal.levels(t).weight.tolist()
        return [
            _mean(total, weight * count)
            for total, weight, count in zip(loss_sum, weights, counts, strict=True)
        ]

    def rates(
        self,
        optimizer: Optimizer | BlockOptimizers | None,
        epoch: int,
        done: int,
        steps: int,
        K: int,
    ) -> Tensor:
        """(K,) learning rates of a learner after `done` of its `steps` of this epoch."""
        assert optimizer is not None  # a learner without one has raised at its first step
        first, total = epoch * steps + done, self.epochs * steps
        return learning_rates(optimizer.lr, self.lr_schedule, first, K, total)

    def first_step(self, progress: Progress) -> int:
        """The number of the next step among all of the training, the head's own included."""
        of_head = 0
        if self.coupled is None and self.head is not None:
            of_head = self.model.blocks.T * self.steps
        of_blocks = self.epoch_steps if self.units.blocks else 0
        done = progress.block_steps + progress.head_steps
        return progress.epoch * (of_blocks + of_head) + done

    @contextmanager
    def decaying(self, progress: Progress) -> Iterator[None]:
        """Gives the blocks the optimizer of this epoch for a call, and their own back, by which
        they are saved."""
        blocks: Any = self.model.blocks  # of this library, where there is an early optimizer
        own = blocks.optimizer
        if self.early is not None and 2 * progress.epoch < self.epochs:
            blocks.optimizer = self.early
        try:
            yield
        finally:
            blocks.optimizer = own

    def train(self, progress: Progress, order: Tensor) -> Steps:
        """One call from `progress` on; returns its steps.

        Args:
            order: the epoch's rows.
        """
        if self.coupled is not None:
            return self.train_coupled(self.coupled, progress, order)
        if self.units.blocks and progress.block_steps < self.steps:
            return self.train_blocks(progress, order)
        return self.train_head(progress, order)

    def train_coupled(self, coupled: CoupledSteps, progress: Progress, order: Tensor) -> Steps:
        done, total = progress.block_steps, self.epoch_steps
        at, step = divmod(done, self.steps)
        indices = self.batches.take(order, step, self.block_pace.K)
        K, B = indices.shape
        rated, first = self.rated_steps, self.first_step(progress)
        optimizer = self.model.blocks.optimizer
        rates = self.rates(optimizer, progress.epoch, done % rated, rated, K)
        lr: list[float | None] = [None] * K  # each part its own
        if self.lr_schedule != "constant":
            lr = [*rates.tolist()]
        with self.block_pace.measure(K):
            batch = self.batching.take(indices, progress.epoch * total + done)
            losses = coupled.run(batch, at + 1, lr)
        names = [f"block {t}" for t in self.model.blocks.held]
        if self.model.head is not None:
            sums, skipped = self.account(losses.head, B, progress.epoch, step, ["the head"])
            progress.head_loss_sum = _added(progress.head_loss_sum, sums)
            progress.head_skipped = _added(progress.head_skipped, skipped)
        of_head = self.trouble
        sums, skipped = self.account(losses.blocks, B, progress.epoch, step, names)
        self.trouble = of_head | self.trouble
        progress.loss_sum = _added(progress.loss_sum, sums)
        progress.skipped = _added(progress.skipped, skipped)
        progress.seen = _added(progress.seen, (losses.trained.sum(0) * B).tolist())
        before = done * B // coupled.passes
        progress.block_steps += K
        loss = losses.blocks.masked_fill(~losses.trained, math.nan)
        return Steps(
            epoch=progress.epoch + 1,
            first=first,
            lr=rates,
            samples=progress.block_steps * B // coupled.passes - before,
            loss=loss.view(K, 1, -1),
            blocks=self.units.blocks,
            head_loss=None if self.model.head is None else losses.head,
        )

    def train_blocks(self, progress: Progress, order: Tensor) -> Steps:
        indices = self.batches.take(order, progress.block_steps, self.block_pace.K)
        blocks, B = self.model.blocks, indices.shape[-1]
        first = self.first_step(progress)
        lr = self.rates(
            blocks.optimizer, progress.epoch, progress.block_steps, self.steps, len(indices)
        )
        with self.block_pace.measure(len(indices)):
            step = progress.epoch * self.steps + progress.block_steps
            batch = self.batching.take(indices, step)
            losses = blocks.train_steps(**batch, blocks=self.units.blocks, lr=lr).cpu()  # (K, R n)
        names = [f"block {t}" for t in self.units.blocks]
        sums, skipped = self.account(losses, B, progress.epoch, progress.block_steps, names)
        progress.loss_sum = _added(progress.loss_sum, sums)
        progress.skipped = _added(progress.skipped, skipped)
        progress.block_steps += len(indices)
        loss = losses.view(len(indices), blocks.replicas, -1)
        samples = len(indices) * B
        return Steps(progress.epoch + 1, first, lr, samples, loss=loss, blocks=self.units.blocks)

    def train_head(self, progress: Progress, order: Tensor) -> Steps:
        head, T = self.head, self.model.blocks.T
        assert head is not None  # `complete` counts no head steps without a head
        block, step = divmod(progress.head_steps, self.steps)
        first = self.first_step(progress)
        indices = self.batches.take(order, step, self.head_pace.K)
        lr = self.rates(
            head.optimizer, progress.epoch, progress.head_steps, self.steps * T, len(indices)
        )
        with self.head_pace.measure(len(indices)):
            losses = head.train_steps(
                self.feed.Y, indices, block + 1, lr=lr, row_weight=self.feed.row_weight
            ).cpu()  # (K, R)
        sums, skipped = self.account(losses, indices.shape[-1], progress.epoch, step, ["the head"])
        progress.head_loss_sum = _added(progress.head_loss_sum, sums)
        progress.head_skipped = _added(progress.head_skipped, skipped)
        progress.head_steps += len(indices)
        # where there is no block to count them the samples are those of the last pass
        counted = not self.units.blocks and block == T - 1
        samples = indices.shape[-1] * len(indices) if counted else 0
        return Steps(progress.epoch + 1, first, lr, samples, head_loss=losses)

    def account(
        self, losses: Tensor, B: int, epoch: int, done: int, names: Sequence[str]
    ) -> tuple[list[float], list[int]]:
        """Sums the losses of K steps over the samples, per learner, and counts the samples left out
        because a loss is not finite; `trouble` describes the first of those.

        Args:
            losses: (K, R n), of the n learners of each replica.
            B: rows of a batch.
            epoch, done: the epochs, and steps of this one, before these.
            names: of the learners.
        """
        finite = losses.isfinite()
        self.trouble = {}
        for step, column in (~finite).nonzero().tolist():
            replica, learner = divmod(column, len(names))
            self.trouble.setdefault(
                replica,
                f"fit: the loss of {names[learner]}{self.which(replica)} is "
                f"{losses[step, column].item()} in epoch {epoch + 1}, step {done + step + 1} of "
                f"{self.steps}: nothing is learned from it; a smaller learning rate may help",
            )
        sums = losses.double().where(finite, 0).sum(0) * B
        return sums.tolist(), ((~finite).sum(0) * B).tolist()


def _added(so_far: list, more: list) -> list:
    return [a + b for a, b in zip(so_far, more, strict=True)] if so_far else more


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
