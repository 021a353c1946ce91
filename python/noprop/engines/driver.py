"""Gives units to workers, turn by turn, until all are trained to their end.

A turn ends with a checkpoint of each of the worker's units in the store. Between two turns units
may go from one worker to another; those of a worker that is lost or stalled are free at once, and
whoever takes them goes on from the store. A worker that comes while others have several units gets
some of them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from ..units import Units
from . import agreement
from .agreement import Machine
from .assignment import Unit, next_units, to_end
from .counts import Counts
from .events import Event, Joined, Lost, Pool, Pulse, Report, Stalled, Turned

POLL_SECONDS = 0.2
JOIN_SECONDS = 20.0  # after the first worker, for the others, before all agree
CLOCK = time.monotonic


class Fault(InputError):
    """The units cannot be trained on, as a worker has found; what was trained is in the store."""


@dataclass
class Driver:
    """
    Args:
        pool: the workers.
        units: all that are trained, in their order.
        steps: of each unit, those that the store has.
        finished: the units that the store has at their end.
        isa: the instruction set of all workers; None: the best that those at the start have in
            common.
        mixed: whether to take workers whose bits may differ.
        say: called with a line for people.
        note: called with a record of each event.
        show: called with the steps of each unit that were last seen.

    Attributes:
        machines: the workers that may train.
        held: the units of each worker, those of its last turn while it has none.
        busy: the workers in a turn; asleep: those of them that do not answer, whose units others
            have; asked: those that were asked to end theirs.
        refused: the workers that may not train.
        seen: the steps of each unit that were last heard of, saved or not.
        reports: of the turns of those in one.
    """

    pool: Pool
    units: Sequence[Unit]
    steps: dict[Unit, int] = field(default_factory=dict)
    finished: set[Unit] = field(default_factory=set)
    isa: str | None = None
    mixed: bool = False
    say: Callable[[str], None] = lambda line: None
    note: Callable[[dict[str, Any]], None] = lambda record: None
    show: Callable[[Mapping[Unit, int]], None] = lambda steps: None
    counts: Counts = field(default_factory=Counts)
    machines: dict[int, Machine] = field(default_factory=dict)
    held: dict[int, list[Unit]] = field(default_factory=dict)
    busy: set[int] = field(default_factory=set)
    asleep: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    seen: dict[Unit, int] = field(init=False)
    reports: dict[int, Report] = field(default_factory=dict)
    first_joined: float | None = None
    like: Machine | None = None
    told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.seen = dict(self.steps)

    @property
    def left(self) -> list[Unit]:
        """The units that are not saved at their end."""
        return [unit for unit in self.units if unit not in self.finished]

    def run(self, stop: Callable[[], bool]) -> bool:
        """Trains until all units are saved at their end, or `stop()` is true and every worker that
        is there has saved; false in the second case.

        Raises:
            Fault: a worker's training has ended; all have saved.
            InputError: no worker can be started, or they cannot agree.
        """
        try:
            while self.left:
                if stop():
                    self.end()
                    return False
                self.advance()
                self.assign()
        except Fault:
            self.end()
            raise
        return True

    def end(self) -> None:
        """Has every busy worker save, and waits for those that live."""
        while awake := self.busy - self.asleep:
            for worker in awake - self.asked:
                self.ask(worker)
            self.advance()

    def advance(self) -> None:
        for event in self.pool.wait(POLL_SECONDS):
            self.take(event)
        self.show(self.seen)

    def ask(self, worker: int) -> None:
        self.pool.end_turn(worker)
        self.asked.add(worker)

    # events

    def take(self, event: Event) -> None:
        if isinstance(event, Pulse):
            self.pulse(event)
        elif isinstance(event, Joined):
            self.join(event)
        elif isinstance(event, Turned):
            self.turned(event)
        elif isinstance(event, Lost):
            self.lose(event)
        else:
            self.stall(event)

    def pulse(self, event: Pulse) -> None:
        worker = event.worker
        if worker in self.asleep:
            self.asleep.discard(worker)
            self.record("awake", worker)
            if worker in self.busy:
                self.ask(worker)  # its units are others' now
        if worker in self.busy:
            self.look(worker, event.report)

    def look(self, worker: int, report: Report) -> None:
        """Notes how far a turn is."""
        before = self.reports.get(worker)
        self.reports[worker] = report
        for unit, steps in report.steps.items():
            self.steps[unit] = max(steps, self.steps.get(unit, 0))
        self.finished |= report.finished
        for unit in self.held.get(worker, ()):
            self.seen[unit] = max(report.seen.get(unit, 0), self.steps.get(unit, 0))
        if report.trouble is not None and (before is None or before.trouble is None):
            self.counts.failed_saves += 1
            self.record("failed_save", worker, why=report.trouble)
            self.say_once(f"a worker cannot save: {report.trouble}; it goes on and tries again")

    def join(self, event: Joined) -> None:
        machine, self.counts.joined = event.machine, self.counts.joined + 1
        self.record("joined", event.worker, host=machine.host, pid=event.pid, node=event.node)
        if self.like is not None and self.isa is not None:
            self.admit(event.worker, machine)
            return
        self.machines[event.worker] = machine
        if self.first_joined is None:
            self.first_joined = CLOCK()

    def turned(self, event: Turned) -> None:
        """
        Raises:
            Fault: the worker found one.
        """
        worker, report = event.worker, event.report
        self.look(worker, report)
        self.close(worker)
        if report.fault is not None:
            raise Fault(report.fault)

    def close(self, worker: int) -> None:
        """Ends a turn."""
        report = self.reports.pop(worker, None)
        if report is not None:
            self.counts.add(report)
            self.record(
                "turned",
                worker,
                units=list(report.seen),
                saves=report.saves,
                refused=report.refused,
                bytes_written=report.written,
                bytes_read=report.read,
            )
        for known in (self.busy, self.asleep, self.asked):
            known.discard(worker)

    def lose(self, event: Lost) -> None:
        self.counts.lost += 1
        units, redone = self.free(event.worker)
        self.close(event.worker)
        self.machines.pop(event.worker, None)
        self.refused.discard(event.worker)
        self.record("lost", event.worker, why=event.reason, units=units, steps_redone=redone)
        self.say(f"a worker is lost: {event.reason}{gone_on(units)}")

    def stall(self, event: Stalled) -> None:
        self.counts.stalled += 1
        units, redone = self.free(event.worker)
        self.asleep.add(event.worker)
        self.record("stalled", event.worker, units=units, steps_redone=redone)
        self.say(f"a worker has not answered for {event.seconds:.0f} s{gone_on(units)}")

    def free(self, worker: int) -> tuple[list[Unit], int]:
        """Takes a worker's units away: what others go on with, and the steps they do again."""
        units = [unit for unit in self.held.pop(worker, []) if unit in self.left]
        if worker not in self.busy:
            return [], 0  # what it had is in the store
        redone = 0
        for unit in units:
            stored = self.steps.get(unit, 0)
            redone += max(0, self.seen.get(unit, 0) - stored)
            self.seen[unit] = stored
        self.counts.units_lost += len(units)
        self.counts.steps_redone += redone
        return units, redone

    # workers

    def agree(self) -> bool:
        """Whether workers may begin: all are there, or the first has waited long enough."""
        if self.like is not None:
            return True
        if self.first_joined is None:
            return False
        waited = CLOCK() - self.first_joined
        if len(self.machines) < self.pool.size and waited < JOIN_SECONDS:
            return False
        machines, self.machines = self.machines, {}
        self.like = agreement.this_machine()
        if self.isa is None:
            # a worker with other versions is refused, so that it has no say
            fits = [
                m for m in machines.values() if agreement.refusal(m, self.like, m.isas[0]) is None
            ]
            self.isa = agreement.common_isa(fits or [self.like])
        self.record("agreed", None, isa=self.isa, hosts=agreement.hosts(machines.values()))
        for worker, machine in machines.items():
            self.admit(worker, machine)
        return True

    def admit(self, worker: int, machine: Machine) -> None:
        """
        Raises:
            InputError: it is refused, as all others are.
        """
        assert self.like is not None and self.isa is not None  # by `agree`
        why = agreement.refusal(machine, self.like, self.isa)
        if why is None or self.mixed:
            if why is not None:
                self.say_once(f"warning: on {machine.host} {why}: the bits may differ")
            self.machines[worker] = machine
            return
        self.counts.refused_workers += 1
        self.record("refused_worker", worker, host=machine.host, why=why)
        self.refused.add(worker)
        line = f"a worker on {machine.host} is refused: {why} (--mixed takes it)"
        if len(self.refused) == self.pool.size:
            raise InputError(f"{line}, and so are all others")
        self.say_once(line)

    def assign(self) -> None:
        if not self.agree():
            return
        assert self.isa is not None
        able = [worker for worker in self.machines if worker not in self.asleep]
        left = self.left
        idle = [worker for worker in able if worker not in self.busy]
        for worker in sorted(idle, key=lambda each: -len(self.held.get(each, ()))):
            units = self.held[worker] = next_units(worker, self.held, left, able)
            if units:
                self.pool.train(worker, units, self.isa)
                self.busy.add(worker)
                idle.remove(worker)
        if idle and not self.asked:  # some have nothing to do
            most = to_end(self.held, left, able)
            if most is not None and most in self.busy:
                self.ask(most)

    # words

    def record(self, what: str, worker: int | None, **more: Any) -> None:
        self.note({"event": what, **({} if worker is None else {"worker": worker}), **more})

    def say_once(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            self.say(line)


def gone_on(units: Sequence[Unit]) -> str:
    return f"; {Units.of(units)} go on from the store" if units else ""
