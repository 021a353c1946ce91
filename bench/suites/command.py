"""Shared by the commands: their options, and the file to which results are appended."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..contenders.contender import Entry
from ..machine import host
from ..report.lines import Line


def parser(
    prog: str, about: str | None, shapes: Iterable[str], entries: Sequence[Entry], quick: str
) -> argparse.ArgumentParser:
    """The options of every command; `quick` describes --quick."""
    made = argparse.ArgumentParser(
        prog=f"python -m bench {prog}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(dict.fromkeys(entry.name for entry in entries))
    made.add_argument("--quick", action="store_true", help=quick)
    for option, known in (("shape", list(shapes)), ("contender", names)):
        text = f"default all: {', '.join(known)}"
        made.add_argument(f"--{option}", nargs="+", choices=known, metavar="NAME", help=text)
    made.add_argument("--threads", nargs="+", type=int, help="default: 1 and all cores")
    made.add_argument("--out", type=Path, help="append JSON lines to this file")
    return made


def settle(options: argparse.Namespace, shapes: Iterable[str], quick_shapes: Iterable[str]) -> None:
    """Fills in the defaults of --shape and --threads; a quick run only uses all cores."""
    cores = host.cores()
    options.shape = options.shape or list(quick_shapes if options.quick else shapes)
    options.threads = options.threads or ([cores] if options.quick else sorted({1, cores}))


def check_least(made: argparse.ArgumentParser, options: argparse.Namespace, **least: int) -> None:
    """Ends with a usage error where an option, or one of its values, is below its least."""
    for name, limit in least.items():
        values = getattr(options, name)
        if min(values if isinstance(values, list) else [values]) < limit:
            made.error(f"--{name} must be at least {limit}")


def wanted(entries: Sequence[Entry], options: argparse.Namespace) -> list[Entry]:
    """The contenders named by --contender, or all; a quick run without it leaves out the slow
    ones."""
    if options.contender:
        return [entry for entry in entries if entry.name in options.contender]
    return [entry for entry in entries if not (options.quick and entry.slow)]


def append(path: Path | None, lines: Iterable[Line]) -> None:
    """Appends the lines as JSON, if there is a file."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
