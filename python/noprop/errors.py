"""What goes wrong outside the program: bad input, and packages that are not installed."""

from collections.abc import Iterator
from contextlib import contextmanager


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
