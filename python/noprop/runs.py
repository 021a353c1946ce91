"""A run: its folder, and the steps from data to a saved and tested model."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import noprop_kernels as nk

from . import (
    augmentation,
    checkpoint,
    choices,
    learned_metrics,
    metrics,
    presets,
    sampling,
    seeds,
    variants,
)
from .callbacks import Callback
from .coupled_steps import passes
from .data import Dataset, Published
from .datasets.split import hold_out_classes
from .epochs import Epoch, Progress
from .errors import InputError
from .evaluation import Evaluation, evaluate
from .files import sweep
from .json_records import Json, field, is_a
from .loading import from_checkpoint
from .model import Model
from .normalisation import statistics
from .parts import make_parts
from .prototypes import prototype_rows, prototypes
from .replicas import slices_of
from .settings import Settings
from .training import CHECKPOINT_SECONDS, fit

ROWS_WATCHED = 1000  # training rows to report accuracy on where none are held out
WATCHED_STEPS = 5  # of a sampler, for the accuracy after each epoch


@dataclass(frozen=True)
class Split:
    """The training rows, and the validation rows on which choices may be based."""

    x: Tensor
    y: Tensor
    x_val: Tensor | None
    y_val: Tensor | None

    @classmethod
    def of(cls, data: Dataset, val_fraction: float) -> "Split":
        if val_fraction == 0:
            return cls(data.x, data.y, None, None)
        kept, held = hold_out_classes(data.y, val_fraction, data.name)
        return cls(data.x[kept], data.y[kept], data.x[held], data.y[held])


def plan_of(settings: Settings, data: Dataset | Published) -> nk.Plan:
    """The plan of a block of these settings.

    Raises:
        ValueError: a setting does not fit.
    """
    return presets.plan_of(
        settings.variant,
        settings.preset,
        settings.embedding,
        data.shape,
        data.classes,
        settings.hidden,
        settings.embed_dim,
    )


def head_trouble(variant: str, embedding: str, schedule: str | None, head: str) -> str | None:
    """Why a run of these choices has no such head, or None."""
    needed = choices.needs_head(embedding, schedule)
    reason = variants.VARIANTS[variant].without_head
    if reason is not None and not needed and head != "none":
        return f"{reason}: leave it none"
    if needed and head == "none":
        return "what is learned of embeddings and gamma learns from its loss: leave it softmax"
    if variant == "fm" and head == "radial":
        return "the anchor of an fm with learned embeddings is of logits: leave it softmax"
    return None


def build(
    settings: Settings, data: Dataset | Published, split: Split | None, backend: str | None
) -> Model:
    """An untrained model, normalised by the training rows' statistics, where there are any.

    Raises:
        ValueError: a setting does not fit.
        MemoryError: there is no memory for it.
    """
    chosen = (settings.variant, settings.embedding, settings.schedule, settings.head)
    if reason := head_trouble(*chosen):
        raise ValueError(f"head {settings.head}: {reason}")
    augmentation.check("train", settings.augment, data.inputs)
    plan = plan_of(settings, data)
    goal = variants.goal_of(**asdict(settings))
    answer, paper = sampling.samplers_of("train", goal, settings.sampler, settings.steps)
    count = len(settings.each_seed) * goal.T
    normalize, rows, start = None, None, None
    if split is not None:
        normalize = statistics(split.x, data.inputs.channels)
        if settings.embedding == "prototype":
            rows = prototype_rows(split.x, split.y, data.classes, normalize)
            start = prototypes(split.x, rows, normalize)
    size = 3 * 4 * count * plan.num_parameters()  # bytes of weights and moments
    try:
        # fails at once, before the first layers are filled
        torch.empty(min(size, 1 << 62), dtype=torch.uint8, device="cpu")
        made = make_parts(settings, plan, goal, data.classes, start, backend)
    except RuntimeError as error:  # torch's error when memory is short
        raise MemoryError(
            f"no memory for {count} blocks of {plan.num_parameters():,} parameters"
        ) from error
    return Model(
        made.blocks,
        made.head,
        normalize=normalize,
        classes=data.class_names,
        inputs=data.inputs,
        sampler=answer,
        paper_sampler=paper,
        prototypes=None if rows is None else rows.tolist(),
    )


@dataclass
class Run:
    """A folder with the state of a run.

    Attributes:
        folder: its path; training holds its lock.
        settings, model, progress: the state that training continues.
        fingerprint: the checksum of the training data.
        data_dir: the requested data folder, absolute, or None.
        result: the test's, once there was one.
        saved_by: the versions that it was saved by, where it was.
    """

    folder: Path
    settings: Settings
    model: Model
    progress: Progress
    fingerprint: str
    data_dir: Path | None = None
    result: Json | None = None
    saved_by: Json | None = None

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
        return cls(
            folder,
            Settings.from_json(field(training, "settings", dict)),
            from_checkpoint(content, tensors, backend=backend),
            progress_from_json(field(training, "progress", dict)),
            field(training, "data_sha256", str),
            data_dir,
            training.get("result"),
            field(content, "versions", dict),
        )

    def split(self, replica: int, folder: Path) -> "Run":
        """The run of one of several seeds, not saved yet, as if it had been trained alone; but its
        times are those of all.
        """
        assert self.settings.seeds is not None  # by the caller
        of_blocks, of_head = slices_of(replica, self.model.blocks.T), slices_of(replica, 1)
        seed, done = self.settings.seeds[replica], self.progress
        result = None
        if self.result is not None:
            result = seeds.of_one(self.result, replica) | {"seeds": None, "run": str(folder)}
        return replace(
            self,
            folder=folder,
            settings=replace(self.settings, seed=seed, seeds=None),
            model=self.model.replica(replica),
            progress=replace(
                done,
                loss_sum=done.loss_sum[of_blocks],
                skipped=done.skipped[of_blocks],
                head_loss_sum=done.head_loss_sum[of_head],
                head_skipped=done.head_skipped[of_head],
            ),
            result=result,
        )

    def changes(self) -> list[str]:
        """A line for each version that has changed since it was saved.

        Raises:
            BackendError: no backend runs the model where it is now.
        """
        now = self.model.versions()
        return [] if self.saved_by is None else checkpoint.differences(self.saved_by, now)

    def save(self) -> Path:
        """Writes the run into its folder, and returns that."""
        training = {
            "settings": asdict(self.settings),
            "progress": self.progress.to_json(),
            "data_sha256": self.fingerprint,
            "data_dir": None if self.data_dir is None else str(self.data_dir),
            "result": self.result,
        }
        return self.model.save(self.folder, training)

    def train(
        self,
        split: Split,
        *,
        stop: Callable[[], bool],
        on_call: Callable[[int], None],
        on_epoch: Callable[[Epoch, str], None],
        say: Callable[[str], None],
        callbacks: Sequence[Callback] = (),
        nonfinite: str | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> bool:
        """Trains to the end of the settings' epochs, and saves periodically and at the end.

        Args:
            split: the data.
            stop: called several times a second; true ends the training.
            on_call, on_epoch: called with samples, and with epochs and their accuracy, which are
                means over the seeds.
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
        if self.progress.epoch < self.settings.epochs:
            self.result = None  # belongs to the shorter run
        sweep(self.folder, (*checkpoint.TEMPORARY, metrics.NAME))
        self.save()
        metrics.rewind(self.folder, self.progress.epoch)
        collapsed = False
        watched: list[tuple[Epoch, float]] = []  # of the replicas in an epoch

        def after_epoch(epoch: Epoch) -> None:
            nonlocal collapsed
            name, accuracy = self.watch(split, WATCHED_STEPS, epoch.replica)
            learned = learned_metrics.learned_metrics(self.model)
            epoch.figures[name] = accuracy
            line, replica = asdict(epoch) | {name: accuracy} | learned, epoch.replica
            del line["replica"], line["replicas"], line["figures"]
            if self.settings.seeds is not None:
                line["seed"] = self.settings.seeds[replica]
            metrics.append(self.folder, line)
            watched.append((epoch, accuracy))
            if replica == self.model.replicas - 1:
                told = f"{name.replace('_', ' ')} {_of_seeds([each for _, each in watched])}"
                figures = (told, learned_metrics.line(learned))
                on_epoch(
                    _mean_epoch([each for each, _ in watched]), "  ".join(filter(None, figures))
                )
                watched.clear()
            warning = learned_metrics.collapse(self.model, learned)
            if warning is not None and not collapsed:
                say(f"warning: after epoch {epoch.epoch} {warning}")
            collapsed = warning is not None

        fit(
            self.model,
            split.x,
            self.labels(split.y),
            epochs=self.settings.epochs,
            batch_size=self.settings.batch_size,
            seed=self.settings.each_seed,
            lr_schedule=self.settings.lr_schedule,
            progress=self.progress,
            nonfinite=nonfinite,
            augment=self.settings.augment,
            order=self.settings.order or "paper",
            stop=stop,
            on_call=lambda _, samples: on_call(samples),
            on_epoch=after_epoch,
            callbacks=callbacks,
            checkpoint=self.save,
            checkpoint_seconds=checkpoint_seconds,
            say=say,
        )
        return self.progress.epoch >= self.settings.epochs

    def rows_of_epoch(self) -> int:
        """Rows of the current epoch so far, each counted once for all blocks."""
        steps = self.progress.block_steps // passes(self.model, self.settings.order or "paper")
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
        if most_steps is not None and not isinstance(self.model.goal, nk.DT):
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
        evaluations = [
            evaluate(model, data.x_test, data.y_test, samples=samples) for model in self.each()
        ]
        return self.summary(evaluations, split, time.perf_counter() - begun)

    def each(self) -> Iterator[Model]:
        """The model of each seed."""
        R = self.model.replicas
        return (self.model if R == 1 else self.model.replica(replica) for replica in range(R))

    def summary(self, evaluations: list[Evaluation], split: Split, eval_seconds: float) -> Json:
        blocks, seconds = self.model.blocks, self.progress.seconds
        trained = self.progress.epoch * len(split.x)
        records = [
            self.figures(evaluation, split, replica)
            for replica, evaluation in enumerate(evaluations)
        ]
        several = self.settings.seeds
        return {
            **(records[0] if several is None else seeds.summary(several, records)),
            "train_seconds": seconds,
            "eval_seconds": eval_seconds,
            "samples_per_second": trained / seconds if seconds else 0.0,
            "parameters": self.model.num_parameters() // self.model.replicas,
            "parameters_per_block": blocks.plan.num_parameters(),
            "train_rows": len(split.x),
            "threads": torch.get_num_threads(),
            **asdict(self.settings),
            **self.model.versions(),
            "run": str(self.folder),
        }

    def figures(self, evaluation: Evaluation, split: Split, replica: int) -> Json:
        """What a seed's model has of its own."""
        blocks, head = self.model.blocks, self.model.head
        figures = {
            **evaluation.to_json(),
            "block_updates": int(blocks.updates[replica * blocks.T]),
            "head_updates": 0 if head is None else int(head.updates[replica]),
        }
        if split.x_val is not None:
            figures["val_accuracy"] = self.watch(split, replica=replica)[1]
        return figures


def _of_seeds(accuracies: list[float]) -> str:
    """An accuracy, of several seeds their mean and deviation."""
    text = f"{seeds.mean(accuracies):.2%}"
    if len(accuracies) == 1:
        return text
    return f"{text} +- {seeds.deviation(accuracies):.2%} over {len(accuracies)} seeds"


def _mean_epoch(epochs: list[Epoch]) -> Epoch:
    """An epoch with the mean losses of the replicas."""
    last, names = epochs[-1], ("loss", "error", "head_loss")
    if len(epochs) == 1:
        return last
    return replace(
        last, **{name: seeds.mean([getattr(epoch, name) for epoch in epochs]) for name in names}
    )


def progress_from_json(record: Json) -> Progress:
    """
    Raises:
        InputError: it was not written by `Progress.to_json`.
    """
    for name in ("head_loss_sum", "head_skipped"):  # early runs had a number, of the one head
        if name in record and not isinstance(record[name], list):
            record = record | {name: [record[name]]}
    for name, value in record.items():
        default = getattr(Progress(), name, None)
        values = value if isinstance(value, list) else [value]
        kind = int if isinstance(default, int) else float
        fits = all(is_a(number, kind) and number >= 0 for number in values)
        if default is None or isinstance(value, list) != isinstance(default, list) or not fits:
            raise InputError(f"a run's progress must count from 0 on, got {name} {value!r}")
    return Progress(**record)
