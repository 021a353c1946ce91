"""How a run shows itself: a bar in a terminal, a line now and then elsewhere."""

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
    """A plain line an epoch, at most one a second, and the last one always."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.console, self.epochs = console, epochs
        self.shown = float("-inf")

    def advance(self, samples: int) -> None:
        pass

    def epoch(self, epoch: Epoch, accuracy: str) -> None:
        now = time.monotonic()
        if epoch.epoch == self.epochs or now - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = now
            self.console.print(
                f"epoch {epoch.epoch}/{self.epochs}  {summary(epoch, accuracy)}", highlight=False
            )


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
    errors = [error for error in epoch.error if error is not None]
    error = f"{sum(errors) / len(errors):.4f}" if errors else "none"
    return f"error {error}  {accuracy}  {epoch.samples_per_second:,.0f} samples/s"


@contextmanager
def display(console: Console, *, epochs: int, rows: int, done: int) -> Iterator[Bar | Lines]:
    """What to tell of every call and every epoch.

    Args:
        console: where to.
        epochs: of the whole run.
        rows: samples of an epoch.
        done: samples that an earlier part of the run has seen.
    """
    if not console.is_terminal:
        yield Lines(console, epochs)
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, epochs, rows, done)
