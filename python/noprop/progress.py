"""Progress of a run: a bar in a terminal, else an occasional line."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import train_extra
from .training import Epoch

with train_extra():
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 1.0


class Lines:
    """A plain line per epoch, at most one a second, and always the last one."""

    def __init__(self, console: Console, epochs: int, rows: int, done: int) -> None:
        self.console, self.epochs = console, epochs
        self.shown = float("-inf")
        self.begun, self.samples, self.left = time.monotonic(), 0, epochs * rows - done

    def advance(self, samples: int) -> None:
        self.samples += samples

    def epoch(self, epoch: Epoch, accuracy: str) -> None:
        now = time.monotonic()
        if epoch.epoch == self.epochs or now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = now
            line = f"epoch {epoch.epoch}/{self.epochs}  {summary(epoch, accuracy)}"
            if epoch.epoch < self.epochs and self.samples:
                left = (now - self.begun) * (self.left - self.samples) / self.samples
                line += f"  {clock(left)} left"
            self.console.print(line, soft_wrap=True)


class Bar:
    """One bar over all samples of all epochs, with the last epoch's figures beside it."""

    def __init__(self, progress: Progress, epochs: int, rows: int, done: int) -> None:
        self.progress = progress
        self.task = progress.add_task(
            "training",
            total=epochs * rows,
            completed=done,
            epoch=done // rows,
            epochs=epochs,
            figures="",
        )

    def advance(self, samples: int) -> None:
        self.progress.advance(self.task, samples)

    def epoch(self, epoch: Epoch, accuracy: str) -> None:
        self.progress.update(self.task, epoch=epoch.epoch, figures=summary(epoch, accuracy))


def summary(epoch: Epoch, accuracy: str) -> str:
    """The figures of an epoch, with the mean error over blocks. A mean of the blocks' losses would
    say little, since their weights differ a thousandfold.
    """
    known = [error for error in epoch.error if error is not None]
    figures = [f"error {sum(known) / len(known):.4f}" if known else "error not finite"]
    if epoch.head_loss is not None:
        figures.append(f"head loss {epoch.head_loss:.4f}")
    figures += [accuracy, f"lr {epoch.lr:.2g}", f"{epoch.samples_per_second:,.0f} samples/s"]
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
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, epochs, rows, done)
