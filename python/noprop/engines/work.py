"""A worker's training: several units together, each with a checkpoint of its own in the store."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from ..epochs import Epoch, Progress
from ..errors import InputError, notice
from ..files import InUse
from ..runs import Run
from ..shares import OF_BLOCKS, Share, joined
from ..training import NotFinite, fit
from ..transplant import put
from ..units import HEAD, Units
from .assignment import Unit
from .events import Report
from .job import Job, split_of
from .store import Store, place_of

RETRY_SECONDS = 1.0  # before a checkpoint that the disk refused is tried again at a unit's end
CLOCK = time.monotonic


class Work:
    """
    Args:
        job: what is trained.
        arrays: the training rows.
        threads: of a call; None: as many as torch has.

    Attributes:
        report: of the turn so far.
        runs: of each unit alone, into which its state is copied when it is saved.
    """

    def __init__(
        self, job: Job, arrays: tuple[np.ndarray, np.ndarray], threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.job, self.split, self.store = job, split_of(arrays), Store(job.store)
        self.report = Report()
        self.runs: dict[Unit, Run] = {}
        self.shares: list[Share] = []
        self.unsaved: dict[Unit, list[dict[str, Any]]] = {}  # lines of metrics.jsonl
        self.stored: dict[Unit, Progress] = {}  # of each unit in the store, as last seen
        self.saved_at = CLOCK()
        self.whole: Run | None = None

    def turn(self, units: Sequence[Unit], ended: Callable[[], bool]) -> Report:
        """Trains units until they are saved at their end, or `ended()` is true and they are saved.

        A loss that is not finite, where that stops, and data that do not fit end it too: the report
        says so.
        """
        self.report, self.store.written, self.store.read = Report(), 0, 0
        try:
            self.take(units)
            while not ended() and (share := self.next_share()) is not None:
                self.train(share, ended)
        except (NotFinite, InputError, MemoryError) as error:
            self.report.fault = str(error)
        while not self.save(list(self.runs)) and self.report.fault is None and not ended():
            time.sleep(RETRY_SECONDS)  # the disk may have room again
        return self.report

    # units

    def take(self, units: Sequence[Unit]) -> None:
        """Holds these units and no others, each from memory, from the store where that is further,
        or untrained."""
        wanted = Units.of(units)
        self.put_back()
        known = {unit: self.runs.get(unit) for unit in wanted}
        runs = {unit: self.latest(unit, run) for unit, run in known.items()}
        changed = any(runs[unit] is not run for unit, run in known.items())
        if changed or len(runs) < len(self.runs):
            self.runs, self.whole = runs, self.job.new(wanted)
            self.unsaved = {unit: self.unsaved.get(unit, []) for unit in wanted}
            for unit, run in runs.items():
                put(self.whole.model, Units.of([unit]), run.model)
            self.shares = [run.shares[0] for run in runs.values()]
        self.saved_at = CLOCK()
        self.report.read = self.store.read
        for unit in wanted:
            self.note_stored(unit)
        self.look(self.shares)

    def latest(self, unit: Unit, known: Run | None) -> Run:
        """The run of a unit, the one in memory unless another worker has stored a later one."""
        place = self.store.place(unit)
        mine = (-1, 0, 0) if known is None else place_of(known.shares[0].progress)
        if place is not None and place_of(place) > mine:
            run = self.store.load(unit, self.job.backend)
            assert run is not None  # a checkpoint is never removed while units are trained
            self.unsaved.pop(unit, None)
            self.stored[unit] = replace(run.shares[0].progress)
            return run
        if known is not None:
            return known
        self.unsaved.pop(unit, None)
        self.stored.pop(unit, None)
        return self.job.new(Units.of([unit]))

    def note_stored(self, unit: Unit) -> None:
        """Notes how far the store is."""
        done = self.stored.get(unit)
        self.report.steps[unit] = 0 if done is None else self.job.steps(unit, done)
        if done is not None and done.epoch >= self.job.settings.epochs:
            self.report.finished.add(unit)

    def put_back(self) -> None:
        """Copies the state of each unit into its own run."""
        for share in self.shares:
            for unit in share.units:
                run = self.runs[unit]
                assert self.whole is not None  # there are shares
                put(run.model, Units.of([unit]), self.whole.model)
                run.shares = [share.part(Units.of([unit]))]

    def look(self, shares: Sequence[Share]) -> None:
        """Notes how far they are."""
        for share in shares:
            for unit in share.units:
                self.report.seen[unit] = self.job.steps(unit, share.progress)

    # training

    def next_share(self) -> Share | None:
        """The one that is the least far, of those not at their end."""
        self.shares = in_step(self.shares)
        left = [share for share in self.shares if not share.finished]
        return min(left, key=lambda share: place_of(share.progress), default=None)

    def train(self, share: Share, ended: Callable[[], bool]) -> None:
        """To the end of the epoch in which the furthest share is, from where on all go together;
        alone, to its own end."""
        assert self.whole is not None  # by `take`
        model, split = self.whole.model, self.split
        share.versions = model.versions()
        others = [each.progress for each in self.shares if each is not share]
        until = max((one.epoch + (place_of(one)[1:] > (0, 0)) for one in others), default=1 << 62)
        if until <= share.progress.epoch:
            until = 1 << 62

        def after_call(progress: Progress, samples: int) -> None:
            self.look([share])
            if CLOCK() - self.saved_at > self.job.checkpoint_seconds:
                self.save(list(share.units))

        def after_epoch(epoch: Epoch) -> None:
            for unit in share.units:
                self.unsaved[unit].append(line_of(epoch, share.units, unit))

        fit(
            model,
            split.x,
            self.whole.labels(split.y),
            **self.whole.fit_options(share),
            units=share.units,
            nonfinite=self.job.nonfinite,
            stop=lambda: ended() or share.progress.epoch >= until,
            on_call=after_call,
            on_epoch=after_epoch,
            say=notice,
        )
        self.look([share])

    # checkpoints

    def save(self, units: Sequence[Unit]) -> bool:
        """Stores these units; whether the store has them all."""
        self.put_back()
        report, begun = self.report, CLOCK()
        trouble = None
        for unit in units:
            run = self.runs[unit]
            done = replace(run.shares[0].progress)
            before = self.stored.get(unit)
            if before is not None and place_of(before) == place_of(done):
                continue
            try:
                if self.store.put(unit, run, self.unsaved[unit]):
                    report.saves += 1
                else:
                    report.refused.append(unit)
                    done = self.store.place(unit)
                    assert done is not None  # by which it was refused
            except (OSError, InUse) as error:
                trouble = str(error)
                continue
            self.unsaved[unit], self.stored[unit] = [], done
            self.note_stored(unit)
        self.saved_at = CLOCK()
        report.save_seconds += self.saved_at - begun
        report.written, report.trouble = self.store.written, trouble
        return trouble is None


def in_step(shares: Sequence[Share]) -> list[Share]:
    """The shares, those at the same place as one, also in the middle of an epoch."""
    groups: list[list[Share]] = []
    made = joined(shares)
    blocks = [share for share in made if share.units.blocks and not share.units.head]
    rest = [share for share in made if share not in blocks]
    for share in blocks:
        alike = [group for group in groups if life(group[0]) == life(share)]
        if alike:
            alike[0].append(share)
        else:
            groups.append([share])
    return [together(group) for group in groups] + rest


def life(share: Share) -> tuple[Any, ...]:
    return share.seeds, share.epochs, place_of(share.progress), share.versions


def together(shares: Sequence[Share]) -> Share:
    """One share of blocks that are at the same place."""
    if len(shares) == 1:
        return shares[0]
    each = sorted(
        (share.part(Units.of([t])) for share in shares for t in share.units.blocks),
        key=lambda share: share.units.blocks,
    )
    done = [share.progress for share in each]
    lists = {name: [it for one in done for it in getattr(one, name)] for name in OF_BLOCKS}
    seconds = {
        name: sum(getattr(one, name) for one in done) for name in ("seconds", "epoch_seconds")
    }
    units = Units.of(t for share in each for t in share.units)
    return replace(each[0], units=units, progress=replace(done[0], **lists, **seconds))


def line_of(epoch: Epoch, units: Units, unit: Unit) -> dict[str, Any]:
    """The line of metrics.jsonl of one unit of those that were trained together."""
    line = asdict(epoch)
    del line["replica"]
    places = [units.blocks.index(unit)] if isinstance(unit, int) else []
    for name in ("loss", "error", "skipped"):
        line[name] = [line[name][i] for i in places]
    if unit != HEAD:
        line["head_loss"] = None
    return line | {"seconds": epoch.seconds / len(units), "units": [unit]}
