"""The command line: noprop train, eval, predict, export and info.

Usage errors exit with 2, others with 1, a signal with 128 and its number. `app` declares the
commands and imports no torch; each command's work has a file of its own, imported when it runs.
"""

from .app import app

__all__ = ["app"]
