"""What units that are trained together have done: the state they resume from, and the record of
each epoch."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Progress:
    """The state of a training beside its model: all that is needed to resume it.

    Attributes:
        epoch: number of complete epochs.
        block_steps, head_steps: steps done in the current epoch; where something shared is learned
            block_steps counts those of all passes over the batches, and head_steps is 0.
        loss_sum: per trained block, summed over the epoch's samples so far, replica by replica;
            head_loss_sum: the head's of each replica, over all t.
        skipped, head_skipped: samples of steps whose loss was not finite. They are in no sum and
            moved no weight. Like the sums, empty before the epoch's first step.
        seen: per trained block, samples of its steps, where something shared is learned.
        seconds, epoch_seconds: training time so far, in all epochs and in this one.
    """

    epoch: int = 0
    block_steps: int = 0
    head_steps: int = 0
    loss_sum: list[float] = field(default_factory=list)
    head_loss_sum: list[float] = field(default_factory=list)
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    skipped: list[int] = field(default_factory=list)
    head_skipped: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def add_time(self, seconds: float) -> None:
        self.seconds += seconds
        self.epoch_seconds += seconds

    def finish_epoch(self) -> None:
        self.epoch += 1
        self.block_steps = self.head_steps = 0
        self.loss_sum, self.head_loss_sum, self.epoch_seconds = [], [], 0.0
        self.skipped, self.head_skipped, self.seen = [], [], []


@dataclass(frozen=True)
class Epoch:
    """A complete epoch of one replica.

    Attributes:
        epoch: its number, from 1.
        loss: per trained block, the mean of weight * |u_hat - u_y|^2 over the samples, of FM of
            |v_hat - (u_y - z_0)|^2. The weights of two blocks may differ a thousandfold: a mean
            over blocks says little.
        error: per trained block, the mean of |u_hat - u_y|^2, without the weight; None of CT and
            FM, where each row has a t, and a weight, of its own.
        head_loss: mean over the samples and t; None without a head.
        lr: learning rate of the blocks' last step; None where they have no optimizer.
        skipped: per trained block, samples whose step's loss was not finite. The means leave them
            out; a mean over no sample is None.
        seconds: training time of the epoch.
        samples_per_second: training samples, each counted once for all blocks and replicas.
        replica: its number, of `replicas`.
        figures: what callbacks have measured after the epoch, by name, for those after them: in a
            run "val_accuracy" on the held-out rows, or without these "train_accuracy" on some of
            the training's.
        blocks: the t of the trained blocks.
    """

    epoch: int
    loss: list[float | None]
    error: list[float | None]
    head_loss: float | None
    lr: float
    skipped: list[int]
    seconds: float
    samples_per_second: float
    replica: int = 0
    replicas: int = 1
    figures: dict[str, float] = field(default_factory=dict)
    blocks: tuple[int, ...] = ()
