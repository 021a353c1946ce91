"""noprop train --dry-run: the sizes of a network, and the backend that would train it."""

from dataclasses import asdict
from types import SimpleNamespace

from .. import console_text, data
from ..building import Split
from ..data import Published
from ..datasets.dataset import Dataset
from ..errors import train_extra
from ..model import Model
from ..settings import Settings
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
    if isinstance(content, Published):
        split, rows, data_bytes = None, content.rows, content.nbytes
    else:
        split = Split.of(content, options.val_fraction)
        rows, data_bytes = len(split.x), split.x.nbytes
    settings = common.settings_of(options, rows, split, content.inputs.channels)
    # whose choice takes the distances of all rows of a class, and changes no size
    known = None if settings.embedding == "prototype" else split
    if options.blocks is not None:
        common.check_units("--blocks", options.blocks, settings)
    model = common.built(settings, content, known, options.backend, options.blocks)
    place = common.placed(options, model)
    model.blocks.blocks_per_launch = options.blocks_per_launch
    console_text.say(screen, content.describe())
    console_text.say(screen, place.describe(model))
    show(screen, model, settings, data_bytes, options.as_json)


def facts(options: SimpleNamespace) -> Dataset | Published:
    """The data; with preset paper, what is known of published ones, which are not read."""
    if options.preset == "paper" and options.data in data.PUBLISHED:
        return data.PUBLISHED[options.data]
    return common.load_data(options, options.data_dir)


def show(screen: Console, model: Model, settings: Settings, data_bytes: int, as_json: bool) -> None:
    """A network that can be trained."""
    size = console_text.sizes(model, settings.batch_size)
    console_text.show_plan(screen, model, settings.batch_size, data_bytes)
    if as_json:
        about = {"trainable": True, "why_not": None}
        common.print_json({**asdict(settings), **model.versions(), **size, **about})
