"""noprop train --engine: the units of a run, trained by workers in other processes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer

from noprop_kernels.backends.cpu import backend as cpu

from .. import choices, console_text, strict_json
from ..building import Split
from ..datasets.dataset import Dataset
from ..engines import collection
from ..engines.assignment import Unit, even_parts
from ..engines.driver import Driver
from ..engines.events import Pool
from ..engines.job import Job
from ..engines.store import name_of
from ..errors import notice, train_extra
from ..progress import display
from ..runs import Run
from ..settings import Settings
from ..signals import asked_to_stop
from ..units import Units
from . import common
from .options import ENGINES, one_of

with train_extra():
    from rich.console import Console
    from rich.filesize import decimal

OF = {  # the engines that have an option
    "address": ENGINES,
    "workers": ENGINES,
    "store": ENGINES,
    "isa": ENGINES,
    "mixed": ("ray",),
    "slurm": ("slurm",),
}
STORE, JOBS, EVENTS = "units", "jobs", "engine.jsonl"  # in a run's folder


def check(options: SimpleNamespace) -> None:
    """
    Raises:
        typer.BadParameter: options do not fit each other.
        ImportError: the engine's extra is not installed.
    """
    for name, engines in OF.items():
        if common.on_command_line(options, name) and options.engine not in engines:
            raise typer.BadParameter(
                f"only --engine {' and '.join(engines)} has it", param_hint=common.option_of(name)
            )
    if options.engine is None:
        return
    one_of("--engine", options.engine, ENGINES)
    for name in ("blocks", "log"):
        if getattr(options, name) is not None:
            raise typer.BadParameter("no engine has it", param_hint=common.option_of(name))
    if options.device not in ("auto", "cpu"):
        raise typer.BadParameter(
            "engines train on CPUs: on GPUs run noprop train --blocks on each, then noprop merge",
            param_hint="--device",
        )
    options.device = "cpu"
    module_of(options.engine)
    if options.isa is not None:
        one_of("--isa", options.isa, tuple(cpu.describe()["isas"]))
    options.slurm = parameters_of(options.slurm or [])
    if options.engine == "slurm" and options.workers is None:
        raise typer.BadParameter("slurm has to know how many tasks", param_hint="--workers")


def module_of(engine: str) -> Any:
    """
    Raises:
        ImportError: the engine's extra is not installed.
    """
    return import_module(f"noprop.engines.{engine}_engine")


def parameters_of(texts: list[str]) -> dict[str, str | int]:
    """
    Raises:
        typer.BadParameter: one is not NAME=VALUE.
    """
    values: dict[str, str | int] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise typer.BadParameter(f"{text!r} must be NAME=VALUE", param_hint="--slurm")
        values[name.replace("-", "_")] = int(value) if value.isdigit() else value
    return values


def check_apart(settings: Settings) -> None:
    """
    Raises:
        typer.BadParameter: the units of such a run cannot be trained apart.
    """
    reason = choices.no_units(settings.variant, settings.embedding, settings.seeds is not None)
    if reason is not None:
        raise typer.BadParameter(reason, param_hint="--engine")


def recover(run: Run) -> None:
    """Puts into a run what workers had stored when their driver was killed."""
    if collection.collect(run, run.folder / STORE):
        notice(f"{run.folder} goes on from checkpoints of its workers")


def train(
    run: Run, content: Dataset, split: Split, screen: Console, options: SimpleNamespace
) -> int:
    """Trains all units, and saves the run with what they have come to.

    Returns:
        The signal that ended it, or 0.

    Raises:
        Fault: a loss was not finite, or the data do not fit; the run is saved.
        InputError: no worker can train, or a task failed; the run is saved.
    """
    if not collection.unfinished(run):
        return 0
    folder = (options.store or run.folder / STORE).absolute()
    job = Job.of(
        run,
        content,
        split,
        folder,
        checkpoint_seconds=options.checkpoint_seconds,
        nonfinite=options.on_nonfinite,
        backend=options.backend,
    )
    over = over_ray if options.engine == "ray" else over_slurm
    trained, number = over(run, job, split, screen, options)
    if trained and options.store is None:
        collection.clear(folder)
    return 0 if trained else number


@contextmanager
def parted(run: Run, job: Job, parts: Mapping[str, Units]) -> Iterator[None]:
    """The parts are there, and at the end in the run, which is saved."""
    run.save()
    collection.begin(run, job.store, parts)
    try:
        yield
    finally:
        collection.collect(run, job.store)
        run.save()


def over_ray(
    run: Run, job: Job, split: Split, screen: Console, options: SimpleNamespace
) -> tuple[bool, int]:
    """Whether all is trained, and the signal that ended it."""
    ray_engine, left = module_of("ray"), collection.unfinished(run)
    parts = {name_of(unit): Units.of([unit]) for unit in left}
    with ray_engine.session(options.address, options.workers, options.threads) as size:
        tell(screen, f"ray: workers {size.workers}, threads of each {size.threads}", job)
        with (
            parted(run, job, parts),
            asked_to_stop() as signal_number,
            shown(screen, run, job) as show,
        ):

            def made(pool: Pool) -> Driver:
                return Driver(
                    pool,
                    left,
                    {unit: collection.steps(run, job)[unit] for unit in left},
                    isa=options.isa or trained_by(run),
                    mixed=options.mixed,
                    say=notice,
                    note=lambda record: note(run.folder, record),
                    show=show,
                )

            happened = ray_engine.train(job, split, size, made, lambda: signal_number() > 0)
            number = signal_number()
    note(run.folder, {"event": "ended", **happened})
    console_text.say(screen, summary(happened))
    return happened["trained"], number


def over_slurm(
    run: Run, job: Job, split: Split, screen: Console, options: SimpleNamespace
) -> tuple[bool, int]:
    """Whether all is trained, and the signal that ended it."""
    slurm_engine = module_of("slurm")
    shares = even_parts(collection.unfinished(run), options.workers)
    parts = {f"share-{index}": Units.of(units) for index, units in enumerate(shares)}
    tasks = [
        slurm_engine.Task(
            job.store / name,
            units,
            run.settings,
            run.data_dir,
            options.backend,
            options.threads,
            options.isa or trained_by(run),
            options.checkpoint_seconds,
            options.on_nonfinite,
        )
        for name, units in parts.items()
    ]
    jobs = (run.folder / JOBS).absolute()
    tell(screen, f"slurm: tasks {len(tasks)}, what they write is in {jobs}", job)
    with (
        parted(run, job, parts),
        asked_to_stop() as signal_number,
        shown(screen, run, job) as show,
    ):
        trained = slurm_engine.train(
            tasks,
            jobs,
            options.address,
            options.slurm,
            lambda: signal_number() > 0,
            lambda: show(collection.stored_steps(job)),
        )
        number = signal_number()
    return trained, number


def tell(screen: Console, line: str, job: Job) -> None:
    console_text.say(screen, f"{line}, checkpoints in {job.store}")


def trained_by(run: Run) -> str | None:
    """The instruction set of the units that were begun, where all have one."""
    known = {share.versions["instruction_set"] for share in run.shares if share.versions}
    return known.pop() if len(known) == 1 else None


@contextmanager
def shown(screen: Console, run: Run, job: Job) -> Iterator[Callable[[Mapping[Unit, int]], None]]:
    """One bar over the steps of all units, which may fall back; called with those of some."""
    known, totals = collection.steps(run, job), job.totals()
    rows, epochs = job.rows, run.settings.epochs

    def samples() -> int:
        part = sum(known[unit] / totals[unit] for unit in known) / len(known)
        return round(part * rows * epochs)

    done = samples()
    with display(screen, epochs=epochs, rows=rows, done=done) as display_:

        def show(steps: Mapping[Unit, int]) -> None:
            nonlocal done
            known.update(steps)
            before, done = done, samples()
            display_.advance(done - before)

        yield show


def note(folder: Path, record: Mapping[str, Any]) -> None:
    """Adds a line to a run's record of its workers."""
    with open(folder / EVENTS, "a", encoding="utf-8") as file:
        file.write(strict_json.dumps({"time": round(time.time(), 3), **record}) + "\n")


def summary(happened: Mapping[str, Any]) -> str:
    """What happened, and what was moved for it."""
    size = {name: decimal(it) for name, it in happened.items() if name.startswith("bytes")}
    return (
        f"{happened['joined']} workers came and {happened['lost']} were lost, "
        f"{happened['units_lost']} units went on from the store, {happened['steps_redone']} steps "
        f"were done again; moved: {size['bytes_data']} of rows to other nodes, "
        f"{size['bytes_written']} to the store in {happened['saves']} checkpoints, "
        f"{size['bytes_read']} back"
    )
