"""Makes one run of several that have trained units of the same run apart."""

from collections.abc import Callable, Sequence
from pathlib import Path

import noprop_kernels as nk

from . import checkpoint, choices, json_records, metrics, variants
from .building import units_of
from .errors import InputError, notice
from .files import locked
from .json_records import Json
from .normalisation import Normalisation
from .runs import Run
from .settings import CHANGEABLE, FIXED
from .shares import cut, joined
from .transplant import put, same_bits, untrained
from .units import HEAD, Units

NAMES = {  # of settings whose own names say too little
    "T": "the number of blocks",
    "hidden": "the plan, in its hidden width",
    "preset": "the plan, in its preset",
    "eta": "the weight of the loss",
    "lr": "the learning rate",
    "lr_schedule": "the schedule of the learning rate",
}


def merge(
    folders: Sequence[str | Path], out: str | Path, say: Callable[[str], None] = notice
) -> Run:
    """Makes one run of the units of several, each of which is in one of them.

    It has every bit of the run that trained all units; where all units have lived the same, its
    checkpoint is of the same format too. A head may be in several runs where it is the same.
    Nothing is trained, and no data are read.

    Args:
        folders: of the runs, which stay as they are.
        out: a new folder, or an empty one.
        say: called with a line on versions that differ, and on units that are not trained yet.

    Returns:
        The merged run, saved and not tested.

    Raises:
        InputError: the runs do not belong together, a unit is in none or in two of them, a folder
            holds no run, or `out` is not free.
    """
    if not folders:
        raise InputError("merge: runs must be at least one, got none")
    runs, out = [Run.load(Path(folder)) for folder in folders], Path(out)
    first, every = runs[0], units_of(runs[0].settings)
    for run in runs:
        check_apart(run)
        check_together(first, run)
    owners = owners_of(runs)
    if missing := every - Units.of(owners):
        raise InputError(f"merge: a run must have {missing}, none has")
    head = owners[HEAD].model.head if every.head else None
    assert first.settings.seed is not None  # by check_apart
    model = untrained(first.model, head, every, first.settings.seed)
    shares = []
    for run in runs:
        units = Units.of(unit for unit, owner in owners.items() if owner is run)
        put(model, units, run.model)
        shares += cut(run.shares, units)[0]
    shares = joined(shares)
    merged = Run(out, first.settings, model, shares, first.fingerprint, first.data_dir)
    check_free(out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        check_free(out)
        lines = [line for run in runs for line in metrics.read(run.folder)]
        for line in sorted(lines, key=lambda line: line["epoch"]):
            metrics.append(out, line)
        merged.save()
    for line in merged.lines():
        say(line)
    return merged


def check_free(out: Path) -> None:
    """
    Raises:
        InputError: a folder is not a new or an empty one.
    """
    if out.exists() and not (out.is_dir() and checkpoint.is_unused(out)):
        raise InputError(f"{out} is not an empty folder: name another")


def check_apart(run: Run) -> None:
    """
    Raises:
        InputError: the units of a run need each other.
    """
    settings = run.settings
    several = settings.seeds is not None
    if reason := choices.no_units(settings.variant, settings.embedding, several):
        raise InputError(f"{run.folder} has no units of its own: {reason}")


def check_together(one: Run, other: Run, may_differ: Sequence[str] = ()) -> None:
    """
    Args:
        one, other: two runs.
        may_differ: settings that need not be equal.

    Raises:
        InputError: a setting, the data or something else differs on which a unit's bits depend, or
            the meaning of what it answers.
    """
    for name in (*FIXED, *CHANGEABLE):
        a, b = getattr(one.settings, name), getattr(other.settings, name)
        if a != b and name not in may_differ:
            what = NAMES.get(name, name.replace("_", " "))
            raise InputError(_differ(one, other, f"{what} is {a} and {b}"))
    if one.fingerprint != other.fingerprint:
        raise InputError(_differ(one, other, "their data are others"))
    a, b = _facts(one), _facts(other)
    for name, value in a.items():
        if value != b[name]:
            raise InputError(_differ(one, other, f"{name} are not the same"))


def _differ(one: Run, other: Run, why: str) -> str:
    return f"{one.folder} and {other.folder} do not belong together: {why}"


def _facts(run: Run) -> Json:
    """What a model says of itself beside its settings, in plural names."""
    model = run.model
    assert isinstance(model.blocks, nk.DenoisingBlocks)  # as every run's are
    normal = None if model.normalize is None else Normalisation.of(model.normalize).to_json()
    return {
        "the plans of their blocks": json_records.plan_to_json(model.blocks.plan),
        "the schedules of their noise": variants.goal_to_json(model.blocks.goal),
        "their normalisations": normal,
        "the rows that they read": None if model.inputs is None else model.inputs.to_json(),
        "their classes": model.classes_,
        "the optimizers of their blocks": model.blocks.optimizer,
        "the precisions of their blocks": model.blocks.precision,
    }


def owners_of(runs: Sequence[Run]) -> dict[int | str, Run]:
    """The run that has each unit.

    Raises:
        InputError: two have it, of the head if it is not the same in both.
    """
    owners: dict[int | str, Run] = {}
    for run in runs:
        for unit in run.model.units:
            if unit not in owners:
                owners[unit] = run
                continue
            first, named = owners[unit], Units.of([unit])
            if unit != HEAD:
                raise InputError(f"merge: {named} must be in one run, {_both(first, run)} have it")
            if not same_bits(first.model, named, run.model):
                raise InputError(f"merge: {named} must be one, those of {_both(first, run)} differ")
    return owners


def _both(one: Run, other: Run) -> str:
    return f"{one.folder} and {other.folder}"
