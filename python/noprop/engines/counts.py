"""What happened in a run over several workers, in numbers."""

from dataclasses import asdict, dataclass
from typing import Any

from .events import Report


@dataclass
class Counts:
    """
    Attributes:
        joined: workers that came, the replaced ones included.
        lost, stalled, refused_workers: workers.
        units_lost: units that a lost or stalled worker had, for others to go on with.
        steps_redone: steps that such units had been seen to have beyond their last checkpoint.
        saves, save_seconds: checkpoints of units.
        refused_saves: checkpoints that the store had as far, or further.
        failed_saves: turns in which the disk refused a checkpoint.
        bytes_written, bytes_read: of checkpoints, to the store and back.
    """

    joined: int = 0
    lost: int = 0
    stalled: int = 0
    refused_workers: int = 0
    units_lost: int = 0
    steps_redone: int = 0
    saves: int = 0
    save_seconds: float = 0.0
    refused_saves: int = 0
    failed_saves: int = 0
    bytes_written: int = 0
    bytes_read: int = 0

    def add(self, report: Report) -> None:
        """Adds a turn."""
        self.saves += report.saves
        self.save_seconds += report.save_seconds
        self.refused_saves += len(report.refused)
        self.bytes_written += report.written
        self.bytes_read += report.read

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
