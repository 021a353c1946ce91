"""Errors with causes outside the program, and notices on stderr."""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path


class InputError(ValueError):
    """A file, a folder or a setting cannot be used; the text says which and why."""


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Wraps the import of an optional package: if it is missing, the error names its extra.

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
    """`extra` for the packages of the trainer itself."""
    return extra("train")


@contextmanager
def reading(path: Path, failed: str = "cannot be read") -> Iterator[None]:
    """Wraps the reading of an untrusted file.

    Raises:
        InputError: in place of any error that the readers raise on damaged bytes; the text names
            the file.
    """
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except OSError as error:
        raise InputError(f"{path} {failed}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} {failed}: {error}; save it as UTF-8") from error
    except Exception as error:
        text = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} {failed}: {text}") from error


def notice(line: str) -> None:
    """Prints a line on stderr; a closed stderr is ignored."""
    try:
        print(f"noprop: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # ValueError: Python has closed the stream
        pass


@cache
def notice_once(line: str) -> None:
    """Like `notice`, but only the first time that the process has this line."""
    notice(line)
