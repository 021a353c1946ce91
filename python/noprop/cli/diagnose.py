"""noprop diagnose: what each block of a run does, and which ones hurt."""

import shlex
from types import SimpleNamespace

from .. import console_text
from ..console import console
from ..diagnosis import BlockHealth, Diagnosis, diagnose, summary
from ..errors import train_extra
from ..merging import check_apart
from ..runs import Run
from ..units import ranges
from . import common

with train_extra():
    from rich.console import Console
    from rich.table import Table


def run(options: SimpleNamespace) -> None:
    screen = console(stderr=options.as_json, needed=not options.as_json)
    common.place_of(options)  # refuses at once what no run can use
    run = Run.load(options.folder, options.backend)
    check_apart(run)
    place = common.placed(options, run.model)
    _, split = common.data_of(run, options, moved=options.data is not None)
    console_text.say(screen, f"{run.model.units} of {run.folder}, {place.describe(run.model)}")
    found = diagnose(run, split)
    show(screen, found, run)
    if options.as_json:
        common.print_json({"run": str(run.folder)} | found.to_json())


def show(screen: Console, found: Diagnosis, run: Run) -> None:
    """The table of the blocks, those that hurt, and what mends them."""
    held_out = run.settings.val_fraction > 0
    of = "held-out rows" if held_out else "training rows"
    screen.print(blocks_table(found.blocks, f"{found.rows:,} {of}"))
    if found.accuracy is not None:
        console_text.say(screen, f"the answer is right for {found.accuracy:.2%} of them")
    for line in summary(found.blocks):
        console_text.say(screen, line)
    seconds = [block.seconds for block in found.blocks if block.seconds is not None]
    cost = ""
    if seconds:
        cost = f"about {max(seconds):.1f} s here for a block; all was {found.train_seconds:.1f} s"
    if not found.hurt:
        console_text.say(screen, f"no block hurts{f'; a repair: {cost}' if cost else ''}")
        return
    names = ranges(found.hurt.blocks).replace(" ", "")
    console_text.say(
        screen,
        f"noprop repair {shlex.quote(str(run.folder))} --block {names} trains "
        f"{'it' if len(found.hurt) == 1 else 'them'} again{f': {cost}' if cost else ''}",
    )


def blocks_table(blocks: list[BlockHealth], title: str) -> Table:
    table = Table(title=title)
    columns = {
        "block": lambda block: str(block.t),
        "after it": lambda block: share(block.accuracy),
        "alone": lambda block: share(block.alone),
        "answer without it": lambda block: share(block.without),
        "calibration error": lambda block: number(block.calibration),
        "its error": lambda block: number(block.error),
        "in training": lambda block: number(block.trained_error),
        "dead units": lambda block: f"{block.dead} of {block.hidden}",
        "not finite": lambda block: f"{block.not_finite:,}",
    }
    for name in columns:
        table.add_column(name, justify="right")
    for block in blocks:
        table.add_row(*(text(block) for text in columns.values()))
    return table


def share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
