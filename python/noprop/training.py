"""The training loop: per epoch every block over the same batches, then a head, t by t.

With fixed embeddings no block needs another. All blocks run together in calls of K steps, with the
same result as the paper's order (t outside, batches inside). The head, where the model has one, is
trained separately in the order (epoch, t, batch). K is chosen by measured time; no result depends
on it.

Where embeddings or a schedule are learned, blocks, head and these take each step together
(coupled_steps.py).
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.arguments.scalars import seed_list
from noprop_kernels.check import LARGEST, check_number
from noprop_kernels.optimizers import Optimizer

from . import augmentation
from .augmentation import CropFlip
from .batching import Batches, Batching
from .callbacks import Callback, Listeners, Steps
from .coupled_steps import CoupledSteps
from .defaults import default_epochs
from .epochs import Epoch, Progress
from .errors import InputError
from .feeding import feed_of
from .model import Model
from .modules.optimizers import BlockOptimizers
from .pace import Pace
from .replicas import slices_of
from .units import Units

LR_SCHEDULES = ("constant", "cosine")
NONFINITE = ("stop", "skip")
CHECKPOINT_SECONDS = 30.0
CALL_SECONDS = 0.2  # aim for one call: Ctrl-C and the progress bar respond in this time
CLOCK = time.perf_counter


class NotFinite(ValueError):
    """A loss was NaN or infinite, and `fit` was called with nonfinite="stop".

    The step changed no weight of its learner, and `progress` matches the model: it can be saved,
    and `fit` can resume from it.

    Attributes:
        progress: the state of the run after the call with that step.
    """

    def __init__(self, text: str, progress: Progress) -> None:
        super().__init__(text)
        self.progress = progress


def learning_rates(lr: float, schedule: str, first: int, K: int, total: int) -> Tensor:
    """(K,) float64: rates of the steps first, first + 1, ... of `total`; independent of K.

    "cosine" falls from lr to 0 as lr (1 + cos(pi step / total)) / 2.
    """
    if schedule == "constant":
        return torch.full((K,), lr, dtype=torch.float64, device="cpu")
    # math.cos, step by step: a vectorised cosine's last bit may depend on K
    shares = [(1 + math.cos(math.pi * step / total)) / 2 for step in range(first, first + K)]
    return lr * torch.tensor(shares, dtype=torch.float64, device="cpu")


def fit(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    epochs: int | None = None,
    batch_size: int = 128,
    seed: int | Sequence[int] = 0,
    lr_schedule: str = "constant",
    early_weight_decay: float | None = None,
    nonfinite: str | None = None,
    augment: str = "none",
    order: str = "paper",
    units: Iterable[int | str] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_call: Callable[[Progress, int], None] = lambda progress, samples: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Callable[[], Path] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    say: Callable[[str], None] = lambda line: warnings.warn(line, stacklevel=3),
) -> Progress:
    """Trains `model` until `epochs` epochs are complete, or `stop()` is true.

    Every block sees each row once an epoch; a head sees it T times (arXiv:2503.24322v2, alg. 1).
    The order of the rows is a function of (seed, epoch). Replicas are trained at once, each with
    the bits of training alone. Stopping by `stop` and resuming from the returned `progress` gives
    the same bits as an uninterrupted training. A KeyboardInterrupt is not caught: the model can
    predict, but its blocks may be some steps apart, and no `progress` matches it.

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
        sample_weight: (rows,) numbers at least 0, by which the rows count in the loss and in the
            normalisation that is measured; only their ratios matter. None: all count the same.
            Going on from `progress` needs them again. Data sets and loaders have none, and a model
            that learns its embeddings or its schedule takes none.
        epochs: number of complete epochs at the end, those of `progress` included; None: enough for
            the number of rows, by `default_epochs`.
        batch_size: B, unless a loader has its own; a short last batch is one more step.
        seed: for the order of the rows and the augmentation; the model has its own. One for all
            replicas, or a list of one for each.
        lr_schedule: "constant", as in the paper, or "cosine", by which the optimizers' lr falls
            to 0 over all `epochs`.
        early_weight_decay: of the blocks in the first half of `epochs`, in place of their
            optimizer's; None: the optimizer's own throughout. With a stronger one at first
            the blocks ignore directions of x that are noise, and are as sure at the end as with
            the later one alone.
        nonfinite: the reaction to a loss that is NaN or infinite; such a step changes no weight of
            its learner. "stop" raises NotFinite after the call, "skip" continues and counts it;
            None: "stop", or of several replicas "skip", so that the others go on, and `say` has the
            first of each replica.
        augment: "none", or "crop-flip" of images: a border of 4 pixels of raw 0, of which a random
            window is cut out, mirrored half of the time; a new draw for each row and step, the
            same for all blocks.
        order: of a DT that learns its embeddings: "paper", in which t is the outer loop of an
            epoch and each block in turn sees all batches; "sampled", as many steps, each of a block
            drawn for it; "all-t", in which a step trains all blocks on its batch, and the
            embeddings by the mean over t, another algorithm than the paper's. Elsewhere it changes
            nothing.
        units: the t of the blocks to train, and "head"; None: all that the model has. No other
            changes, and each has the bits of training with all others. Where something shared is
            learned all are needed.
        progress: the state to resume from, of these units; updated in place.
        stop: called after every call, several times a second; true ends the training.
        on_call: called with `progress` and the call's samples, each counted once for all blocks
            and replicas.
        on_epoch: called with every complete epoch, of each replica in turn; its time does not count
            as training.
        callbacks: told each step, epoch and save; on_call and on_epoch are functions in place of a
            callback, called before these.
        checkpoint: saves what resuming needs and returns the folder, as `Model.save` does. It is
            called between two calls where the last save is `checkpoint_seconds` ago, at the end,
            and before NotFinite, a MemoryError of a call, or an error of a callback is raised.
        checkpoint_seconds: the least time between two saves.
        say: called with a line on what the training leaves out; by default a Python warning.

    Returns:
        `progress`, or a new one.

    Raises:
        ValueError: an argument does not fit.
        NotFinite: a loss was not finite, where that stops.
        Exception: whatever a callback raises; `progress` and the model match.
    """
    if not isinstance(model, Model):
        raise InputError(f"fit: model must be a noprop.Model, got {type(model).__name__}")
    if (epochs is not None and epochs < 0) or batch_size < 1:
        raise ValueError(
            f"fit: epochs must be at least 0 and batch_size at least 1, "
            f"got {epochs} and {batch_size}"
        )
    if lr_schedule not in LR_SCHEDULES:
        raise ValueError(f"fit: lr_schedule must be one of {LR_SCHEDULES}, got {lr_schedule!r}")
    if nonfinite is not None and nonfinite not in NONFINITE:
        raise ValueError(f"fit: nonfinite must be one of {NONFINITE}, got {nonfinite!r}")
    listeners = Listeners(callbacks, on_call, on_epoch, checkpoint, checkpoint_seconds)
    stops = nonfinite == "stop" or (nonfinite is None and model.replicas == 1)
    seeds = seeds_of(seed, model.replicas)
    if sample_weight is not None and model.shared is not None and model.shared.learns:
        raise InputError(
            "fit: sample_weight must be None where embeddings or a schedule are learned, whose "
            "steps have no weights of rows"
        )
    if sample_weight is not None and not isinstance(model.blocks, nk.DenoisingBlocks):
        raise InputError(
            "fit: sample_weight must be None of networks of one's own, whose steps have no "
            "weights of rows"
        )
    feed = feed_of(model, x, y, batch_size, sample_weight)
    model.tensors()  # what cannot be saved raises now, and not after the training
    batch_size = feed.batch_size or batch_size
    epochs = default_epochs(feed.rows, batch_size) if epochs is None else epochs
    assert model.inputs is not None  # by feed_of
    augmentation.check("fit", augment, model.inputs, model.encoder is not None)
    crops = []
    if augment != "none":
        crops = [CropFlip(model.inputs, model.normalize, seed) for seed in seeds]
    chosen = units_of(model, units)
    batching = Batching(feed, seeds, crops)
    loop = _Loop(model, chosen, batching, batch_size, epochs, lr_schedule, order)
    loop.early = early_optimizer(model.blocks.optimizer, early_weight_decay)
    progress = progress if progress is not None else Progress()
    told = set()  # replicas of which a loss that is not finite was told
    if loop.batches.left_out and progress.epoch < epochs:
        say(
            f"{feed.rows} rows in batches of {loop.batches.size} leave a last one of 1 row, and "
            "batch norm needs 2: each epoch leaves out another row"
        )

    while progress.epoch < epochs:
        started = CLOCK()
        with listeners.saved_before(MemoryError):
            rows = loop.batching.order(progress.epoch)
        while not loop.complete(progress):
            if stop():
                listeners.checkpoint()
                return progress
            with listeners.saved_before(MemoryError):  # which has changed nothing
                if loop.begins_pass(progress):
                    rows = loop.batching.order(progress.epoch)  # a loader begins again
                with loop.decaying(progress):
                    steps = loop.train(progress, rows)
            now = CLOCK()
            progress.add_time(now - started)
            listeners.step(progress, steps)
            if loop.trouble and stops:
                loop.check()  # raises the cause, where a GPU found it in the data
                listeners.checkpoint()
                text = next(iter(loop.trouble.values()))
                raise NotFinite(f'{text}, and nonfinite="skip" goes on', progress)
            if nonfinite is None:
                for replica in sorted(loop.trouble.keys() - told):
                    say(f"{loop.trouble[replica]}; all replicas go on")
                told.update(loop.trouble)
            started = CLOCK()
        loop.check()  # raises what a GPU found in the last calls
        done = loop.epochs_of(progress)
        progress.finish_epoch()
        for epoch in done:
            listeners.epoch(epoch)
    listeners.checkpoint()
    return progress


def seeds_of(seed: int | Sequence[int], replicas: int) -> list[int]:
    """A seed for each replica, or one for all.

    Raises:
        ValueError: there are not one or as many as replicas.
    """
    seeds = seed_list("fit", seed)
    if len(seeds) not in (1, replicas):
        raise ValueError(f"fit: seed must be one or {replicas}, one per replica, got {seed!r}")
    return seeds


def units_of(model: Model, units: Iterable[int | str] | None) -> Units:
    """The units of a training.

    Raises:
        ValueError: the model has not one of them, or all would have to be trained.
    """
    chosen = model.units if units is None else Units.of(units)
    if missing := chosen - model.units:
        raise InputError(f"fit: units must be among {model.units}, got {missing}")
    if not chosen:
        raise InputError(f"fit: units must be some of {model.units}, got none")
    learns = model.shared is not None and model.shared.learns
    if learns and chosen != model.units:
        raise InputError(
            f"fit: units must be all, {model.units}, where something that they share is learned, "
            f"got {chosen}"
        )
    return chosen


def early_optimizer(
    optimizer: Optimizer | BlockOptimizers | None, decay: float | None
) -> Optimizer | None:
    """The blocks' optimizer with another weight decay; None: their own.

    Raises:
        ValueError: decay is no number of at least 0, or the optimizers are of torch.
    """
    if decay is None or optimizer is None:
        return None
    if isinstance(optimizer, BlockOptimizers):
        raise ValueError(
            "fit: early_weight_decay must be None of networks of one's own, whose optimizers have "
            f"groups of parameters, got {decay!r}"
        )
    decay = check_number(
        "fit", "early_weight_decay", decay, "be at least 0", lambda decay: 0 <= decay <= LARGEST
    )
    return replace(optimizer, weight_decay=decay)


class _Loop:
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
