"""noprop train --dry-run: the sizes of a network, and the backend that would train it."""

from dataclasses import asdict
from types import SimpleNamespace

import typer

from .. import data, presets, report
from ..data import Published
from ..datasets.dataset import Dataset
from ..errors import train_extra
from ..model import Model
from ..runs import Settings, Split
from . import common

with train_extra():
    from rich.console import Console


def run(options: SimpleNamespace, screen: Console) -> None:
    """Of a new run.

    Raises:
        typer.BadParameter: an option does not fit.
    """
    common.check_meaning(options)
    content = facts(options)
    if presets.untrainable(options.embedding):
        show_block(options, content, screen)
        return
    if isinstance(content, Published):
        split, rows, data_bytes = None, content.rows, content.nbytes
    else:
        split = Split.of(content, options.val_fraction)
        rows, data_bytes = len(split.x), split.x.nbytes
    settings = common.settings_of(options, rows)
    model = common.built(settings, content, split, options.backend)
    place = common.placed(options, model)
    model.blocks.blocks_per_launch = options.blocks_per_launch
    report.say(screen, content.describe())
    report.say(screen, place.describe(model))
    show(screen, model, settings, data_bytes, options.as_json)


def facts(options: SimpleNamespace) -> Dataset | Published:
    """The data; with preset paper, what is known of published ones, which are not read."""
    if options.preset == "paper" and options.data in data.PUBLISHED:
        return data.PUBLISHED[options.data]
    return common.load_data(options, options.data_dir)


def show_block(options: SimpleNamespace, content: Dataset | Published, screen: Console) -> None:
    """A block that cannot be trained yet, with the reason."""
    names = ("data", "variant", "preset", "embedding")
    asked = {name: getattr(options, name) for name in names}
    try:
        plan = presets.plan_of(
            *(options.variant, options.preset, options.embedding),
            *(content.shape, content.classes, options.hidden),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    why_not = presets.untrainable(options.embedding)
    report.say(screen, content.describe())
    report.say(screen, f"a block of {plan.num_parameters():,} parameters; {why_not}")
    if options.as_json:
        size = {"parameters_per_block": plan.num_parameters()}
        common.print_json({**asked, **size, "trainable": False, "why_not": why_not})


def show(screen: Console, model: Model, settings: Settings, data_bytes: int, as_json: bool) -> None:
    """A network that can be trained."""
    size = report.sizes(model, settings.batch_size)
    report.show_plan(screen, model, settings.batch_size, data_bytes)
    if as_json:
        about = {"trainable": True, "why_not": None}
        common.print_json({**asdict(settings), **model.versions(), **size, **about})
