"""noprop merge: one run of several that have trained its units apart."""

import shlex
from types import SimpleNamespace

from .. import apart, run_results
from ..console import console
from ..console_text import say
from ..errors import notice
from . import common


def run(options: SimpleNamespace) -> None:
    screen = console(stderr=options.as_json, needed=not options.as_json)
    merged = apart.merge(options.folders, options.out, notice)
    say(
        screen,
        f"{options.out}: {merged.model.units} of {len(options.folders)} runs; test it with: noprop "
        f"eval {shlex.quote(str(options.out))}",
    )
    if options.as_json:
        common.print_json(run_results.state(merged))
