"""Shared by the commands that train a whole network: their options, settings and data."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from noprop import data as datasets
from noprop.datasets.dataset import Dataset
from noprop.errors import InputError
from noprop.settings import Settings

from ..machine import host
from ..suites import command


def parser(prog: str, about: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=f"python -m bench {prog}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="digits, 20 epochs")
    made.add_argument("--data", help="mnist (default), digits or another name of noprop's")
    made.add_argument("--data-dir", type=Path, help="default NOPROP_DATA, else a cache folder")
    made.add_argument("--epochs", type=int, help="default 10")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--threads", type=int, default=host.cores())
    made.add_argument("--out", type=Path, help="append JSON lines to this file")
    return made


def parsed(
    made: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, Settings, Dataset]:
    """The options, the settings of a run and its data; raises a usage error where they do not
    fit."""
    options = made.parse_args(arguments)
    name = options.data or ("digits" if options.quick else "mnist")
    options.epochs = options.epochs if options.epochs is not None else 20 if options.quick else 10
    command.check_least(made, options, epochs=1, threads=1)
    try:
        content = datasets.load(name, options.data_dir)
    except InputError as error:
        made.error(str(error))
    settings = Settings(
        data=name,
        head="paper",
        epochs=options.epochs,
        lr=1e-3,
        weight_decay=1e-3,
        seed=options.seed,
    )
    return options, settings, content
