"""The actor of the engine ray: a process that trains units, turn by turn.

Training runs in one thread, and answers in another, so that a worker in the middle of a turn can
say how far it is and be asked to end it. A worker that Ray has started again holds nothing: it
reads its units from the store.
"""

import os
from typing import Any

import ray  # pyright: ignore[reportMissingImports]

from .agreement import Machine, this_machine, use_isa
from .assignment import Unit
from .events import Report
from .job import Job
from .work import Work

# of the actor
OPTIONS: dict[str, Any] = {
    "max_restarts": -1,
    "max_task_retries": 0,  # a turn is given again, perhaps to another
    "concurrency_groups": {"train": 1, "answer": 1},
    "scheduling_strategy": "SPREAD",
}


class Worker:
    """
    Args:
        job: what is trained.
        threads: of a call.
    """

    def __init__(self, job: Job, threads: int) -> None:
        self.job, self.threads = job, threads
        self.work: Work | None = None
        self.ended = -1  # the last turn that was asked to end

    @ray.method(concurrency_group="answer")
    def describe(self) -> tuple[Machine, int, str]:
        return this_machine(), os.getpid(), ray.get_runtime_context().get_node_id()

    @ray.method(concurrency_group="answer")
    def pulse(self) -> tuple[int, Report]:
        return os.getpid(), Report() if self.work is None else self.work.report.snapshot()

    @ray.method(concurrency_group="answer")
    def end_turn(self, turn: int) -> None:
        self.ended = max(self.ended, turn)

    @ray.method(concurrency_group="train")
    def train(self, turn: int, units: list[Unit], isa: str, rows: list[Any]) -> Report:
        """
        Args:
            rows: a list of one reference to the arrays. In a list Ray hands on the reference, and
                the arrays come once to each node.
        """
        use_isa(isa)
        if self.work is None:
            self.work = Work(self.job, ray.get(rows[0]), self.threads)
        return self.work.turn(units, lambda: self.ended >= turn)
