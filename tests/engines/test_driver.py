"""Who trains what: the driver with workers that are made up, and what they agree on."""

import itertools
import random
from dataclasses import replace

import pytest

from noprop.engines import agreement, driver
from noprop.engines.agreement import Machine, common_isa, refusal
from noprop.engines.assignment import even_parts, next_units, to_end
from noprop.engines.driver import Driver, Fault
from noprop.engines.events import Joined, Lost, Pulse, Report, Stalled, Turned
from noprop.errors import InputError

HERE = Machine("here", ("avx512", "avx2", "baseline"), "0.1", "2.13", "x86_64", "GNU")


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Each look at the clock takes a second."""
    monkeypatch.setattr(agreement, "this_machine", lambda: HERE)
    monkeypatch.setattr(driver, "CLOCK", itertools.count().__next__)


class MadeUp:
    """Workers that take a step of each unit in each `wait`, and save every third."""

    def __init__(self, size: int, totals: dict, stored: dict) -> None:
        self.size, self.totals, self.stored = size, totals, stored
        self.given: list[tuple[int, list]] = []
        self.memory: dict[int, dict] = {}
        self.reports: dict[int, Report] = {}
        self.ending: set[int] = set()
        self.frozen: set[int] = set()
        self.events: list = []

    def join(self, worker: int, machine: Machine = HERE) -> None:
        self.events.append(Joined(worker, machine, 1, "node"))

    def kill(self, worker: int) -> None:
        for known in (self.memory, self.reports):
            known.pop(worker, None)
        self.frozen.discard(worker)
        self.events.append(Lost(worker, "killed"))

    def freeze(self, worker: int) -> None:
        self.frozen.add(worker)
        self.events.append(Stalled(worker, 60))

    def train(self, worker, units, isa) -> None:
        assert units and worker not in self.memory
        self.given.append((worker, list(units)))
        self.memory[worker] = {unit: self.stored.get(unit, 0) for unit in units}
        self.reports[worker] = Report(steps=dict(self.memory[worker]))

    def end_turn(self, worker) -> None:
        self.ending.add(worker)

    def save(self, worker: int) -> None:
        report = self.reports[worker]
        for unit, steps in self.memory[worker].items():
            if steps > self.stored.get(unit, -1):
                self.stored[unit] = steps
                report.saves += 1
            elif steps < self.stored[unit]:
                report.refused.append(unit)
            report.steps[unit] = self.stored[unit]
            if self.stored[unit] == self.totals[unit]:
                report.finished.add(unit)

    def wait(self, seconds) -> list:
        for worker in [each for each in self.memory if each not in self.frozen]:
            memory, report = self.memory[worker], self.reports[worker]
            for unit in memory:
                memory[unit] = min(memory[unit] + 1, self.totals[unit])
            report.seen = dict(memory)
            done = all(steps == self.totals[unit] for unit, steps in memory.items())
            if done or worker in self.ending or max(memory.values()) % 3 == 0:
                self.save(worker)
            if done or worker in self.ending:
                self.ending.discard(worker)
                del self.memory[worker], self.reports[worker]
                self.events.append(Turned(worker, report))
            else:
                self.events.append(Pulse(worker, report.snapshot()))
        events, self.events = self.events, []
        return events


def made(size: int, units: int, steps: int = 20) -> tuple[Driver, MadeUp]:
    totals = {unit: steps for unit in [*range(1, units), "head"]}
    pool = MadeUp(size, totals, {})
    return Driver(pool, list(totals)), pool


def test_units_are_shared_evenly() -> None:
    assert even_parts([1, 2, 3, 4, "head"], 2) == [[1, 2], [3, 4, "head"]]
    assert even_parts([1, 2], 5) == [[1], [2]] and even_parts([], 3) == []
    with pytest.raises(ValueError, match="at least 1, got 0"):
        even_parts([1], 0)


def test_a_worker_keeps_its_units_up_to_its_part() -> None:
    left = [1, 2, 3, 4, 5]
    assert next_units(0, {0: [1, 2, 3, 4, 5]}, left, [0, 1]) == [1, 2, 3]
    assert next_units(1, {0: [1, 2, 3]}, left, [0, 1]) == [4, 5]
    assert next_units(1, {0: [1, 2, 3], 1: [4]}, [1, 2, 3], [0, 1]) == []


def test_a_turn_is_ended_only_for_a_worker_that_can_get_something_of_it() -> None:
    assert to_end({0: [1]}, [1], [0, 1, 2]) is None
    assert to_end({0: [1, 2], 1: [3]}, [1, 2, 3], [0, 1]) is None
    assert to_end({0: [1, 2], 1: [3, 4]}, [1, 2, 3, 4], [0, 1, 2]) == 1
    assert next_units(1, {0: [1, 2], 1: [3, 4]}, [1, 2, 3, 4], [0, 1, 2]) == [3]
    assert to_end({0: [1, 2, 3]}, [3], [0, 1]) is None
    assert to_end({}, [], []) is None


@pytest.mark.parametrize("units", range(1, 8))
def test_no_more_turns_than_changes(units: int) -> None:
    run, pool = made(3, units)
    for worker in range(3):
        pool.join(worker)
    assert run.run(lambda: False) and pool.stored == pool.totals
    assert len(pool.given) == min(units, 3)


def test_all_units_are_trained_once_where_nothing_happens() -> None:
    run, pool = made(2, 5)
    pool.join(0), pool.join(1)
    assert run.run(lambda: False) and pool.stored == pool.totals
    assert sorted(map(str, sum((units for _, units in pool.given), []))) == sorted("1234") + [
        "head"
    ]
    assert run.counts.joined == 2 and run.counts.lost == run.counts.units_lost == 0


def test_a_worker_that_comes_later_gets_units_of_one_with_several() -> None:
    run, pool = made(2, 6)
    pool.join(0)
    run.isa = "avx2"
    run.machines, run.like = {}, HERE
    for _ in range(4):
        run.advance(), run.assign()
    pool.join(1)
    assert run.run(lambda: False)
    assert {worker for worker, _ in pool.given} == {0, 1}
    assert [units for worker, units in pool.given if worker == 1][0] == [4, 5, "head"]


def test_units_of_a_lost_worker_go_on_from_the_store() -> None:
    run, pool = made(2, 4, steps=40)
    lines: list[str] = []
    run.say = lines.append
    pool.join(0), pool.join(1)
    for _ in range(6):
        run.advance(), run.assign()
    held = pool.memory[0].copy()
    pool.kill(0)
    run.advance()
    assert run.counts.lost == 1 and run.counts.units_lost == len(held) == 2
    assert run.counts.steps_redone == sum(steps - pool.stored[unit] for unit, steps in held.items())
    assert lines == ["a worker is lost: killed; blocks 1-2 go on from the store"]
    assert run.run(lambda: False) and pool.stored == pool.totals


def test_a_stalled_worker_that_wakes_up_sets_nothing_back() -> None:
    run, pool = made(2, 2, steps=30)
    pool.join(0), pool.join(1)
    for _ in range(4):
        run.advance(), run.assign()
    pool.freeze(0)
    while pool.stored.get(1, 0) < 20:
        run.advance(), run.assign()
    pool.frozen.discard(0)
    assert run.run(lambda: False) and pool.stored == pool.totals
    assert run.counts.stalled == 1 and run.counts.refused_saves >= 1


def test_stopping_saves_all() -> None:
    run, pool = made(2, 4, steps=100)
    pool.join(0), pool.join(1)
    for _ in range(5):
        run.advance(), run.assign()
    assert not run.run(lambda: True)
    assert set(pool.stored.values()) == {5} or set(pool.stored.values()) == {4}
    assert run.steps == pool.stored and not pool.memory


def test_a_fault_saves_all_and_ends_the_run() -> None:
    run, pool = made(2, 4, steps=100)
    pool.join(0), pool.join(1)
    for _ in range(5):
        run.advance(), run.assign()
    pool.events.append(Turned(0, replace(pool.reports.pop(0).snapshot(), fault="not finite")))
    pool.memory.pop(0)
    with pytest.raises(Fault, match="not finite"):
        run.run(lambda: False)
    assert not pool.memory  # the other has saved


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_to_workers_all_units_are_trained(seed: int) -> None:
    rng = random.Random(seed)
    run, pool = made(3, 7, steps=30)
    pool.join(0)
    there, happened = {0}, 0

    def disturb() -> bool:
        nonlocal happened
        if happened < 20 and rng.random() < 0.4:
            happened += 1
            worker = rng.randrange(3)
            if worker not in there:
                there.add(worker)
                pool.join(worker)
            elif worker in pool.frozen:
                pool.frozen.discard(worker)
                pool.events.append(Pulse(worker, Report()))
            elif rng.random() < 0.5 or worker not in pool.memory:
                there.discard(worker)
                pool.kill(worker)
            else:
                pool.freeze(worker)
        elif happened == 20 and not there - pool.frozen:
            for worker in range(3):
                pool.kill(worker), pool.join(worker)
            happened += 1
        assert all(
            not set(one) & set(other)
            for a, one in run.held.items()
            for b, other in run.held.items()
            if a < b and a in run.busy and b in run.busy
        )
        return False

    assert run.run(disturb) and pool.stored == pool.totals


def test_all_agree_on_the_best_instruction_set_that_each_has() -> None:
    poor = replace(HERE, host="there", isas=("avx2", "baseline"))
    assert common_isa([HERE]) == common_isa([HERE, HERE]) == "avx512"
    assert common_isa([HERE, HERE, poor]) == common_isa([poor, HERE]) == "avx2"
    arm = replace(HERE, host="arm", isas=("neon",))
    with pytest.raises(InputError, match="here has avx512, avx2, baseline; arm has neon"):
        common_isa([HERE, arm])
    run, pool = made(2, 3)
    pool.join(0), pool.join(1, poor)
    assert run.run(lambda: False) and run.isa == "avx2"


@pytest.mark.parametrize("mixed", [False, True])
def test_a_worker_that_came_too_late_to_agree_is_refused_unless_asked(mixed: bool) -> None:
    run, pool = made(2, 3)
    lines: list[str] = []
    run.say, run.mixed, run.isa = lines.append, mixed, "avx512"
    other = replace(HERE, host="there", isas=("avx2",), torch="2.14")
    pool.join(0), pool.join(1, other)
    assert run.run(lambda: False)
    why = "it has no avx512, but avx2; torch is 2.14, not 2.13"
    assert refusal(other, HERE, "avx512") == why and refusal(HERE, HERE, "avx512") is None
    assert {worker for worker, _ in pool.given} == ({0, 1} if mixed else {0})
    assert run.counts.refused_workers == (not mixed)
    assert lines == [
        f"warning: on there {why}: the bits may differ"
        if mixed
        else f"a worker on there is refused: {why} (--mixed takes it)"
    ]


def test_workers_wait_for_each_other_before_they_agree(monkeypatch) -> None:
    run, pool = made(3, 3)
    pool.join(0)
    now = [0.0]
    monkeypatch.setattr(driver, "CLOCK", lambda: now[0])
    for now[0] in (0.0, driver.JOIN_SECONDS - 1):
        run.advance(), run.assign()
        assert not pool.given
    now[0] = driver.JOIN_SECONDS
    run.assign()
    assert pool.given
