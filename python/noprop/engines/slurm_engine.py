"""The engine slurm: an array job by submitit, in which a task's index says which units it trains.

A task trains its share in a folder of its own, and goes on there where it is preempted and queued
again. No task waits for another, and none talks to another.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..apart import train_share
from ..errors import InputError, extra
from ..settings import Settings
from ..signals import asked_to_stop
from ..units import Units
from .agreement import use_isa

with extra("slurm"):
    import submitit  # pyright: ignore[reportMissingImports]
    from submitit.core.utils import (  # pyright: ignore[reportMissingImports]
        UncompletedJobError,  # and FailedJobError, which is one
    )

LOOK_SECONDS = 1.0  # between two looks at the tasks
MINUTES = 60 * 24  # of a task, unless asked otherwise


@dataclass(frozen=True)
class Task:
    """What a task does; submitit calls it there.

    Attributes:
        folder: of its share.
        units: of its share.
        settings, data_dir, backend: of the run.
        threads: None: as many as there are.
        isa: None: the best that runs there.
        checkpoint_seconds, nonfinite: as of `train_share`.
    """

    folder: Path
    units: Units
    settings: Settings
    data_dir: Path | None
    backend: str | None
    threads: int | None
    isa: str | None
    checkpoint_seconds: float
    nonfinite: str | None

    def __call__(self) -> bool:
        """Whether it came to its end; false where it was asked to stop, and has saved."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.isa is not None:
            use_isa(self.isa)
        with asked_to_stop() as signal_number:
            run = train_share(
                self.folder,
                self.settings,
                self.units,
                data_dir=self.data_dir,
                backend=self.backend,
                stop=lambda: signal_number() > 0,
                nonfinite=self.nonfinite,
                checkpoint_seconds=self.checkpoint_seconds,
            )
        return all(share.finished for share in run.shares)

    def checkpoint(self) -> Any:
        """What is queued where the task is preempted: itself, since its folder has where it was."""
        return submitit.helpers.DelayedSubmission(self)


def train(
    tasks: Sequence[Task],
    jobs: Path,
    cluster: str | None,
    parameters: Mapping[str, Any],
    stop: Callable[[], bool],
    show: Callable[[], None],
) -> bool:
    """Submits the tasks as one array, and waits for them.

    Args:
        tasks: one a share.
        jobs: a folder for what submitit writes, which all nodes reach.
        cluster: "slurm"; "local" runs the tasks as processes of this machine. None: slurm.
        parameters: of sbatch, by their long names.
        stop: true ends the tasks, which save.
        show: called every while.

    Returns:
        Whether all came to their end.

    Raises:
        InputError: there is no such cluster here, it refuses the job, or a task failed.
    """
    try:
        executor = submitit.AutoExecutor(folder=jobs, cluster=cluster or "slurm")
        threads = tasks[0].threads or 1
        executor.update_parameters(
            name="noprop",
            timeout_min=MINUTES,
            cpus_per_task=threads,
            **{f"slurm_{name}": value for name, value in parameters.items()},
        )
        with executor.batch():  # as one array
            array = [executor.submit(task) for task in tasks]
    except (RuntimeError, ValueError, NameError) as error:
        hint = "; --address local runs the tasks as processes of this machine"
        raise InputError(f"submitit: {error}{'' if cluster else hint}") from error
    cancelled = False
    while not all(job.done() for job in array):
        if stop() and not cancelled:
            cancelled = True
            for job in array:
                job.cancel(check=False)
        show()
        time.sleep(LOOK_SECONDS)
    show()
    if cancelled:
        return False
    return all([outcome(job) for job in array])


def outcome(job: Any) -> bool:
    """
    Raises:
        InputError: the task failed.
    """
    try:
        return bool(job.result())
    except UncompletedJobError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"task {job.job_id} failed: {lines[-1] if lines else error}; all of it is in "
            f"{job.paths.stderr}"
        ) from error
