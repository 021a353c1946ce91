"""Checks that what a file claims to hold fits into memory, before any of it is allocated."""

import os
from pathlib import Path

from ..errors import InputError


def available() -> int:
    """Bytes that the process can still allocate, by the system's own estimate."""
    try:
        with open("/proc/meminfo") as file:
            found = next(line for line in file if line.startswith("MemAvailable:"))
        return 1024 * int(found.split()[1])
    except (OSError, StopIteration, ValueError):  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(path: Path, count: int, what: str = "its content") -> None:
    """
    Raises:
        InputError: `count` bytes do not fit.
    """
    if count > available():
        raise InputError(
            f"{path}: {what} would take {count:,} bytes, of memory {available():,} are left"
        )
