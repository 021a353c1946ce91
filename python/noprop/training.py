"""The training loop: per epoch every block over the same batches, then the head, t by t.

With fixed embeddings no block needs another, so that all blocks run together in calls of K steps,
and the result is that of the paper's order (t outside, batches inside). The head is a learner of
its own and goes in the order (epoch, t, batch). K is chosen from measured time alone: no result
depends on it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from noprop_kernels.optimizers import Optimizer

from .feeding import Feed, feed_of
from .model import Model

LR_SCHEDULES = ("constant", "cosine")
CALL_SECONDS = 0.2  # aim for one call: Ctrl-C and the progress bar answer at this pace
CLOCK = time.perf_counter


@dataclass
class Progress:
    """Where a run stands: everything beside the model that a resumed run needs.

    Attributes:
        epoch: complete epochs.
        block_steps, head_steps: steps done of the epoch that is under way.
        loss_sum: per block, over the epoch's samples so far; head_loss_sum: the head's, over all t.
        seconds, epoch_seconds: time spent on training so far, in all epochs and in this one.
    """

    epoch: int = 0
    block_steps: int = 0
    head_steps: int = 0
    loss_sum: list[float] = field(default_factory=list)
    head_loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def add_time(self, seconds: float) -> None:
        self.seconds += seconds
        self.epoch_seconds += seconds

    def finish_epoch(self) -> None:
        self.epoch += 1
        self.block_steps = self.head_steps = 0
        self.loss_sum, self.head_loss_sum, self.epoch_seconds = [], 0.0, 0.0


@dataclass(frozen=True)
class Epoch:
    """A complete epoch.

    Attributes:
        epoch: its number, from 1.
        loss: per block, mean over the samples.
        head_loss: mean over the samples and t.
        seconds: its training time.
        samples_per_second: training samples, each counted once for all blocks.
    """

    epoch: int
    loss: list[float]
    head_loss: float
    seconds: float
    samples_per_second: float


class Batches:
    """The batches of an epoch: full ones, and a short last one.

    A last batch of one row is left out where the plan has batch norm, which needs two.
    """

    def __init__(self, rows: int, batch_size: int, has_norm: bool) -> None:
        self.size = batch_size
        self.full, self.tail = divmod(rows, batch_size)
        if self.tail == 1 and has_norm:
            self.tail = 0
        if self.steps == 0:
            raise ValueError(f"fit: x must have at least 2 rows for batch norm, got {rows}")

    @property
    def steps(self) -> int:
        return self.full + (self.tail > 0)

    @property
    def rows(self) -> int:
        return self.full * self.size + self.tail

    def take(self, order: Tensor, step: int, K: int) -> Tensor:
        """Indices (k, B) of at most K steps from `step` on, all of one size."""
        start = step * self.size
        if step >= self.full:
            return order[start : start + self.tail][None]
        k = min(K, self.full - step)
        return order[start : start + k * self.size].view(k, self.size)


def learning_rates(lr: float, schedule: str, first: int, K: int, total: int) -> Tensor:
    """(K,) float64: of the steps first, first + 1, ... among `total`, the same for any K.

    "cosine" falls from lr to 0 as lr (1 + cos(pi step / total)) / 2.
    """
    if schedule == "constant":
        return torch.full((K,), lr, dtype=torch.float64)
    # math.cos, step by step: a vectorised cosine's last bit may depend on K
    shares = [(1 + math.cos(math.pi * step / total)) / 2 for step in range(first, first + K)]
    return lr * torch.tensor(shares, dtype=torch.float64)


class Pace:
    """How many steps a call makes: what takes half to all of CALL_SECONDS, at most twice as many
    as the last ones.
    """

    def __init__(self) -> None:
        self.K = 1

    @contextmanager
    def measure(self, steps: int) -> Iterator[None]:
        begun = CLOCK()
        yield
        affordable = int(steps * CALL_SECONDS / max(CLOCK() - begun, 1e-9))
        # powers of 2, so that a GPU needs few CUDA graphs
        self.K = max(1, min(2 * self.K, 1 << affordable.bit_length() >> 1))


def fit(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    epochs: int = 10,
    batch_size: int = 128,
    seed: int = 0,
    lr_schedule: str = "constant",
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_call: Callable[[Progress, int], None] = lambda progress, samples: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Progress:
    """Trains `model` until `epochs` epochs are complete, or `stop()` is true.

    Every block sees each row once an epoch; the head sees it T times (arXiv:2503.24322v2, alg. 1).
    The order of the rows is a function of (seed, epoch). Stopping by `stop` and going on with the
    returned `progress` gives the same bits as never having stopped. A KeyboardInterrupt is not
    caught: it leaves a model that predicts, but no `progress` that fits it.

    Args:
        model: trained in place. Where it has none, it gets the format of x, the classes' names, and
            a normalisation: a mean and a deviation of each column of a table, or channel of images.
        x: (rows, F), (rows, H, W) or (rows, C, H, W): a tensor, an array of numpy, also one in a
            file, a table of pandas, or lists. uint8 counts as x / 255, all else as it is. Or a data
            set or a loader of torch that gives pairs (x, y), which is read once for what the model
            does not know yet, then once an epoch.
        y: (rows,) or (rows, 1) whole numbers, texts or truth values, or (rows, C) one-hot; whole
            numbers below the model's M are the classes of those numbers, others are numbered in
            sorted order.
        epochs: to be complete in the end, those of `progress` included.
        batch_size: B, unless a loader has its own; a short last batch is a step of its own.
        seed: of the order of the rows; the model has its own.
        lr_schedule: "constant", as in the paper, or "cosine", by which the optimizers' lr falls
            to 0 over all `epochs`.
        progress: where to go on; moved along in place.
        stop: asked after every call, several times a second.
        on_call: told `progress` and the call's samples, each counted once for all blocks.
        on_epoch: told of every complete epoch; its time counts as no training.

    Returns:
        `progress`, or a new one.

    Raises:
        ValueError: an argument does not fit.
    """
    if epochs < 0 or batch_size < 1:
        raise ValueError(
            f"fit: epochs must be at least 0 and batch_size at least 1, "
            f"got {epochs} and {batch_size}"
        )
    if lr_schedule not in LR_SCHEDULES:
        raise ValueError(f"fit: lr_schedule must be one of {LR_SCHEDULES}, got {lr_schedule!r}")
    feed = feed_of(model, x, y, batch_size)
    loop = _Loop(model, feed, feed.batch_size or batch_size, epochs, lr_schedule)
    progress = progress if progress is not None else Progress()
    T, steps, rows = model.blocks.goal.T, loop.batches.steps, loop.batches.rows

    while progress.epoch < epochs:
        started = CLOCK()
        order = feed.order(seed, progress.epoch)
        while progress.head_steps < T * steps:
            if stop():
                return progress
            if progress.block_steps < steps:
                samples = loop.train_blocks(progress, order)
            else:
                samples = loop.train_head(progress, order)
            now = CLOCK()
            progress.add_time(now - started)
            on_call(progress, samples)
            started = CLOCK()
        for part in (model.blocks, model.head):
            part.check()  # what a GPU found in the last calls
        done = Epoch(
            epoch=progress.epoch + 1,
            loss=[total / rows for total in progress.loss_sum],
            head_loss=progress.head_loss_sum / (T * rows),
            seconds=progress.epoch_seconds,
            samples_per_second=rows / progress.epoch_seconds,
        )
        progress.finish_epoch()
        on_epoch(done)
    return progress


class _Loop:
    """One call to the blocks or the head, where `progress` stands; returns its samples."""

    def __init__(
        self,
        model: Model,
        feed: Feed,
        batch_size: int,
        epochs: int,
        lr_schedule: str,
    ) -> None:
        self.model, self.feed = model, feed
        self.epochs, self.lr_schedule = epochs, lr_schedule
        self.batches = Batches(feed.rows, batch_size, model.blocks.plan.has_norm())
        self.block_pace, self.head_pace = Pace(), Pace()

    def rates(
        self, optimizer: Optimizer | None, epoch: int, done: int, steps: int, K: int
    ) -> Tensor:
        """(K,) learning rates of a learner that has done `done` of its `steps` of this epoch."""
        assert optimizer is not None  # a learner without one has refused its first step
        first, total = epoch * steps + done, self.epochs * steps
        return learning_rates(optimizer.lr, self.lr_schedule, first, K, total)

    def train_blocks(self, progress: Progress, order: Tensor) -> int:
        indices = self.batches.take(order, progress.block_steps, self.block_pace.K)
        blocks, steps = self.model.blocks, self.batches.steps
        lr = self.rates(blocks.optimizer, progress.epoch, progress.block_steps, steps, len(indices))
        with self.block_pace.measure(len(indices)):
            losses = blocks.train_steps(**self.feed.take(indices), lr=lr)  # (K, T)
            sums = (losses.double().sum(0) * indices.shape[1]).tolist()
        so_far = progress.loss_sum or [0.0] * len(sums)
        progress.loss_sum = [a + b for a, b in zip(so_far, sums, strict=True)]
        progress.block_steps += len(indices)
        return indices.numel()

    def train_head(self, progress: Progress, order: Tensor) -> int:
        block, step = divmod(progress.head_steps, self.batches.steps)
        indices = self.batches.take(order, step, self.head_pace.K)
        head, steps = self.model.head, self.batches.steps * self.model.blocks.T
        lr = self.rates(head.optimizer, progress.epoch, progress.head_steps, steps, len(indices))
        with self.head_pace.measure(len(indices)):
            losses = head.train_steps(self.feed.Y, indices, block + 1, lr=lr)  # (K, 1)
            progress.head_loss_sum += float(losses.double().sum()) * indices.shape[1]
        progress.head_steps += len(indices)
        return 0
