"""noprop info: describes a run from its record alone, or the build and its backends."""

from types import SimpleNamespace

import typer

import noprop_kernels.__main__ as kernels

from .. import checkpoint, console_text, metrics, schedule_picture
from ..console import console
from ..errors import InputError, notice
from . import common


def run(options: SimpleNamespace) -> None:
    if options.folder is None and options.plot is not None:
        raise typer.BadParameter("it needs a run, whose schedule is drawn", param_hint="--plot")
    if options.folder is None:
        lines = list(kernels.lines())
        for line in lines:
            console_text.say(console(stderr=options.as_json, needed=not options.as_json), line)
        if options.as_json:
            common.print_json({"lines": lines})
        return
    content = checkpoint.load_content(options.folder)
    try:
        console_text.show_info(console(stderr=options.as_json, needed=not options.as_json), content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{options.folder} holds no run of this version: {error!r}") from error
    if options.plot is not None:
        settings = (content.get("training") or {}).get("settings") or {}
        epochs = schedule_picture.draw(options.plot, settings, metrics.read(options.folder))
        notice(f"{options.plot}: the schedule after epochs {', '.join(map(str, epochs))}")
    if options.as_json:
        common.print_json(content)
