"""Times steps beside a busy neighbour: `python -m bench neighbour [--quick] [--out FILE]`.

Another process, pinned to one core, spins in every second round and is stopped in the others; so
each contender has pairs of samples with and without it, and the slowdown is their ratio. Of c cores
the neighbour takes half of one, where the system shares a core evenly; a contender that loses
nothing else is slowed down by c / (c - 0.5). A step that is split evenly over the cores and waits
for the last part is slowed down by 2.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ..problem.sizes import SHAPES
from ..report.cells import aligned
from ..report.lines import Line
from ..report.suite_rows import neighbour_rows
from .check import check_steps
from .rounds import MIN_ROUNDS, quantiles, sample
from .run import TRAINING, run
from .suite import Lineup, Suite

NAMES = ("ours", "step_compiled", "stacked_shared", "sequential")
SPIN = "while True:\n    pass"
SETTLE_SECONDS = 0.05  # until the system has seen the neighbour, or missed it
LEAST_SECONDS = 0.2  # of a sample: some fifty of the slices in which a system shares a core


@dataclass
class Neighbour:
    """A process that spins, or is stopped."""

    process: subprocess.Popen

    def spin(self, busy: bool) -> None:
        self.process.send_signal(signal.SIGCONT if busy else signal.SIGSTOP)
        time.sleep(SETTLE_SECONDS)


@contextmanager
def neighbour(core: int) -> Iterator[Neighbour]:
    """A process on this core, stopped for now; it ends with the `with`."""
    pin = f"import os\nos.sched_setaffinity(0, {{{core}}})\n"
    process = subprocess.Popen([sys.executable, "-c", pin + SPIN])
    try:
        spinning = Neighbour(process)
        spinning.spin(busy=False)
        yield spinning
    finally:
        process.kill()
        process.wait()


def ideal_slowdown(threads: int, cores: int) -> float:
    """The slowdown of work that spreads over whatever the cores have left."""
    return max(1.0, threads / (cores - 0.5))


def measure(lineup: Lineup, suite: Suite, rounds: int, end: float) -> list[Line]:
    """Pairs of samples, and a line for each contender and K."""
    core = max(os.sched_getaffinity(0))
    pairs: dict[tuple[str, int], list[tuple[float, float]]] = {}
    with neighbour(core) as beside:
        for number in range(rounds):
            if number >= MIN_ROUNDS and time.perf_counter() > end:
                break
            found: dict[tuple[str, int], dict[bool, float]] = {}
            for busy in (False, True) if number % 2 else (True, False):
                beside.spin(busy)
                for i in range(len(lineup.checked)):
                    turn = lineup.checked[(i + number) % len(lineup.checked)]
                    for K in turn.samples:
                        indices = lineup.problem.indices(K, seed=100 + number)
                        times = found.setdefault((turn.name, K), {})
                        times[busy] = sample(turn.contender, indices, LEAST_SECONDS)
            for key, times in found.items():
                pairs.setdefault(key, []).append((times[False], times[True]))
    return [line_of(lineup.base, *key, found) for key, found in pairs.items()]


def line_of(base: Line, name: str, K: int, pairs: Sequence[tuple[float, float]]) -> Line:
    """Milliseconds a step alone and beside the neighbour, and the slowdown of the pairs."""
    alone, busy = zip(*pairs, strict=True)
    line = base | {"contender": name, "maths": "adamw", "K": K, "rounds": len(pairs)}
    slowdowns = [after / before for before, after in pairs]
    for prefix, ms in (("", alone), ("busy_", busy)):
        low, median, high = quantiles(ms)
        line |= {f"{prefix}ms_per_step": median, f"{prefix}ms_q20": low, f"{prefix}ms_q80": high}
    low, median, high = quantiles(slowdowns)
    line |= {"slowdown": median, "slowdown_q20": low, "slowdown_q80": high}
    return line | {"ideal_slowdown": ideal_slowdown(base["threads"], base["machine"]["cores"])}


def table(lines: Sequence[Line]) -> str:
    return aligned(neighbour_rows(lines))


SUITE = Suite(
    prog="neighbour",
    about=__doc__,
    quick="tiny alone",
    entries=[entry for entry in TRAINING.entries if entry.name in NAMES],
    shapes={name: SHAPES[name] for name in ("small", "tiny")},
    quick_shapes=("tiny",),
    Ks=(1, 50),
    check=check_steps,
    measure=measure,
    table=table,
    kind="neighbour",
    all_threads=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    if not hasattr(os, "sched_setaffinity"):
        sys.exit("bench neighbour: this system holds no process to a core")
    return run(SUITE, arguments)
