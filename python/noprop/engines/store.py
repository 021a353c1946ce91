"""A folder with the latest checkpoint of each unit, which outlives the workers that write it.

Each unit has a folder of its own with a run of it alone, so that `noprop merge` makes one run of a
store without any engine. A checkpoint replaces only one with fewer draws: a worker that was thought
dead, and wakes up, sets nothing back. Bits of the same draws are the same, whoever made them.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .. import checkpoint, metrics
from ..epochs import Progress
from ..files import InUse, locked
from ..runs import Run
from ..shares import progress_from_json
from .assignment import Unit

LOCK_SECONDS = 10.0  # to wait for another writer of the same unit
LOOK_SECONDS = 0.02
CLOCK = time.monotonic


class Store:
    """
    Attributes:
        folder: a folder that all workers reach.
        written, read: bytes of checkpoints that this process has moved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.written, self.read = folder, 0, 0

    def folder_of(self, unit: Unit) -> Path:
        return self.folder / name_of(unit)

    def place(self, unit: Unit) -> Progress | None:
        """How far the stored checkpoint of a unit is; None: there is none.

        Raises:
            InputError: it is corrupt.
        """
        folder = self.folder_of(unit)
        if not (folder / checkpoint.RECORD).is_file():
            return None
        training = checkpoint.load_content(folder)["training"]
        if "shares" in training:
            (training,) = training["shares"]  # of a unit there is one
        return progress_from_json(training["progress"])

    def load(self, unit: Unit, backend: str | None = None) -> Run | None:
        """The run of a unit; None: nothing is stored.

        Raises:
            InputError: it is corrupt.
        """
        if self.place(unit) is None:
            return None
        run = Run.load(self.folder_of(unit), backend)
        self.read += size_of(run)
        return run

    def put(self, unit: Unit, run: Run, lines: Sequence[dict[str, Any]]) -> bool:
        """Stores a run of a unit alone, unless what is stored has as many draws, or more.

        Args:
            unit: the unit.
            run: its run; its folder is set.
            lines: of metrics.jsonl, from the first epoch on that is not stored.

        Returns:
            Whether it was stored.

        Raises:
            OSError: the disk refuses it; what was stored is still there.
            InUse: another process holds the unit's lock for too long.
        """
        run.folder = self.folder_of(unit)
        run.folder.mkdir(parents=True, exist_ok=True)
        with waited_for(run.folder):
            stored = self.place(unit)
            if stored is not None and place_of(stored) >= place_of(run.shares[0].progress):
                return False
            if lines:
                first = min(line["epoch"] for line in lines)
                kept = [line for line in metrics.read(run.folder) if line["epoch"] < first]
                metrics.write(run.folder, [*kept, *lines])
            run.save()
            self.written += size_of(run)
        return True


def name_of(unit: Unit) -> str:
    """The folder of a unit."""
    return unit if isinstance(unit, str) else f"block-{unit}"


def place_of(progress: Progress) -> tuple[int, int, int]:
    """By which a unit's draws are compared: each step draws once."""
    return progress.epoch, progress.block_steps, progress.head_steps


def size_of(run: Run) -> int:
    """Bytes of a unit's tensors: its parameters, two moments of each, and counters."""
    return sum(tensor.nbytes for tensor in run.model.tensors().values())


@contextmanager
def waited_for(folder: Path) -> Iterator[None]:
    """`locked`, after a wait for another process that holds it.

    Raises:
        InUse: that takes too long.
    """
    until = CLOCK() + LOCK_SECONDS
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(folder))
                break
            except InUse:
                if CLOCK() > until:
                    raise
                time.sleep(LOOK_SECONDS)
        yield
