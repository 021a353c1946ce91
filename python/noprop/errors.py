"""What goes wrong outside the program, and lines that tell of it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


class InputError(ValueError):
    """A file, a folder or a setting that cannot be used; the text says which and why."""


@contextmanager
def train_extra() -> Iterator[None]:
    """Around the import of an optional package: its absence names the extra that installs it.

    Raises:
        ImportError: the package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed: pip install 'noprop-kernels[train]'", name=error.name
        ) from error


def tell(line: str) -> None:
    """A line on stderr; where that is closed there is nobody to tell, and nothing else ends."""
    try:
        print(f"noprop: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: of a stream that Python closed
        pass


@cache
def tell_once(line: str) -> None:
    """`tell`, the first time that the process has this line."""
    tell(line)
