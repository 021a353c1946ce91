"""noprop replace: puts other units in the place of some of a run."""

from types import SimpleNamespace

import typer

from .. import console_text
from ..console import console
from ..files import locked
from ..repairing import check_units, replace_by
from ..runs import Run
from . import common
from .repair import finish, retrained


def run(options: SimpleNamespace) -> None:
    if (options.fresh is None) == (options.source is None):
        raise typer.BadParameter("name one of --fresh SEED and --from RUN", param_hint="--fresh")
    units = common.parsed_units("--block", options.block)
    common.place_of(options)  # refuses at once what no run can use
    with locked(options.folder):
        run = Run.load(options.folder, options.backend)
        check_units(run, units)
        if options.source is None:
            retrained(run, units, options, options.fresh)
            return
        exchanges = replace_by(run, units, Run.load(options.source))
        common.placed(options, run.model)
        content, split = common.data_of(run, options, moved=options.data is not None)
        bits = "with the bits that were there" if exchanges[0].same else "with other bits"
        console_text.say(
            console(stderr=options.as_json), f"{units}: those of {options.source}, {bits}"
        )
        finish(run, exchanges, content, split, options)
