"""What goes from a run into folders of its parts before they are trained elsewhere, and back.

A part is a run of some units of the run, in a folder of its own within one for all.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import checkpoint, metrics
from ..merging import check_together
from ..runs import Run
from ..settings import Settings
from ..shares import Share, cut, joined
from ..transplant import put, untrained
from ..units import Units
from .assignment import Unit
from .job import Job
from .store import place_of

NAMES = ("block-*", "head", "share-*")  # of parts


def begin(run: Run, folder: Path, parts: Mapping[str, Units]) -> None:
    """Makes each part that was begun. What the folder has of an earlier time, where it is further,
    goes into the run first, which is saved.

    Args:
        run: with its progress.
        folder: for the parts.
        parts: the units of each, by its name.

    Raises:
        InputError: the folder has parts of another run.
    """
    if collect(run, folder):
        run.save()
    clear(folder)
    for name, units in parts.items():
        shares, _ = cut(run.shares, units)
        if any(begun(share, run.settings) for share in shares):
            seed = run.settings.seed
            assert seed is not None  # several seeds are not trained apart
            model = untrained(run.model, run.model.head, units, seed)
            put(model, units, run.model)
            part = Run(folder / name, run.settings, model, shares, run.fingerprint, run.data_dir)
            part.save()


def begun(share: Share, settings: Settings) -> bool:
    """Whether a share is no more as a new run has it."""
    new = settings.each_seed, settings.epochs
    return any(place_of(share.progress)) or (share.seeds, share.epochs) != new


def unfinished(run: Run) -> list[Unit]:
    """The units that are not at their end, in order."""
    return [unit for unit in run.model.units if not share_of(run, unit).finished]


def collect(run: Run, folder: Path) -> bool:
    """Puts into a run the units of which a part is further; whether there were some.

    Raises:
        InputError: a part is of another run, or corrupt.
    """
    lines: list[dict[str, Any]] = []
    changed = False
    for place in parts_in(folder):
        if not (place / checkpoint.RECORD).is_file():
            continue
        part = Run.load(place)
        check_together(run, part, may_differ=("epochs",))
        for unit in part.model.units & run.model.units:
            done = share_of(part, unit)
            if place_of(done.progress) <= place_of(share_of(run, unit).progress):
                continue
            put(run.model, Units.of([unit]), part.model)
            _, others = cut(run.shares, Units.of([unit]))
            run.shares = [*others, done]
            changed = True
        lines += metrics.read(place)
    run.shares = joined(run.shares)
    if changed:
        keep_lines(run, lines)
    return changed


def keep_lines(run: Run, lines: Iterable[dict[str, Any]]) -> None:
    """Adds lines of some units to a run's metrics.jsonl, those of the same epoch together."""

    def marks(line: dict[str, Any]) -> set[tuple[int, Unit]]:
        units = line.get("units", run.model.units)
        return {(line["epoch"], unit) for unit in units}

    known = metrics.read(run.folder)
    have = set().union(*map(marks, known))
    new = [line for line in lines if not marks(line) & have]
    if new:
        metrics.write(run.folder, sorted([*known, *new], key=lambda line: line["epoch"]))


def share_of(run: Run, unit: Unit) -> Share:
    """That of a unit alone."""
    (share,), _ = cut(run.shares, Units.of([unit]))
    return share


def steps(run: Run, job: Job) -> dict[Unit, int]:
    """Of each unit of a run."""
    return {unit: job.steps(unit, share_of(run, unit).progress) for unit in run.model.units}


def stored_steps(job: Job) -> dict[Unit, int]:
    """Of each unit that a part has, as it was last saved."""
    found: dict[Unit, int] = {}
    for place in parts_in(job.store):
        if (place / checkpoint.RECORD).is_file():
            training = checkpoint.load_content(place)["training"]
            for record in training.get("shares", ()):
                share = Share.from_json(record)
                found |= {unit: job.steps(unit, share.progress) for unit in share.units}
    return found


def parts_in(folder: Path) -> Iterator[Path]:
    for name in NAMES:
        yield from sorted(path for path in folder.glob(name) if path.is_dir())


def clear(folder: Path) -> None:
    """Removes all parts, and a folder that had nothing else."""
    for place in parts_in(folder):
        shutil.rmtree(place, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
