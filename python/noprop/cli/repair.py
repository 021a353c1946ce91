"""noprop repair: trains units of a run again, to the bits that they had."""

from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace

import typer

from .. import console_text
from ..building import Split
from ..console import console
from ..data import Dataset
from ..errors import InputError, notice
from ..evaluation import SAMPLES
from ..files import locked
from ..repairing import Exchange, check_units, retrain
from ..runs import Run
from ..shares import cut
from ..signals import asked_to_stop, status
from ..units import Units
from . import common, train


def run(options: SimpleNamespace) -> None:
    units = common.parsed_units("--block", options.block)
    common.place_of(options)  # refuses at once what no run can use
    with locked(options.folder):
        run = Run.load(options.folder, options.backend)
        check_units(run, units)
        retrained(run, units, options)


def retrained(run: Run, units: Units, options: SimpleNamespace, seed: int | None = None) -> None:
    """Trains units of a run again, and saves it.

    Raises:
        typer.Exit: a signal stopped it, and nothing has changed.
    """
    screen = console(stderr=options.as_json)
    place = common.placed(options, run.model)
    for line in run.changes(cut(run.shares, units)[0]) if seed is None else []:
        notice(f"warning: {line}; the bits may differ")
    content, split = common.data_of(run, options, moved=options.data is not None)
    console_text.say(screen, content.describe())
    console_text.say(screen, f"{units} of {run.folder}, {place.describe(run.model)}")
    try:
        with asked_to_stop() as signal_number:
            exchanges = retrain(
                run, units, split, seed=seed, stop=lambda: signal_number() > 0, say=notice
            )
    except ValueError as error:  # a loss that is not finite, or data that do not fit
        raise InputError(f"{run.folder} is as it was: {error}") from error
    if exchanges is None:
        notice(f"interrupted: {run.folder} is as it was")
        raise typer.Exit(status(signal_number()))
    for exchange in exchanges:
        bits = "the bits that were there" if exchange.same else "other bits than were there"
        console_text.say(screen, f"{exchange.units}: {exchange.seconds:.1f} s of training, {bits}")
    finish(run, exchanges, content, split, options)


def finish(
    run: Run,
    exchanges: Sequence[Exchange],
    content: Dataset,
    split: Split,
    options: SimpleNamespace,
) -> None:
    """Saves a run with other units, tests it where it is whole and has no result, and shows it."""
    screen = console(stderr=options.as_json)
    run.save()
    for line in run.lines():
        notice(line)
    if run.whole and run.result is None:
        console_text.say_test(screen, run.model, SAMPLES)
        train.test(run, content, split)
    if run.result is not None:
        console_text.show_result(screen, run.result)
    if options.as_json:
        made = [asdict(each) | {"units": list(each.units)} for each in exchanges]
        common.print_json({"run": str(run.folder), "exchanged": made, "result": run.result})
