"""How many steps one call of a training takes: few enough to respond, many enough to be fast."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

CLOCK = time.perf_counter


class Pace:
    """Chooses the steps of a call so that it takes half to all of so many seconds, and at most
    doubles them from call to call.
    """

    def __init__(self, seconds: float) -> None:
        self.K, self.seconds = 1, seconds

    @contextmanager
    def measure(self, steps: int) -> Iterator[None]:
        begun = CLOCK()
        yield
        affordable = int(steps * self.seconds / max(CLOCK() - begun, 1e-9))
        # powers of 2, so that a GPU needs few CUDA graphs
        self.K = max(1, min(2 * self.K, 1 << affordable.bit_length() >> 1))
