"""`python -m noprop` and the command `noprop`."""

import os
import sys

from .signals import at_once, handled


def main() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the parent process closed it
            setattr(sys, name, open(os.devnull, "w"))
        else:  # a name that the terminal cannot encode must not end the program
            stream.reconfigure(errors="backslashreplace")
    with handled(at_once):  # while torch is imported, nothing else is under way
        try:
            from .cli import app
        except ImportError as error:  # one line where the extra is not installed
            sys.exit(f"noprop: error: {error}")
        app(prog_name="noprop")


if __name__ == "__main__":
    main()
