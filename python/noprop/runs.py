"""A run: its folder, and the steps from data to a saved and tested model."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from . import checkpoint, metrics, run_results, seeds
from .building import Split, units_of
from .callbacks import Callback
from .coupled_steps import passes
from .data import Dataset
from .epoch_reports import EpochReports
from .epochs import Epoch
from .errors import InputError
from .evaluation import evaluate
from .files import sweep
from .json_records import Json, field
from .loading import from_checkpoint
from .model import Model
from .replicas import slices_of
from .settings import Settings
from .shares import Share, joined, progress_from_json
from .training import CHECKPOINT_SECONDS, fit
from .units import Units

ROWS_WATCHED = 1000  # training rows to report accuracy on where none are held out


@dataclass
class Run:
    """A folder with the state of a run.

    Attributes:
        folder: its path; training holds its lock.
        settings, model, shares: the state that training continues; the units of the shares are
            those of the model.
        fingerprint: the checksum of the training data.
        data_dir: the requested data folder, absolute, or None.
        result: the test's, once there was one.
    """

    folder: Path
    settings: Settings
    model: Model
    shares: list[Share]
    fingerprint: str
    data_dir: Path | None = None
    result: Json | None = None

    @classmethod
    def load(cls, folder: Path, backend: str | None = None) -> "Run":
        """Loads the run in `folder`, onto the CPU.

        Raises:
            InputError: a file is missing or corrupt, or it was not saved by a run.
        """
        content, tensors = checkpoint.load(folder)
        training = content.get("training")
        if not isinstance(training, dict):
            raise InputError(f"{folder} holds a model, but no run to go on with")
        data_dir = None  # which runs did not record at first
        if training.get("data_dir") is not None:
            data_dir = Path(field(training, "data_dir", str))
        settings = Settings.from_json(field(training, "settings", dict))
        model = from_checkpoint(content, tensors, backend=backend)
        return cls(
            folder,
            settings,
            model,
            shares_of(training, settings, model, field(content, "versions", dict)),
            field(training, "data_sha256", str),
            data_dir,
            training.get("result"),
        )

    @property
    def missing(self) -> Units:
        """The units that it has not."""
        return units_of(self.settings) - self.model.units

    @property
    def whole(self) -> bool:
        """Whether it has all units, which are trained to their ends."""
        return not self.missing and all(share.finished for share in self.shares)

    def check_whole(self) -> None:
        """
        Raises:
            InputError: units are missing.
        """
        if self.missing:
            raise InputError(
                f"{self.folder} has not all units of its run, missing: {self.missing}; noprop "
                "merge makes one run of those that have them"
            )

    def split(self, replica: int, folder: Path) -> "Run":
        """The run of one of several seeds, not saved yet, as if it had been trained alone; but its
        times are those of all.
        """
        assert self.settings.seeds is not None  # by the caller
        of_blocks, of_head = slices_of(replica, self.model.blocks.T), slices_of(replica, 1)
        (share,) = self.shares  # several seeds are always trained together
        seed, done = self.settings.seeds[replica], share.progress
        result = None
        if self.result is not None:
            result = seeds.of_one(self.result, replica) | {"seeds": None, "run": str(folder)}
        return replace(
            self,
            folder=folder,
            settings=replace(self.settings, seed=seed, seeds=None),
            model=self.model.replica(replica),
            shares=[
                replace(
                    share,
                    seeds=[seed],
                    progress=replace(
                        done,
                        loss_sum=done.loss_sum[of_blocks],
                        skipped=done.skipped[of_blocks],
                        head_loss_sum=done.head_loss_sum[of_head],
                        head_skipped=done.head_skipped[of_head],
                    ),
                )
            ],
            result=result,
        )

    def changes(self, shares: Sequence[Share]) -> list[str]:
        """A line for each version that has changed since these shares were trained.

        Raises:
            BackendError: no backend runs the model where it is now.
        """
        now, lines = self.model.versions(), {}
        for share in shares:
            known = [] if share.versions is None else checkpoint.differences(share.versions, now)
            for line in known:
                lines.setdefault(line, []).append(share.units)
        one = len(self.shares) == 1
        return [
            line if one else f"of {' and '.join(map(str, units))} {line}"
            for line, units in lines.items()
        ]

    def lines(self) -> list[str]:
        """A line for each share that other versions have trained than the first, or that is not
        trained to its end."""
        first, lines = self.shares[0], []
        for share in self.shares:
            if first.versions and share.versions and share.versions != first.versions:
                for line in checkpoint.differences(first.versions, share.versions):
                    lines.append(f"{share.units}, against {first.units}: {line}")
            if not share.finished:
                done = f"{share.progress.epoch} of {share.epochs} epochs"
                lines.append(f"{share.units}: {done}; noprop train --resume {self.folder} goes on")
        return lines

    def save(self) -> Path:
        """Writes the run into its folder, and returns that."""
        training = {
            "settings": asdict(self.settings),
            **self.lives(),
            "data_sha256": self.fingerprint,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "result": self.result,
        }
        return self.model.save(self.folder, training)

    def lives(self) -> Json:
        """The progress of a run that was trained as a whole, by what saves it, else the shares."""
        shares = joined(self.shares)
        first, settings = shares[0], self.settings
        as_one = (units_of(settings), settings.each_seed, settings.epochs)
        # a checkpoint names the versions that save it; several seeds have no shares
        here = first.versions in (None, self.model.versions()) or settings.seed is None
        if len(shares) == 1 and (first.units, first.seeds, first.epochs) == as_one and here:
            return {"progress": first.progress.to_json()}
        return {"shares": [share.to_json() for share in shares]}

    def train(
        self,
        split: Split,
        share: Share,
        *,
        stop: Callable[[], bool],
        on_call: Callable[[int], None],
        on_epoch: Callable[[Epoch, str], None],
        say: Callable[[str], None],
        callbacks: Sequence[Callback] = (),
        nonfinite: str | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> bool:
        """Trains a share to the end of its epochs, and saves periodically and at the end.

        Args:
            split: the data.
            share: one of the run's.
            stop: called several times a second; true ends the training.
            on_call, on_epoch: called with samples, and with epochs and their accuracy, which are
                means over the seeds; "" where blocks are missing.
            callbacks: as of `fit`; an epoch has its accuracy among its figures.
            say: called with a line on what the training leaves out, or on embeddings that collapse.
            nonfinite: what to do about a loss that is not finite, as `fit` has it.
            checkpoint_seconds: the least time between two saves.

        Returns:
            False where `stop` ended it; the folder can then be resumed.

        Raises:
            NotFinite: a loss is not finite; the run is saved.
            MemoryError: a call had no memory and has changed nothing; the run is saved.
            Exception: whatever a callback raises; the run is saved.
        """
        if not share.finished:
            self.result = None  # belongs to the shorter run
        sweep(self.folder, (*checkpoint.TEMPORARY, metrics.NAME))
        share.versions = self.model.versions()
        self.save()
        apart = share.units if share.units != units_of(self.settings) else None
        metrics.rewind(self.folder, share.progress.epoch, apart)
        fit(
            self.model,
            split.x,
            self.labels(split.y),
            **self.fit_options(share),
            units=share.units,
            nonfinite=nonfinite,
            stop=stop,
            on_call=lambda _, samples: on_call(samples),
            on_epoch=EpochReports(self, split, apart, on_epoch, say),
            callbacks=callbacks,
            checkpoint=self.save,
            checkpoint_seconds=checkpoint_seconds,
            say=say,
        )
        return share.finished

    def fit_options(self, share: Share) -> dict[str, Any]:
        """The arguments of `fit` on which the bits of a share's units depend, and its progress."""
        return {
            "epochs": share.epochs,
            "batch_size": self.settings.batch_size,
            "seed": share.seeds,
            "lr_schedule": self.settings.lr_schedule,
            "early_weight_decay": self.settings.early_weight_decay,
            "augment": self.settings.augment,
            "order": self.settings.order or "paper",
            "progress": share.progress,
        }

    def rows_of_epoch(self, share: Share) -> int:
        """Rows of a share's current epoch so far, each counted once for all blocks."""
        steps = share.progress.block_steps // passes(self.model, self.settings.order or "paper")
        return steps * self.settings.batch_size

    def labels(self, y: Tensor) -> Tensor | np.ndarray:
        """Class numbers as labels for `fit`: the names of the model's classes."""
        names = self.model.classes_
        if names is None or names == tuple(map(str, range(len(names)))):
            return y
        return np.array(names)[y.numpy()]

    def watch(
        self, split: Split, most_steps: int | None = None, replica: int = 0
    ) -> tuple[str, float]:
        """Accuracy without noise on the held-out rows, else on some training rows.

        Args:
            split: the data.
            most_steps: of the sampler of a CT or FM, where its own are more; None: its own.
            replica: which of several.
        """
        steps = None
        if most_steps is not None and self.model.variant.sampled:
            steps = min(most_steps, self.model.sampler.steps)
        if split.x_val is not None and split.y_val is not None:
            return "val_accuracy", self.accuracy(split.x_val, split.y_val, steps, replica)
        some = split.x[:ROWS_WATCHED], split.y[:ROWS_WATCHED]
        return "train_accuracy", self.accuracy(*some, steps, replica)

    def accuracy(self, x: Tensor, y: Tensor, steps: int | None, replica: int) -> float:
        answer = self.model.predict(x, steps=steps, replica=replica)
        return (answer.labels.cpu() == y).double().mean().item()

    def test(self, data: Dataset, split: Split, samples: int) -> Json:
        """Tests on the test rows: everything that `--json` prints."""
        begun = time.perf_counter()
        R, rows = self.model.replicas, (data.x_test, data.y_test)
        models = (self.model if R == 1 else self.model.replica(r) for r in range(R))
        evaluations = [evaluate(model, *rows, samples=samples) for model in models]
        return run_results.summary(self, evaluations, split, time.perf_counter() - begun)


def shares_of(training: Json, settings: Settings, model: Model, versions: Json) -> list[Share]:
    """The shares of a saved run.

    Raises:
        InputError: they were not written by `Run.save`, or are not those of the model's units.
    """
    if "shares" not in training:
        progress = progress_from_json(field(training, "progress", dict))
        return [Share(model.units, settings.each_seed, settings.epochs, progress, versions)]
    shares = [Share.from_json(record) for record in field(training, "shares", list)]
    if sorted(map(str, model.units)) != sorted(
        str(unit) for share in shares for unit in share.units
    ):
        raise InputError(f"a run's shares must have the units of its model, {model.units}")
    return joined(shares)
