"""Workers as actors of Ray, which starts those that die again, where it finds room for them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray  # pyright: ignore[reportMissingImports]
from ray.exceptions import (  # pyright: ignore[reportMissingImports]
    ActorDiedError,
    RayActorError,
    RayError,
)

from ..errors import InputError
from .assignment import Unit
from .events import Event, Joined, Lost, Pulse, Stalled, Turned
from .job import Job
from .ray_worker import OPTIONS, Worker

PULSE_SECONDS = 0.5  # between two questions to a worker
STALL_SECONDS = 60.0  # without an answer, until others take its units
KILL_AFTER = 5.0  # times as long: then its process is ended, and replaced
MOST_DEATHS = 3  # of a worker in a row before it has joined
CLOCK = time.monotonic


@dataclass
class Seat:
    """A worker as the driver sees it.

    Attributes:
        actor: its handle, which outlives its processes.
        calls: its open calls, by what they ask.
        turn: number of its last turn.
        pid: its process; None: it has not joined.
        ask_at: when it is asked next.
        asked_at: when it was asked last.
        stalled: whether that was told.
        deaths: in a row before it has joined.
    """

    actor: Any
    calls: dict[str, Any] = field(default_factory=dict)
    turn: int = -1
    pid: int | None = None
    ask_at: float = 0.0
    asked_at: float = 0.0
    stalled: bool = False
    deaths: int = 0


class RayPool:
    """
    Args:
        size: workers, of which those wait that find no room, until a node comes.
        threads: of each, which Ray counts as its processors.
        job: what they train.
        rows: the reference to its arrays.

    Attributes:
        nodes: those that workers were on.
    """

    def __init__(self, size: int, threads: int, job: Job, rows: Any) -> None:
        self.size, self.threads, self.job, self.rows = size, threads, job, rows
        self.nodes: set[str] = set()
        self.events: list[Event] = []
        self.seats = {number: Seat(self.start()) for number in range(size)}

    def start(self) -> Any:
        """A new actor, on a node of its own where there are as many."""
        actor: Any = ray.remote(num_cpus=self.threads, **OPTIONS)(Worker)
        return actor.remote(self.job, self.threads)

    def train(self, worker: int, units: Sequence[Unit], isa: str) -> None:
        seat = self.seats[worker]
        seat.turn += 1
        seat.calls["train"] = seat.actor.train.remote(seat.turn, list(units), isa, [self.rows])

    def end_turn(self, worker: int) -> None:
        seat = self.seats[worker]
        seat.actor.end_turn.remote(seat.turn)

    def wait(self, seconds: float) -> list[Event]:
        """
        Raises:
            InputError: no worker can be started, or a turn's error.
        """
        for number, seat in self.seats.items():
            self.question(number, seat)
        places = {
            call: (number, what)
            for number, seat in self.seats.items()
            for what, call in seat.calls.items()
        }
        ready, _ = ray.wait(list(places), num_returns=1, timeout=seconds) if places else ([], [])
        if ready:
            ready, _ = ray.wait(list(places), num_returns=len(places), timeout=0)
        for call in ready:
            number, what = places[call]
            if self.seats[number].calls.get(what) is call:  # not dropped by an earlier one
                del self.seats[number].calls[what]
                self.answer(number, what, call)
        events, self.events = self.events, []
        return events

    def question(self, number: int, seat: Seat) -> None:
        """Asks a worker who it is, or how far; and notices that it does not answer."""
        now, what = CLOCK(), "describe" if seat.pid is None else "pulse"
        if what not in seat.calls and now >= seat.ask_at:
            seat.calls[what] = getattr(seat.actor, what).remote()
            seat.asked_at, seat.ask_at = now, now + PULSE_SECONDS
        silent = now - seat.asked_at
        if seat.pid is None or what not in seat.calls or silent < STALL_SECONDS:
            return
        if not seat.stalled:
            seat.stalled = True
            self.events.append(Stalled(number, silent))
        elif silent > KILL_AFTER * STALL_SECONDS:
            ray.kill(seat.actor, no_restart=False)
            self.lose(number, "it did not answer and was ended")

    def answer(self, number: int, what: str, call: Any) -> None:
        seat = self.seats[number]
        try:
            value: Any = ray.get(call)
        except ActorDiedError as error:  # Ray will not start it again
            self.replace(number, reason(error))
        except RayActorError as error:
            self.lose(number, reason(error))
        else:
            if what == "train":
                self.events.append(Turned(number, value))
            elif what == "describe":
                self.join(number, *value)
            elif value[0] != seat.pid:
                self.lose(number, "its process ended")
            else:
                seat.stalled = False
                self.events.append(Pulse(number, value[1]))

    def join(self, number: int, machine: Any, pid: int, node: str) -> None:
        seat = self.seats[number]
        seat.pid, seat.deaths, seat.stalled = pid, 0, False
        if seat.turn >= 0:
            self.end_turn(number)  # it may be the same process, which could not be reached
        self.nodes.add(node)
        self.events.append(Joined(number, machine, pid, node))

    def lose(self, number: int, why: str) -> None:
        """Forgets what a worker was asked; it is asked again who it is."""
        seat = self.seats[number]
        if seat.pid is not None:
            self.events.append(Lost(number, why))
        seat.calls.clear()
        seat.pid, seat.ask_at, seat.stalled = None, CLOCK() + PULSE_SECONDS, False

    def replace(self, number: int, why: str) -> None:
        """
        Raises:
            InputError: it has died too often.
        """
        self.lose(number, why)
        seat = self.seats[number]
        seat.deaths += 1
        if seat.deaths >= MOST_DEATHS:
            raise InputError(f"a worker cannot be started: {why}")
        seat.actor = self.start()


def reason(error: RayError) -> str:
    """The line that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ActorDiedError):
        return next((line for line in reversed(lines) if "Error" in line), lines[0])
    return "its process ended" if "restarted" in lines[0] else "it cannot be reached"
