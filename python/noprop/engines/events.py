"""What workers report, and what a pool of them reports to the driver."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from .agreement import Machine
from .assignment import Unit


@dataclass
class Report:
    """A worker's turn, so far or to its end.

    Attributes:
        seen: the steps that each of its units has taken.
        steps: those that the store has.
        finished: the units that the store has at their end.
        written, read: bytes of checkpoints.
        saves: checkpoints written; save_seconds: what they took.
        refused: units of which the store had a checkpoint as far, or further.
        trouble: why the last checkpoint could not be written, in which case the worker goes on from
            its memory; None: it could.
        fault: why the units cannot be trained on; None: they can.
    """

    seen: dict[Unit, int] = field(default_factory=dict)
    steps: dict[Unit, int] = field(default_factory=dict)
    finished: set[Unit] = field(default_factory=set)
    written: int = 0
    read: int = 0
    saves: int = 0
    save_seconds: float = 0.0
    refused: list[Unit] = field(default_factory=list)
    trouble: str | None = None
    fault: str | None = None

    def snapshot(self) -> "Report":
        """A copy that no other thread changes."""
        return replace(
            self,
            seen=dict(self.seen),
            steps=dict(self.steps),
            finished=set(self.finished),
            refused=list(self.refused),
        )


@dataclass(frozen=True)
class Joined:
    """A worker is there, for the first time or again: it holds nothing."""

    worker: int
    machine: Machine
    pid: int
    node: str


@dataclass(frozen=True)
class Pulse:
    """A worker has answered, with its turn so far."""

    worker: int
    report: Report


@dataclass(frozen=True)
class Turned:
    """A worker has ended a turn."""

    worker: int
    report: Report


@dataclass(frozen=True)
class Lost:
    """A worker's process has ended, or its machine cannot be reached."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Stalled:
    """A worker has not answered for so long; it may wake up."""

    worker: int
    seconds: float


Event = Joined | Pulse | Turned | Lost | Stalled


class Pool(Protocol):
    """Workers, numbered from 0 on, in other processes."""

    size: int

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, at the latest after so many seconds.

        Raises:
            InputError: no worker can be started.
        """
        ...

    def train(self, worker: int, units: Sequence[Unit], isa: str) -> None:
        """Begins a turn, which ends with a checkpoint of each unit."""
        ...

    def end_turn(self, worker: int) -> None:
        """Asks a worker to end its turn early."""
        ...
