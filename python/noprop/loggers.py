"""Callbacks that write a training's losses and figures into files for other programs.

A resumed training goes on in the same files: what they hold from its first step or epoch on, which
a crash has left after the last save, gives way to what it writes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from noprop_kernels.check import check_positive

from .callbacks import Callback, Steps
from .csv_table import Row, Table
from .epochs import Epoch
from .errors import extra

At = tuple[int, ...]  # where an event is in the training


class Logger(Callback):
    """What the loggers share: a folder, and which steps they write.

    It is closed by `close`, or at the end of a `with`; all that it was told up to the last epoch or
    save is in its files already.

    Args:
        folder: for its files alone, made where it is missing.
        every: write one step in so many.

    Raises:
        ValueError: every is below 1.
    """

    def __init__(self, folder: str | Path, every: int) -> None:
        check_positive(type(self).__name__, "every", every)
        self.folder, self.every = Path(folder), every
        self._last: dict[str, At] = {}

    def chosen(self, steps: Steps) -> list[tuple[int, int]]:
        """Of the steps to write, the place in their call and the number."""
        return [(k, step) for k, step in enumerate(steps.numbers) if step % self.every == 0]

    def begins(self, name: str, first: At, last: At) -> bool:
        """Whether a training begins or goes on with the events `first` to `last` of `name`, so that
        what was written from there on gives way."""
        before = self._last.get(name)
        self._last[name] = last
        return before is None or first <= before

    def close(self) -> None:
        """Closes the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class CsvLogger(Logger):
    """Writes tables: blocks.csv and head.csv, a row a step, and epochs.csv, a row an epoch.

    The columns of blocks.csv are step, epoch, replica, lr and the losses loss_1, loss_2, .. of the
    blocks; those of head.csv have loss in their place. epochs.csv has the fields of `noprop.Epoch`,
    with a column for each block, and its figures. Of R replicas there are R rows each. A cell is
    empty where there is no number: of a block that a step did not train, or of a loss that is NaN.

    Args:
        folder: as of every logger.
        every: write one step in so many; an epoch's losses are means over all steps whatever it is.
    """

    def __init__(self, folder: str | Path, every: int = 1) -> None:
        super().__init__(folder, every)
        names = {"blocks.csv": "step", "head.csv": "step", "epochs.csv": "epoch"}
        self.tables = {name: Table(self.folder / name, key) for name, key in names.items()}

    def on_step(self, steps: Steps) -> None:
        rates = steps.lr.tolist()
        for name, losses in (("blocks.csv", steps.loss), ("head.csv", steps.head_loss)):
            if losses is None:
                continue
            if self.begins(name, (steps.first,), (steps.numbers[-1],)):
                self.tables[name].rewind(steps.first)
            rows: list[Row] = []
            for k, step in self.chosen(steps):
                for replica, loss in enumerate(losses[k].tolist()):
                    row = {"step": step, "epoch": steps.epoch, "replica": replica, "lr": rates[k]}
                    rows.append(
                        row
                        | (
                            _each("loss", loss, steps.blocks)
                            if losses.ndim == 3
                            else {"loss": loss}
                        )
                    )
            self.tables[name].add(rows)

    def on_epoch(self, epoch: Epoch) -> None:
        table, at = self.tables["epochs.csv"], (epoch.epoch, epoch.replica)
        if self.begins("epochs.csv", at, at):
            table.rewind(epoch.epoch)
        row = {name: getattr(epoch, name) for name in ("epoch", "replica", *OF_AN_EPOCH)}
        for name in OF_BLOCKS:
            row |= _each(name, getattr(epoch, name), epoch.blocks)
        table.add([row | epoch.figures])


class TensorBoardLogger(Logger):
    """Writes events for TensorBoard: `tensorboard --logdir FOLDER`.

    The folder has two of what TensorBoard calls runs, since their axes differ: steps, with losses
    and learning rates by the number of the step, and epochs, with the fields of `noprop.Epoch` and
    its figures by the number of the epoch. Several replicas have two each, so that one picture has
    the curves of all.

    Args:
        folder: as of every logger.
        every: write one step in so many, by default 10, since each block's loss is an event; an
            epoch's losses are means over all steps whatever it is.

    Raises:
        ImportError: tensorboard is not installed (`pip install "noprop-kernels[tensorboard]"`).
    """

    def __init__(self, folder: str | Path, every: int = 10) -> None:
        super().__init__(folder, every)
        with extra("tensorboard"):
            from torch.utils.tensorboard.writer import SummaryWriter
        self._make, self._writers = SummaryWriter, {}

    def on_step(self, steps: Steps) -> None:
        at = (steps.first,), (steps.numbers[-1],)
        rates, part = steps.lr.tolist(), "head" if steps.loss is None else "blocks"
        some = steps.head_loss if steps.loss is None else steps.loss
        assert some is not None  # by Steps
        replicas = some.shape[1]
        for replica in range(replicas):
            writer = self._writer("steps", replica, replicas, *at)
            for k, step in self.chosen(steps):
                values: Row = {f"lr/{part}": rates[k]}
                if steps.loss is not None:
                    values |= _each("loss/block", steps.loss[k, replica].tolist(), steps.blocks)
                if steps.head_loss is not None:
                    values["loss/head"] = steps.head_loss[k, replica].item()
                self._add(writer, values, step)

    def on_epoch(self, epoch: Epoch) -> None:
        at = (epoch.epoch,)
        writer = self._writer("epochs", epoch.replica, epoch.replicas, at, at)
        values = {f"epoch/{name}": getattr(epoch, name) for name in OF_AN_EPOCH}
        for name in OF_BLOCKS:
            values |= _each(f"epoch_{name}/block", getattr(epoch, name), epoch.blocks)
        values |= {f"epoch/{name}": value for name, value in epoch.figures.items()}
        self._add(writer, values, epoch.epoch)
        self.flush()

    def on_checkpoint(self, folder: Path) -> None:
        self.flush()

    def flush(self) -> None:
        """Writes what waits in memory."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers, self._last = {}, {}

    def _writer(self, kind: str, replica: int, replicas: int, first: At, last: At) -> Any:
        """The writer of one of TensorBoard's runs, which drops earlier events from `first` on."""
        name = kind if replicas == 1 else f"replica-{replica}/{kind}"
        if self.begins(name, first, last):
            if name in self._writers:
                self._writers[name].close()
            self._writers[name] = self._make(str(self.folder / name), purge_step=first[0])
        return self._writers[name]

    def _add(self, writer: Any, values: Row, step: int) -> None:
        for name, value in values.items():
            if value is not None and value == value:  # no NaN
                writer.add_scalar(name, value, step)


LOGGERS = {"csv": CsvLogger, "tensorboard": TensorBoardLogger}
OF_AN_EPOCH = ("lr", "seconds", "samples_per_second", "head_loss")
OF_BLOCKS = ("loss", "error", "skipped")


def _each(name: str, values: Sequence[Any], blocks: Sequence[int]) -> Row:
    """A value of each block, by its t."""
    return {f"{name}_{t}": value for t, value in zip(blocks, values, strict=True)}
