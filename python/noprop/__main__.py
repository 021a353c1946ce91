"""`python -m noprop` and the command `noprop`."""

import os
import sys

from .signals import at_once, handled


def main() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who began the process
            setattr(sys, name, open(os.devnull, "w"))
        else:  # a name that the terminal's encoding lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    with handled(at_once):  # while torch is imported, nothing else is under way
        try:
            from .cli import app
        except ImportError as error:  # one line for who has installed the library alone
            sys.exit(f"noprop: error: {error}")
        app(prog_name="noprop")


if __name__ == "__main__":
    main()
