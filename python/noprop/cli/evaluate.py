"""noprop eval: the test once more; nothing is written."""

from types import SimpleNamespace

from .. import console_text
from ..console import console
from ..runs import Run
from . import common


def run(options: SimpleNamespace) -> None:
    screen = console(stderr=options.as_json, needed=not options.as_json)
    common.place_of(options)  # refuses at once what no run can use
    run = Run.load(options.folder, options.backend)
    run.check_whole()
    place = common.placed(options, run.model)
    content, split = common.data_of(run, options, moved=options.data is not None)
    where = place.describe(run.model)
    console_text.say(screen, f"{content.name}: {len(content.x_test):,} test rows, {where}")
    console_text.say_test(screen, run.model, options.samples)
    result = run.test(content, split, options.samples)
    common.show_result(screen, result, options.as_json)
