"""Where lines for people go: a stream whose loss ends no training, and names that stay as they are.

`noprop train | head -2` closes its output while it trains, and a terminal that closes takes it
away. What is written from then on is dropped, which is told once on stderr.
"""

import os
import sys
from typing import TextIO

from .errors import tell, train_extra

with train_extra():
    from rich.console import Console


class Output:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.lost = stream, False

    def write(self, text: str) -> int:
        if not self.lost:
            try:
                self.stream.write(text)
                self.stream.flush()
            except OSError as error:
                self.lost = True
                forget(self.stream)
                tell(f"the output is lost ({error.strerror}); the run goes on without it")
        return len(text)

    def flush(self) -> None:
        pass  # `write` has done it

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:
        return self.stream.encoding


def forget(stream: TextIO) -> None:
    """Lets a stream that cannot be written end in nothing, or Python fails when it ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, stream.fileno())
    finally:
        os.close(nothing)


def console(*, stderr: bool = False) -> Console:
    """A console of plain text, which takes "[" as it is.

    It is a terminal where the stream is one: FORCE_COLOR brings no cursor sequences into a file.
    """
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        file=Output(stream),  # pyright: ignore[reportArgumentType]
        force_terminal=stream.isatty(),
        markup=False,
        highlight=False,
        emoji=False,
    )
