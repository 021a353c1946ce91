"""What goes wrong outside the program, and lines that tell of it."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path


class InputError(ValueError):
    """A file, a folder or a setting that cannot be used; the text says which and why."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around the import of an optional package: its absence names the extra that installs it.

    Raises:
        ImportError: the package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{error.name} is not installed: pip install 'noprop-kernels[{name}]'", name=error.name
        ) from error


def train_extra() -> AbstractContextManager[None]:
    """`extra` of what the trainer itself needs."""
    return extra("train")


@contextmanager
def reading(path: Path, failed: str = "cannot be read") -> Iterator[None]:
    """Around the reading of a file that anyone may have made.

    Raises:
        InputError: whatever the readers made of damaged bytes, which may be nearly anything; the
            text names the file.
    """
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"{path} {failed}: {error.strerror or error}") from error
    except Exception as error:
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} {failed}: {text}") from error


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
