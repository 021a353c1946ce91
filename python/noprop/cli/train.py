"""noprop train: starts or resumes a run, saves it whatever ends it, and tests it once trained."""

import itertools
import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import typer

from .. import checkpoint, console_text, data, run_results, seeds, variants
from ..building import Split
from ..console import console
from ..datasets import own
from ..datasets.dataset import Dataset
from ..engines.driver import Fault
from ..errors import InputError, notice, train_extra
from ..evaluation import SAMPLES
from ..files import locked
from ..loggers import LOGGERS, Logger
from ..progress import display
from ..runs import Run
from ..settings import FIXED, Settings
from ..shares import Share, cut
from ..signals import Interrupted, asked_to_stop, status
from ..training import NotFinite
from . import common, dry_run, engines
from .guard import fail
from .options import LOGS, one_of, refused

with train_extra():
    from rich.console import Console


def run(options: SimpleNamespace) -> None:
    check(options)
    common.place_of(options)  # refuses at once what no run can use
    folder, anew = options.resume or options.out, options.resume is None
    if options.resume is not None and killed_before_its_first_save(options.resume):
        notice(f"{options.resume} holds nothing saved: it begins again")
        anew = True
    screen = console(stderr=options.as_json)
    with ExitStack() as held:
        if anew:
            check_free(folder)
            if options.dry_run:
                dry_run.run(options, screen)
                return
            run, content, split = new_run(options)
            shares = run.shares
        else:
            if not options.dry_run and folder.is_dir():
                held.enter_context(locked(folder))
            run, shares, content, split = resumed(options)
        if options.engine is not None:
            engines.check_apart(run.settings)
        place = common.placed(options, run.model)
        run.model.blocks.blocks_per_launch = options.blocks_per_launch
        # raises where no backend runs, before anything is written
        where = place.describe(run.model)
        for line in run.changes(shares):
            notice(f"warning: {line}; from here on the bits may differ")
        console_text.say(screen, content.describe())
        if options.dry_run:
            console_text.say(screen, where)
            dry_run.show(screen, run.model, run.settings, split.x.nbytes, options.as_json)
            return
        if anew:
            run.folder = claimed(folder, run.settings, held)
        console_text.say(screen, f"into {run.folder}, {where}")
        if options.engine is not None:
            train_elsewhere(run, content, split, screen, options)
        else:
            for share in shares:
                train(run, share, split, screen, options)
        if not run.whole:
            say_parts(run, screen, options.as_json)
            return
        console_text.say_test(screen, run.model, SAMPLES)
        test(run, content, split)
    common.show_result(screen, run.result or {}, options.as_json)


def check(options: SimpleNamespace) -> None:
    """
    Raises:
        typer.BadParameter: an option has an unknown value.
    """
    if not own.is_own(options.data):
        one_of("--data", options.data, (*data.NAMES, *own.KINDS, "or a folder"))
    if options.weight is not None:
        with refused("--weight"):
            variants.parse_weight(options.weight)
    for kind in options.log or ():
        LOGGERS[kind](Path())  # raises where its package is missing, before anything is written
    if options.seeds is not None:
        if common.on_command_line(options, "seed"):
            raise typer.BadParameter("--seeds has all seeds: leave --seed away")
        with refused("--seeds"):
            options.seed, options.seeds = None, seeds.parse(options.seeds)
    if options.resume is not None and options.out is not None:
        raise typer.BadParameter("--resume goes on in its own folder: leave --out away")
    if options.blocks is not None:
        options.blocks = common.parsed_units("--blocks", options.blocks)
    engines.check(options)


# folders


def killed_before_its_first_save(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir()) and checkpoint.is_unused(folder)


def check_free(folder: Path | None) -> None:
    if folder is None or not folder.exists():
        return
    if not folder.is_dir() or not checkpoint.is_unused(folder):
        raise typer.BadParameter(
            f"{folder} is not an empty folder: go on with --resume {folder}, or name another",
            param_hint="--out",
        )


def claimed(folder: Path | None, settings: Settings, held: ExitStack) -> Path:
    """Makes the folder of a new run and locks it until `held` ends: the requested one if it is
    free, else the next number in runs/ that no other process has taken.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder))
        check_free(folder)
        return folder
    stem = f"{Path(settings.data).stem}-{settings.variant}-{settings.preset}"
    Path("runs").mkdir(exist_ok=True)
    for i in itertools.count(1):
        folder = Path("runs", f"{stem}-{i}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        held.enter_context(locked(folder))
        return folder
    raise AssertionError("unreachable")


# runs


def new_run(options: SimpleNamespace) -> tuple[Run, Dataset, Split]:
    common.check_meaning(options)
    content = common.load_data(options, options.data_dir)
    split = Split.of(content, options.val_fraction)
    settings = common.settings_of(options, len(split.x), split, content.inputs.channels)
    if settings.embedding == "prototype":
        notice("the prototypes are chosen by all distances within each class")
    if options.blocks is not None:
        common.check_units("--blocks", options.blocks, settings)
    model = common.built(settings, content, split, options.backend, options.blocks)
    data_dir = None if options.data_dir is None else options.data_dir.absolute()
    folder = Path()  # until one is claimed
    shares = [Share(model.units, settings.each_seed, settings.epochs)]
    return Run(folder, settings, model, shares, content.fingerprint(), data_dir), content, split


def resumed(options: SimpleNamespace) -> tuple[Run, list[Share], Dataset, Split]:
    """The run to resume and its shares to train, after checking that no option contradicts it."""
    folder, epochs = options.resume, options.epochs
    run = Run.load(folder, options.backend)
    if not options.dry_run:
        engines.recover(run)
    for name in FIXED:
        was, asked = getattr(run.settings, name), getattr(options, name)
        if common.on_command_line(options, name) and was != asked:
            raise typer.BadParameter(
                f"{folder} was begun with {was}, and a run that goes on cannot change it",
                param_hint=common.option_of(name),
            )
    shares = run.shares
    if options.blocks is not None:
        common.check_units("--blocks", options.blocks, run.settings)
        if missing := options.blocks - run.model.units:
            raise typer.BadParameter(
                f"{folder} has {run.model.units}, and not {missing}", param_hint="--blocks"
            )
        shares, others = cut(run.shares, options.blocks)
        run.shares = [*shares, *others]
    for share in shares:
        if epochs is None or epochs == share.epochs:
            continue
        if run.settings.lr_schedule == "cosine":
            raise typer.BadParameter(
                f"{folder} was begun with {share.epochs} epochs and a cosine learning rate, "
                "which is 0 at their end",
                param_hint="--epochs",
            )
        if run.settings.early_weight_decay is not None:
            raise typer.BadParameter(
                f"{folder} was begun with {share.epochs} epochs and an early weight decay, which "
                "is of their first half",
                param_hint="--epochs",
            )
        share.epochs = epochs
    if epochs is not None and options.blocks is None:
        run.settings = replace(run.settings, epochs=epochs)
    content, split = common.data_of(run, options, moved=common.on_command_line(options, "data"))
    return run, shares, content, split


# training


def train(run: Run, share: Share, split: Split, screen: Console, options: SimpleNamespace) -> None:
    """Trains a share to its end.

    Raises:
        typer.Exit: a signal stopped it, or a loss was not finite; the run is saved.
    """
    rows = len(split.x)
    done = share.progress.epoch * rows + run.rows_of_epoch(share)
    if len(run.shares) > 1:
        console_text.say(
            screen, f"{share.units}: {share.progress.epoch} of {share.epochs} epochs done"
        )
    shown = display(screen, epochs=share.epochs, rows=rows, done=done)
    try:
        with ExitStack() as held, asked_to_stop() as signal_number, shown as display_:
            callbacks = [held.enter_context(logger) for logger in loggers(run, options.log)]
            finished = run.train(
                split,
                share,
                stop=lambda: signal_number() > 0,
                on_call=display_.advance,
                on_epoch=display_.epoch,
                callbacks=callbacks,
                say=notice,
                nonfinite=options.on_nonfinite,
                checkpoint_seconds=options.checkpoint_seconds,
            )
    except NotFinite as error:
        fail(f"{error}\nnoprop: saved; {go_on(run)} --on-nonfinite skip")
    except ValueError as error:  # the blocks cannot be trained on these data
        raise InputError(str(error)) from error
    if not finished:
        notice(f"interrupted in epoch {share.progress.epoch + 1} and saved; {go_on(run)}")
        raise typer.Exit(status(signal_number()))


def loggers(run: Run, kinds: list[str] | None) -> list[Logger]:
    """The loggers of a run: those that are asked for, and those that it has logs of; none where
    units are at different steps, which one count of steps cannot tell apart."""
    logs = run.folder / "logs"
    found = [kind for kind in LOGS if kind in (kinds or ()) or (logs / kind).is_dir()]
    if found and len(run.shares) > 1:
        notice("no steps are logged: units are at different ones")
        return []
    return [LOGGERS[kind](logs / kind) for kind in found]


def train_elsewhere(
    run: Run, content: Dataset, split: Split, screen: Console, options: SimpleNamespace
) -> None:
    """Trains all units by an engine.

    Raises:
        typer.Exit: a signal stopped it, or a worker found a fault; the run is saved.
    """
    try:
        number = engines.train(run, content, split, screen, options)
    except Fault as error:
        fail(f"{error}\nnoprop: saved; {go_on(run)}")
    if number:
        notice(f"interrupted and saved; {go_on(run)}")
        raise typer.Exit(status(number))


def say_parts(run: Run, screen: Console, as_json: bool) -> None:
    """Says what a trained run has not yet, and so is not tested for."""
    lacks = [f"{share.units} to be trained" for share in run.shares if not share.finished]
    if run.missing:
        lacks.append(f"{run.missing}, with which noprop merge makes one run of several")
    console_text.say(screen, f"{run.folder} has {run.model.units}; it lacks {', and '.join(lacks)}")
    if as_json:
        common.print_json(run_results.state(run))


def test(run: Run, content: Dataset, split: Split) -> None:
    """Tests a trained, saved run, and saves the result.

    Raises:
        typer.Exit: a signal arrived.
    """
    try:
        run.result = run.test(content, split, SAMPLES)
        run.save()
    except Interrupted as error:
        notice(f"interrupted in the test, trained and saved; {go_on(run)}")
        raise typer.Exit(status(error.number)) from None


def go_on(run: Run) -> str:
    return f"go on with: noprop train --resume {shlex.quote(str(run.folder))}"
