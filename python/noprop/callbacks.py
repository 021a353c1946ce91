"""What follows a training from outside: the calls that `fit` makes after steps, epochs and saves.

No bit of a training depends on them, since they are told and asked for nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .epochs import Epoch, Progress
from .errors import InputError

CLOCK = time.monotonic


@dataclass(frozen=True)
class Steps:
    """The K steps of one call of the kernels.

    In each epoch the steps of the blocks come first and those of the head after them, T times as
    many. Where something shared is learned, blocks and head take each step together.

    Attributes:
        epoch: that of the steps, from 1.
        first: number of the first of them among all steps of the training, from 0.
        lr: (K,) float64, learning rates of the blocks, or of the head in steps of its own.
        samples: of the steps, each counted once for all blocks and replicas; 0 of the head's own,
            but those of the last pass where the head is trained alone.
        loss: (K, R, n) float32 on the CPU, of the n `blocks` of replica r in each step, the mean
            over the batch of weight * |u_hat - u_y|^2 (arXiv:2503.24322v2, eq. 8), NaN where a step
            did not train the block; None: these are steps of the head alone.
        head_loss: (K, R) float32 on the CPU, the head's; None: these are steps of blocks alone.
        blocks: the t of the blocks that are trained: all, or the units of `fit`.
    """

    epoch: int
    first: int
    lr: Tensor
    samples: int
    loss: Tensor | None = None
    head_loss: Tensor | None = None
    blocks: tuple[int, ...] = ()

    @property
    def numbers(self) -> range:
        """The numbers of the steps."""
        return range(self.first, self.first + len(self.lr))


class Callback:
    """Follows a training: `fit(callbacks=[...])` calls these, which by themselves do nothing.

    They run in the training's process between two calls of the kernels and must not change the
    model; no bit depends on them. An event goes to all callbacks in the order of the list. An error
    of one of them ends the training, and those after it miss the event: `fit` saves, where it was
    told how, and raises the error as it is. The model and `progress` are then in the state after
    the steps that were told last, from which `fit` can go on.
    """

    def on_step(self, steps: Steps) -> None:
        """Called after each call of the kernels. A call has several steps, as many as its time
        affords, so that steps are told in groups, each step once, in order."""

    def on_epoch(self, epoch: Epoch) -> None:
        """Called after each complete epoch, of each replica in turn; its time does not count as
        training."""

    def on_checkpoint(self, folder: Path) -> None:
        """Called after each save into `folder`."""


class Listeners:
    """Those to whom `fit` tells its events, and what saves in between.

    Args:
        callbacks: in their order.
        on_call, on_epoch: told before them.
        checkpoint: saves, and returns the folder; None: nothing is saved.
        seconds: the least time between two saves.

    Raises:
        InputError: callbacks hold something else.
    """

    def __init__(
        self,
        callbacks: Sequence[Callback],
        on_call: Callable[[Progress, int], None],
        on_epoch: Callable[[Epoch], None],
        checkpoint: Callable[[], Path] | None,
        seconds: float,
    ) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise InputError(
                    f"fit: callbacks must be noprop.Callback objects, got {callback!r}"
                )
        self.callbacks, self.seconds, self.saves = list(callbacks), seconds, checkpoint
        self.on_call, self.on_epoch = on_call, on_epoch
        self.saved_at = CLOCK()

    def step(self, progress: Progress, steps: Steps) -> None:
        """Tells steps that are done, and saves if that is due."""
        with self.saved_before(Exception):
            self.on_call(progress, steps.samples)
            for callback in self.callbacks:
                callback.on_step(steps)
        if self.saves is not None and CLOCK() - self.saved_at > self.seconds:
            self.checkpoint()

    def epoch(self, epoch: Epoch) -> None:
        """Tells a complete epoch."""
        with self.saved_before(Exception):
            self.on_epoch(epoch)
            for callback in self.callbacks:
                callback.on_epoch(epoch)

    def checkpoint(self) -> None:
        """Saves now, and tells it."""
        if self.saves is None:
            return
        folder = self.saves()
        self.saved_at = CLOCK()
        for callback in self.callbacks:
            callback.on_checkpoint(folder)

    @contextmanager
    def saved_before(self, *errors: type[Exception]) -> Iterator[None]:
        """Saves before one of these errors goes on, and tells nobody, since a callback may be what
        failed. It is for errors that leave the model and its progress in one state."""
        try:
            yield
        except errors:
            if self.saves is not None:
                self.saves()
            raise
