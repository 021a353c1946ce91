"""A run: settings, a folder, and the way from data to a saved and tested model."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk

from . import checkpoint, metrics
from .data import Dataset, hold_out
from .description import Json, field
from .errors import InputError
from .evaluation import Evaluation, evaluate
from .model import Model, from_checkpoint
from .normalisation import statistics
from .training import Epoch, Progress, fit

SECONDS_BETWEEN_CHECKPOINTS = 30.0
ROWS_WATCHED = 1000  # training rows whose accuracy is shown where none are held out


@dataclass(frozen=True)
class Settings:
    """What a run is made of; with the data it fixes every bit of the result."""

    data: str = "digits"
    variant: str = "dt"
    preset: str = "mlp"
    hidden: int = 256
    T: int = 10
    epochs: int = 40
    batch_size: int = 128
    lr: float = 1e-3
    lr_schedule: str = "cosine"
    weight_decay: float = 1e-3
    eta: float = 0.1
    seed: int = 0
    val_fraction: float = 0.0
    precision: str = "float32"

    @classmethod
    def from_json(cls, record: Json) -> "Settings":
        """
        Raises:
            InputError: a setting is missing or unknown.
        """
        record = {"precision": "float32"} | record  # which runs did not record at first
        names = {item.name for item in fields(cls)}
        if record.keys() != names:
            raise InputError(f"the run's settings must be {sorted(names)}, got {sorted(record)}")
        return cls(**record)


@dataclass(frozen=True)
class Split:
    """The training rows, and the rows on which choices may be made."""

    x: Tensor
    y: Tensor
    x_val: Tensor | None
    y_val: Tensor | None

    @classmethod
    def of(cls, data: Dataset, val_fraction: float) -> "Split":
        if val_fraction == 0:
            return cls(data.x, data.y, None, None)
        if len(data.x) < 2:
            raise InputError(f"{data.name}: one row cannot be split")
        kept, held = hold_out(len(data.x), val_fraction)
        return cls(data.x[kept], data.y[kept], data.x[held], data.y[held])


def build(settings: Settings, data: Dataset, split: Split, backend: str | None) -> Model:
    """An untrained model with one-hot embeddings, its normalisation measured on the training rows.

    Raises:
        ValueError: a setting does not fit.
    """
    if settings.variant != "dt" or settings.preset != "mlp":
        raise ValueError(f"no variant {settings.variant!r} with preset {settings.preset!r}")
    plan = nk.plans.mlp(data.features, data.classes, data.classes, hidden=settings.hidden)
    goal = nk.DT(nk.NoiseSchedule.cosine(T=settings.T), eta=settings.eta)
    shared = {
        "optimizer": nk.AdamW(lr=settings.lr, weight_decay=settings.weight_decay),
        "seed": settings.seed,
        "precision": settings.precision,
        "backend": backend,
    }
    blocks = nk.DenoisingBlocks(plan, goal, **shared)
    head = nk.OutputHead(data.classes, data.classes, goal=goal, **shared)
    return Model(
        blocks,
        head,
        normalize=statistics(split.x, data.channels),
        classes=data.class_names,
        inputs=data.inputs,
    )


@dataclass
class Run:
    """A folder with the state of a run."""

    folder: Path
    settings: Settings
    model: Model
    progress: Progress
    fingerprint: str
    result: Json | None = None

    @classmethod
    def load(
        cls, folder: Path, backend: str | None = None, device: torch.device | str = "cpu"
    ) -> tuple["Run", list[str]]:
        """The run in `folder` on a device, and a line for each version that has changed since.

        Raises:
            InputError: a file is missing or corrupt, or it was not saved by a run.
            BackendError: no backend runs it there.
        """
        content, tensors = checkpoint.load(folder)
        training = content.get("training")
        if not isinstance(training, dict):
            raise InputError(f"{folder} holds a model, but no run to go on with")
        run = cls(
            folder,
            Settings.from_json(field(training, "settings", dict)),
            from_checkpoint(content, tensors, backend=backend).to(device),
            Progress(**field(training, "progress", dict)),
            field(training, "data_sha256", str),
            training.get("result"),
        )
        then, now = field(content, "versions", dict), run.model.versions()
        return run, checkpoint.differences(then, now)

    def save(self) -> None:
        training = {
            "settings": asdict(self.settings),
            "progress": self.progress.to_json(),
            "data_sha256": self.fingerprint,
            "result": self.result,
        }
        self.model.save(self.folder, training)

    def train(
        self,
        split: Split,
        *,
        stop: Callable[[], bool],
        on_call: Callable[[int], None],
        on_epoch: Callable[[Epoch, str], None],
    ) -> bool:
        """Trains to the end of the settings' epochs, saving now and then and when it ends.

        Returns:
            False where `stop` ended it; then the folder is ready to be resumed.
        """
        if self.progress.epoch < self.settings.epochs:
            self.result = None  # of the shorter run
        self.save()
        metrics.rewind(self.folder, self.progress.epoch)
        saved_at = time.monotonic()

        def after_epoch(epoch: Epoch) -> None:
            nonlocal saved_at
            name, accuracy = self.watch(split)
            metrics.append(self.folder, asdict(epoch) | {name: accuracy})
            on_epoch(epoch, f"{name.replace('_', ' ')} {accuracy:.2%}")
            if time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                self.save()
                saved_at = time.monotonic()

        try:
            fit(
                self.model,
                split.x,
                split.y,
                epochs=self.settings.epochs,
                batch_size=self.settings.batch_size,
                seed=self.settings.seed,
                lr_schedule=self.settings.lr_schedule,
                progress=self.progress,
                stop=stop,
                on_call=lambda progress, samples: on_call(samples),
                on_epoch=after_epoch,
            )
        except MemoryError:  # of a call that has changed nothing: the run can go on from here
            self.save()
            raise
        self.save()
        return self.progress.epoch >= self.settings.epochs

    def watch(self, split: Split) -> tuple[str, float]:
        """Accuracy without noise on the rows held out, or else on some training rows."""
        if split.x_val is not None and split.y_val is not None:
            return "val_accuracy", self.accuracy(split.x_val, split.y_val)
        return "train_accuracy", self.accuracy(split.x[:ROWS_WATCHED], split.y[:ROWS_WATCHED])

    def accuracy(self, x: Tensor, y: Tensor) -> float:
        return (self.model.predict(x).labels.cpu() == y).double().mean().item()

    def test(self, data: Dataset, split: Split, samples: int) -> Json:
        """The look at the test rows: everything that `--json` prints."""
        begun = time.perf_counter()
        evaluation = evaluate(self.model, data.x_test, data.y_test, samples=samples)
        return self.summary(evaluation, split, time.perf_counter() - begun)

    def summary(self, evaluation: Evaluation, split: Split, eval_seconds: float) -> Json:
        blocks, head, seconds = self.model.blocks, self.model.head, self.progress.seconds
        summary: dict[str, Any] = {
            **evaluation.to_json(),
            "train_seconds": seconds,
            "eval_seconds": eval_seconds,
            "samples_per_second": self.progress.epoch * len(split.x) / seconds if seconds else 0.0,
            "parameters": self.model.num_parameters(),
            "parameters_per_block": blocks.plan.num_parameters(),
            "block_updates": int(blocks.updates[0]),
            "head_updates": int(head.updates[0]),
            "train_rows": len(split.x),
            "threads": torch.get_num_threads(),
            **asdict(self.settings),
            **self.model.versions(),
            "run": str(self.folder),
        }
        if split.x_val is not None:
            summary["val_accuracy"] = self.watch(split)[1]
        return summary


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C raises nothing: the yielded function is true, and the step under way ends."""
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
