"""Lines for whoever runs the program: what happens otherwise than it was meant to."""

import sys
from functools import cache


@cache
def tell(line: str) -> None:
    """Prints a line once."""
    print(f"noprop_kernels: {line}", file=sys.stderr)
