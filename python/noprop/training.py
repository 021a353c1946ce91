"""The training loop: per epoch every block over the same batches, then a head, t by t.

With fixed embeddings no block needs another. All blocks run together in calls of K steps, with the
same result as the paper's order (t outside, batches inside). The head, where the model has one, is
trained separately in the order (epoch, t, batch). K is chosen by measured time; no result depends
on it.

Where embeddings or a schedule are learned, blocks, head and these take each step together
(coupled_steps.py).
"""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import noprop_kernels as nk
from noprop_kernels.arguments.scalars import seed_list
from noprop_kernels.check import LARGEST, check_number
from noprop_kernels.optimizers import Optimizer

from . import augmentation
from .augmentation import CropFlip
from .batching import Batching
from .callbacks import Callback, Listeners
from .defaults import default_epochs
from .epochs import Epoch, Progress
from .errors import InputError
from .feeding import feed_of
from .loop import Loop
from .model import Model
from .modules.optimizers import BlockOptimizers
from .units import Units

LR_SCHEDULES = ("constant", "cosine")
NONFINITE = ("stop", "skip")
CHECKPOINT_SECONDS = 30.0
CLOCK = time.perf_counter


class NotFinite(ValueError):
    """A loss was NaN or infinite, and `fit` was called with nonfinite="stop".

    The step changed no weight of its learner, and `progress` matches the model: it can be saved,
    and `fit` can resume from it.

    Attributes:
        progress: the state of the run after the call with that step.
    """

    def __init__(self, text: str, progress: Progress) -> None:
        super().__init__(text)
        self.progress = progress


def fit(
    model: Model,
    x: Any,
    y: Any = None,
    *,
    sample_weight: Any = None,
    epochs: int | None = None,
    batch_size: int = 128,
    seed: int | Sequence[int] = 0,
    lr_schedule: str = "constant",
    early_weight_decay: float | None = None,
    nonfinite: str | None = None,
    augment: str = "none",
    order: str = "paper",
    units: Iterable[int | str] | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_call: Callable[[Progress, int], None] = lambda progress, samples: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Callable[[], Path] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    say: Callable[[str], None] = lambda line: warnings.warn(line, stacklevel=3),
) -> Progress:
    """Trains `model` until `epochs` epochs are complete, or `stop()` is true.

    Every block sees each row once an epoch; a head sees it T times (arXiv:2503.24322v2, alg. 1).
    The order of the rows is a function of (seed, epoch). Replicas are trained at once, each with
    the bits of training alone. Stopping by `stop` and resuming from the returned `progress` gives
    the same bits as an uninterrupted training. A KeyboardInterrupt is not caught: the model can
    predict, but its blocks may be some steps apart, and no `progress` matches it.

    Args:
        model: trained in place. Where it has none, it gets the format of x, the classes' names, and
            a normalisation: a mean and a deviation of each column of a table, or channel of images.
        x: (rows, F), (rows, H, W) or (rows, C, H, W): a tensor, an array of numpy, also one in a
            file, a table of pandas, or lists. uint8 counts as x / 255, all else as it is. Or a data
            set or a loader of torch that gives pairs (x, y), which is read once for what the model
            does not know yet, then once an epoch.
        y: (rows,) or (rows, 1) whole numbers, texts or truth values, or (rows, C) one-hot; whole
            numbers below the model's M are the classes of those numbers, others are numbered in
            sorted order.
        sample_weight: (rows,) numbers at least 0, by which the rows count in the loss and in the
            normalisation that is measured; only their ratios matter. None: all count the same.
            Going on from `progress` needs them again. Data sets and loaders have none, and a model
            that learns its embeddings or its schedule takes none.
        epochs: number of complete epochs at the end, those of `progress` included; None: enough for
            the number of rows, by `default_epochs`.
        batch_size: B, unless a loader has its own; a short last batch is one more step.
        seed: for the order of the rows and the augmentation; the model has its own. One for all
            replicas, or a list of one for each.
        lr_schedule: "constant", as in the paper, or "cosine", by which the optimizers' lr falls
            to 0 over all `epochs`.
        early_weight_decay: of the blocks in the first half of `epochs`, in place of their
            optimizer's; None: the optimizer's own throughout. With a stronger one at first
            the blocks ignore directions of x that are noise, and are as sure at the end as with
            the later one alone.
        nonfinite: the reaction to a loss that is NaN or infinite; such a step changes no weight of
            its learner. "stop" raises NotFinite after the call, "skip" continues and counts it;
            None: "stop", or of several replicas "skip", so that the others go on, and `say` has the
            first of each replica.
        augment: "none", or "crop-flip" of images: a border of 4 pixels of raw 0, of which a random
            window is cut out, mirrored half of the time; a new draw for each row and step, the
            same for all blocks.
        order: of a DT that learns its embeddings: "paper", in which t is the outer loop of an
            epoch and each block in turn sees all batches; "sampled", as many steps, each of a block
            drawn for it; "all-t", in which a step trains all blocks on its batch, and the
            embeddings by the mean over t, another algorithm than the paper's. Elsewhere it changes
            nothing.
        units: the t of the blocks to train, and "head"; None: all that the model has. No other
            changes, and each has the bits of training with all others. Where something shared is
            learned all are needed.
        progress: the state to resume from, of these units; updated in place.
        stop: called after every call, several times a second; true ends the training.
        on_call: called with `progress` and the call's samples, each counted once for all blocks
            and replicas.
        on_epoch: called with every complete epoch, of each replica in turn; its time does not count
            as training.
        callbacks: told each step, epoch and save; on_call and on_epoch are functions in place of a
            callback, called before these.
        checkpoint: saves what resuming needs and returns the folder, as `Model.save` does. It is
            called between two calls where the last save is `checkpoint_seconds` ago, at the end,
            and before NotFinite, a MemoryError of a call, or an error of a callback is raised.
        checkpoint_seconds: the least time between two saves.
        say: called with a line on what the training leaves out; by default a Python warning.

    Returns:
        `progress`, or a new one.

    Raises:
        ValueError: an argument does not fit.
        NotFinite: a loss was not finite, where that stops.
        Exception: whatever a callback raises; `progress` and the model match.
    """
    if not isinstance(model, Model):
        raise InputError(f"fit: model must be a noprop.Model, got {type(model).__name__}")
    if (epochs is not None and epochs < 0) or batch_size < 1:
        raise ValueError(
            f"fit: epochs must be at least 0 and batch_size at least 1, "
            f"got {epochs} and {batch_size}"
        )
    if lr_schedule not in LR_SCHEDULES:
        raise ValueError(f"fit: lr_schedule must be one of {LR_SCHEDULES}, got {lr_schedule!r}")
    if nonfinite is not None and nonfinite not in NONFINITE:
        raise ValueError(f"fit: nonfinite must be one of {NONFINITE}, got {nonfinite!r}")
    listeners = Listeners(callbacks, on_call, on_epoch, checkpoint, checkpoint_seconds)
    stops = nonfinite == "stop" or (nonfinite is None and model.replicas == 1)
    seeds = seeds_of(seed, model.replicas)
    if sample_weight is not None and model.shared is not None and model.shared.learns:
        raise InputError(
            "fit: sample_weight must be None where embeddings or a schedule are learned, whose "
            "steps have no weights of rows"
        )
    if sample_weight is not None and not isinstance(model.blocks, nk.DenoisingBlocks):
        raise InputError(
            "fit: sample_weight must be None of networks of one's own, whose steps have no "
            "weights of rows"
        )
    feed = feed_of(model, x, y, batch_size, sample_weight)
    model.tensors()  # what cannot be saved raises now, and not after the training
    batch_size = feed.batch_size or batch_size
    epochs = default_epochs(feed.rows, batch_size) if epochs is None else epochs
    assert model.inputs is not None  # by feed_of
    augmentation.check("fit", augment, model.inputs, model.encoder is not None)
    crops = []
    if augment != "none":
        crops = [CropFlip(model.inputs, model.normalize, seed) for seed in seeds]
    chosen = units_of(model, units)
    batching = Batching(feed, seeds, crops)
    loop = Loop(model, chosen, batching, batch_size, epochs, lr_schedule, order)
    loop.early = early_optimizer(model.blocks.optimizer, early_weight_decay)
    progress = progress if progress is not None else Progress()
    told = set()  # replicas of which a loss that is not finite was told
    if loop.batches.left_out and progress.epoch < epochs:
        say(
            f"{feed.rows} rows in batches of {loop.batches.size} leave a last one of 1 row, and "
            "batch norm needs 2: each epoch leaves out another row"
        )

    while progress.epoch < epochs:
        started = CLOCK()
        with listeners.saved_before(MemoryError):
            rows = loop.batching.order(progress.epoch)
        while not loop.complete(progress):
            if stop():
                listeners.checkpoint()
                return progress
            with listeners.saved_before(MemoryError):  # which has changed nothing
                if loop.begins_pass(progress):
                    rows = loop.batching.order(progress.epoch)  # a loader begins again
                with loop.decaying(progress):
                    steps = loop.train(progress, rows)
            now = CLOCK()
            progress.add_time(now - started)
            listeners.step(progress, steps)
            if loop.trouble and stops:
                loop.check()  # raises the cause, where a GPU found it in the data
                listeners.checkpoint()
                text = next(iter(loop.trouble.values()))
                raise NotFinite(f'{text}, and nonfinite="skip" goes on', progress)
            if nonfinite is None:
                for replica in sorted(loop.trouble.keys() - told):
                    say(f"{loop.trouble[replica]}; all replicas go on")
                told.update(loop.trouble)
            started = CLOCK()
        loop.check()  # raises what a GPU found in the last calls
        done = loop.epochs_of(progress)
        progress.finish_epoch()
        for epoch in done:
            listeners.epoch(epoch)
    listeners.checkpoint()
    return progress


def seeds_of(seed: int | Sequence[int], replicas: int) -> list[int]:
    """A seed for each replica, or one for all.

    Raises:
        ValueError: there are not one or as many as replicas.
    """
    seeds = seed_list("fit", seed)
    if len(seeds) not in (1, replicas):
        raise ValueError(f"fit: seed must be one or {replicas}, one per replica, got {seed!r}")
    return seeds


def units_of(model: Model, units: Iterable[int | str] | None) -> Units:
    """The units of a training.

    Raises:
        ValueError: the model has not one of them, or all would have to be trained.
    """
    chosen = model.units if units is None else Units.of(units)
    if missing := chosen - model.units:
        raise InputError(f"fit: units must be among {model.units}, got {missing}")
    if not chosen:
        raise InputError(f"fit: units must be some of {model.units}, got none")
    learns = model.shared is not None and model.shared.learns
    if learns and chosen != model.units:
        raise InputError(
            f"fit: units must be all, {model.units}, where something that they share is learned, "
            f"got {chosen}"
        )
    return chosen


def early_optimizer(
    optimizer: Optimizer | BlockOptimizers | None, decay: float | None
) -> Optimizer | None:
    """The blocks' optimizer with another weight decay; None: their own.

    Raises:
        ValueError: decay is no number of at least 0, or the optimizers are of torch.
    """
    if decay is None or optimizer is None:
        return None
    if isinstance(optimizer, BlockOptimizers):
        raise ValueError(
            "fit: early_weight_decay must be None of networks of one's own, whose optimizers have "
            f"groups of parameters, got {decay!r}"
        )
    decay = check_number(
        "fit", "early_weight_decay", decay, "be at least 0", lambda decay: 0 <= decay <= LARGEST
    )
    return replace(optimizer, weight_decay=decay)
