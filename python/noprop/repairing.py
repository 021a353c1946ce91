"""Trains units of a run again, or puts others in their place; no other unit changes."""

from collections.abc import Callable
from dataclasses import dataclass

from .building import Split
from .epochs import Progress
from .errors import InputError
from .merging import check_apart, check_together
from .runs import Run
from .shares import Share, cut
from .training import fit
from .transplant import put, same_bits, untrained
from .units import Units


@dataclass(frozen=True)
class Exchange:
    """Units that have taken the place of a run's own.

    Attributes:
        units: which.
        seconds: of their training.
        same: whether they have the bits of those before them.
    """

    units: Units
    seconds: float
    same: bool


def retrain(
    run: Run,
    units: Units,
    split: Split,
    *,
    seed: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_call: Callable[[int], None] = lambda samples: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Exchange] | None:
    """Trains units from their beginning to the end of the epoch that they are in; then they take
    their old places in `run`, which is not saved.

    With their own seeds they get the bits that they had, for one backend, build and instruction
    set: the first weights, each batch and its noise are functions of the seed and the step.

    Args:
        run: has the units.
        units: to train.
        split: the data.
        seed: of new units; None: each its own.
        stop: called several times a second; true ends the training.
        on_call: called with samples, each counted once for units that are trained together.
        say: called with a line on what the training leaves out.

    Returns:
        What has changed; None where `stop` ended it: then nothing has.

    Raises:
        InputError: the run has not the units, or they need others.
        NotFinite: a loss of units with another seed is not finite; nothing has changed.
    """
    check_units(run, units)
    inside, outside = cut(run.shares, units)
    made = []
    for share in inside:
        fresh = Share(share.units, share.seeds if seed is None else [seed], share.epochs)
        model = untrained(run.model, run.model.head, share.units, fresh.seeds[0])
        model.to(run.model.device)
        epochs, progress = share.progress.epoch, fresh.progress

        def reached(progress: Progress = progress, epochs: int = epochs) -> bool:
            return progress.epoch >= epochs or stop()

        fit(
            model,
            split.x,
            run.labels(split.y),
            **run.fit_options(fresh),
            # a step that was skipped is skipped again
            nonfinite="skip" if seed is None else "stop",
            stop=reached,
            on_call=lambda _, samples: on_call(samples),
            say=say,
        )
        if progress.epoch < epochs:
            return None
        fresh.versions = model.versions()
        made.append((fresh, model))
    exchanges = []
    for fresh, model in made:
        same = same_bits(run.model, fresh.units, model)
        put(run.model, fresh.units, model)
        exchanges.append(Exchange(fresh.units, fresh.progress.seconds, same))
    run.shares = [*outside, *(fresh for fresh, _ in made)]
    forget(run, exchanges)
    return exchanges


def replace_by(run: Run, units: Units, other: Run) -> list[Exchange]:
    """Puts the units of another run, with their lives, in the place of a run's own, which is not
    saved. The seeds may differ; so may the epochs.

    Raises:
        InputError: a run has not the units, or the two do not belong together.
    """
    for each in (run, other):
        check_units(each, units)
    check_together(run, other, may_differ=("seed", "epochs"))
    same = same_bits(run.model, units, other.model)
    put(run.model, units, other.model)
    run.shares = [*cut(run.shares, units)[1], *cut(other.shares, units)[0]]
    exchanges = [Exchange(units, 0.0, same)]
    forget(run, exchanges)
    return exchanges


def forget(run: Run, exchanges: list[Exchange]) -> None:
    """The result of a test is of the units that were there."""
    if not all(exchange.same for exchange in exchanges):
        run.result = None


def check_units(run: Run, units: Units) -> None:
    """
    Raises:
        InputError: a run has not the units, or they need others.
    """
    check_apart(run)
    if missing := units - run.model.units:
        raise InputError(f"{run.folder} has {run.model.units}, and not {missing}")
