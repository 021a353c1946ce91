"""What a worker has to know of a run beside its rows."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..batching import Batches
from ..building import Split, build, plan_of, units_of
from ..datasets.dataset import Dataset
from ..epochs import Progress
from ..inference import Normalize
from ..runs import Run
from ..settings import Settings
from ..shares import Share
from ..units import HEAD, Units
from .assignment import Unit


@dataclass(frozen=True)
class Job:
    """A run as its workers see it.

    Attributes:
        settings, fingerprint, data_dir: of the run.
        outline: the data with their first rows alone.
        normalize: mean and deviation of the training rows, which all workers have from one place,
            since another machine's sums may round otherwise.
        rows: number of training rows.
        store: the folder of the units' checkpoints.
        checkpoint_seconds: the least time between two checkpoints of a unit.
        nonfinite: as of `noprop.fit`.
    """

    settings: Settings
    fingerprint: str
    data_dir: Path | None
    outline: Dataset
    normalize: Normalize | None
    rows: int
    store: Path
    checkpoint_seconds: float
    nonfinite: str | None = None
    backend: str | None = None

    @classmethod
    def of(cls, run: Run, data: Dataset, split: Split, store: Path, **options: object) -> "Job":
        """
        Args:
            run: whose model has the normalisation.
            data, split: of the run.
            store: a folder.
            options: of checkpoints and of losses that are not finite.
        """
        # cloned, since a view goes to other processes with all that it is a view of
        rows = {name: getattr(data, name)[:1].clone() for name in ("x", "y", "x_test", "y_test")}
        outline = replace(data, **rows)
        return cls(
            run.settings,
            run.fingerprint,
            run.data_dir,
            outline,
            run.model.normalize,
            len(split.x),
            store.absolute(),
            **options,  # type: ignore[arg-type]
        )

    def new(self, units: Units) -> Run:
        """An untrained run of some units."""
        model = build(self.settings, self.outline, None, self.backend, units)
        model.normalize = self.normalize
        share = Share(units, self.settings.each_seed, self.settings.epochs)
        return Run(self.store, self.settings, model, [share], self.fingerprint, self.data_dir)

    @property
    def batches(self) -> int:
        """Steps of a block in an epoch."""
        plan = plan_of(self.settings, self.outline)
        return Batches(self.rows, self.settings.batch_size, plan.has_norm()).steps

    def totals(self) -> dict[Unit, int]:
        """The steps of each unit in the whole training, those of the head in all passes over t."""
        of_block = self.batches * self.settings.epochs
        T = self.settings.T or 1
        return {unit: of_block * (T if unit == HEAD else 1) for unit in units_of(self.settings)}

    def steps(self, unit: Unit, progress: Progress) -> int:
        """Those that a unit has taken."""
        if unit == HEAD:
            passes = self.batches * (self.settings.T or 1)
            return progress.epoch * passes + progress.head_steps
        return progress.epoch * self.batches + progress.block_steps


def arrays_of(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The training rows as arrays, which an object store hands out without copying them."""
    return split.x.numpy(), split.y.numpy()


def split_of(arrays: tuple[np.ndarray, np.ndarray]) -> Split:
    """Of `arrays_of`, in the same memory, which nobody writes."""
    x, y = map(torch.from_dlpack, arrays)  # from_numpy warns of memory that may not be written
    return Split(x, y, None, None)
