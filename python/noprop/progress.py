"""Progress of a run: a bar in a terminal, else an occasional line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .epochs import Epoch
from .errors import train_extra

with train_extra():
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

SECONDS_BETWEEN_LINES = 1.0
SECONDS_WITHOUT_A_LINE = 60.0  # the most within an epoch
CLOCK = time.monotonic


class Left:
    """The time left, from the mean pace of this process: of the blocks, a head and the accuracy
    after each epoch alike.

    Args:
        samples: of the epochs to come.
    """

    def __init__(self, samples: int) -> None:
        self.begun, self.seen, self.samples = CLOCK(), 0, samples

    def __str__(self) -> str:
        """Empty at the beginning and at the end."""
        if not 0 < self.seen < self.samples:
            return ""
        return f"{clock((CLOCK() - self.begun) * (self.samples / self.seen - 1))} left"


class Lines:
    """A plain line per epoch, at most one a second, and always the last one; one a minute within a
    long epoch."""

    def __init__(self, console: Console, epochs: int, rows: int, done: int) -> None:
        self.console, self.epochs, self.rows, self.done = console, epochs, rows, done
        self.shown, self.printed = float("-inf"), CLOCK()
        self.left = Left(epochs * rows - done)

    def advance(self, samples: int) -> None:
        self.left.seen += samples
        epoch, within = divmod(self.done + self.left.seen, self.rows)
        if within and CLOCK() - self.printed >= SECONDS_WITHOUT_A_LINE:
            self.print(f"epoch {epoch + 1}/{self.epochs}  {within / self.rows:.0%} of it")

    def epoch(self, epoch: Epoch, accuracy: str) -> None:
        if epoch.epoch == self.epochs or CLOCK() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = CLOCK()
            self.print(f"epoch {epoch.epoch}/{self.epochs}  {summary(epoch, accuracy)}")

    def print(self, line: str) -> None:
        self.printed = CLOCK()
        self.console.print("  ".join(filter(None, (line, str(self.left)))), soft_wrap=True)


class Bar:
    """One bar over all samples of all epochs, with the last epoch's figures beside it."""

    def __init__(self, progress: Progress, epochs: int, rows: int, done: int) -> None:
        self.progress, self.left = progress, Left(epochs * rows - done)
        self.rows, self.done = rows, done
        self.task = progress.add_task(
            "training",
            total=epochs * rows,
            completed=done,
            epoch=done // rows,
            epochs=epochs,
            figures="",
            left="",
        )

    def advance(self, samples: int) -> None:
        self.left.seen += samples
        self.done += samples
        epoch = self.done // self.rows
        self.progress.update(self.task, completed=self.done, epoch=epoch, left=str(self.left))

    def epoch(self, epoch: Epoch, accuracy: str) -> None:
        self.progress.update(self.task, epoch=epoch.epoch, figures=summary(epoch, accuracy))


def summary(epoch: Epoch, accuracy: str) -> str:
    """The figures of an epoch, with the mean error over blocks. A mean of the blocks' losses would
    say little, since their weights differ a thousandfold.
    """
    known = [error for error in epoch.error if error is not None]
    figures = [f"error {sum(known) / len(known):.4f}" if known else "error not finite"]
    if not epoch.loss:  # the head alone
        figures = []
    if epoch.error == [None] and epoch.loss != [None]:  # of CT and FM
        figures = [f"loss {epoch.loss[0]:.4f}"]
    if epoch.head_loss is not None:
        figures.append(f"head loss {epoch.head_loss:.4f}")
    figures += [
        *filter(None, [accuracy]),
        f"lr {epoch.lr:.2g}",
        f"{epoch.samples_per_second:,.0f} samples/s",
    ]
    return "  ".join(figures)


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 within an hour."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


@contextmanager
def display(console: Console, *, epochs: int, rows: int, done: int) -> Iterator[Bar | Lines]:
    """The callbacks for every call and every epoch.

    Args:
        console: the output.
        epochs: epochs of the whole run.
        rows: samples of an epoch.
        done: samples that an earlier part of the run has seen.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines(console, epochs, rows, done)
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, epochs, rows, done)
