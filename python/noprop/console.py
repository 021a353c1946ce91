"""Output for people: losing the stream ends no training, and names are printed verbatim.

`noprop train | head -2` closes the output during training, and so does a terminal that closes.
Later output is dropped, and one line on stderr says so.
"""

import os
import sys
from typing import TextIO

from .errors import notice, train_extra

with train_extra():
    from rich.console import Console


class Output:
    """A text stream that drops writes which fail; `needed`: that raises OSError instead."""

    def __init__(self, stream: TextIO, needed: bool = False) -> None:
        self.stream, self.lost, self.needed = stream, False, needed

    def write(self, text: str) -> int:
        if not self.lost:
            try:
                self.stream.write(text)
                self.stream.flush()
            except OSError as error:
                self.lost = True
                forget(self.stream)
                if self.needed:
                    raise
                notice(f"the output is lost ({error.strerror}); the run goes on without it")
        return len(text)

    def flush(self) -> None:
        pass  # `write` has flushed

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return self.stream.encoding


def forget(stream: TextIO) -> None:
    """Redirects a broken stream to the null device: Python flushes it at exit and would fail."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, stream.fileno())
    finally:
        os.close(nothing)


def console(*, stderr: bool = False, needed: bool = False) -> Console:
    """A console of plain text: "[" is no markup; `needed`: its text is all that a command makes.

    It counts as a terminal only where the stream is one: FORCE_COLOR must not put cursor sequences
        into a file.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=Output(stream, needed),  # pyright: ignore[reportArgumentType]
        force_terminal=stream.isatty(),
        markup=False,
        highlight=False,
        emoji=False,
    )
