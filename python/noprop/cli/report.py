"""noprop report: one page of HTML about a run; nothing of the run is changed."""

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from .. import checkpoint, console_text, metrics
from ..console import console
from ..evaluation import SAMPLES
from ..files import atomic_file
from ..report.page import losses_of_all, render
from ..runs import Run
from . import common


def run(options: SimpleNamespace) -> None:
    screen = console()
    common.place_of(options)  # refuses at once what no run can use
    run = Run.load(options.folder, options.backend)
    run.check_whole()
    replica = common.check_replica(options.replica, run.settings.each_seed, options.folder)
    lines = metrics.read(options.folder)
    if run.settings.seeds is not None:
        run = run.split(replica, options.folder)
        lines = [line for line in lines if line.get("seed") == run.settings.seed]
    place = common.placed(options, run.model)
    content, split = common.data_of(run, options, moved=options.data is not None)
    console_text.say(screen, f"{content.name}: {len(content.x_test):,} test rows")
    if run.result is None or options.samples is not None:
        console_text.say_test(screen, run.model, options.samples or SAMPLES)
        run.result = run.test(content, split, options.samples or SAMPLES)
    each = [share.progress for share in run.shares]
    progress = {
        "epochs done": min(share.epoch for share in each),
        "train seconds": f"{sum(share.seconds for share in each):.1f}",
    }
    versions = checkpoint.load_content(options.folder)["versions"]
    text = render(
        run.model,
        content.x_test,
        content.y_test,
        name=f"{content.name}, run {options.folder.resolve().name}",
        result=run.result,
        lines=losses_of_all(lines, run.model.blocks.T),
        about=asdict(run.settings) | progress | versions | {"read": place.describe(run.model)},
    )
    out: Path = options.out or options.folder / "report.html"
    with atomic_file(out) as file:
        file.write(text.encode())
    console_text.say(screen, f"the report: {out}")
