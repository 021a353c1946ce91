"""One-time notices on stderr about anything unexpected."""

import sys
from functools import cache


@cache
def warn_once(line: str) -> None:
    """Prints a line once."""
    print(f"noprop_kernels: {line}", file=sys.stderr)
