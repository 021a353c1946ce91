"""noprop split: one of the models of a run with several seeds as a run of its own."""

from types import SimpleNamespace

import typer

from .. import metrics
from ..errors import notice
from ..files import locked
from ..runs import Run
from . import common
from .train import check_free


def run(options: SimpleNamespace) -> None:
    whole = Run.load(options.folder)
    seeds = whole.settings.seeds
    if seeds is None:
        raise typer.BadParameter(f"{options.folder} has one model, of seed {whole.settings.seed}")
    replica = common.check_replica(options.replica, list(seeds), options.folder)
    check_free(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    with locked(options.out):
        check_free(options.out)
        whole.split(replica, options.out).save()
        for line in metrics.read(options.folder):
            if line.pop("seed", None) == seeds[replica]:
                metrics.append(options.out, line)
    notice(f"{options.out}: the model of seed {seeds[replica]}, a run of its own")
