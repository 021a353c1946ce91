"""Times every contender: `python -m bench.run [--quick] [--shape small ...] [--out FILE]`.

Each contender first takes three steps that must be those of a float64 twin, on the very shape; one
that fails is not timed. Then come rounds, in each of which every contender takes its turn, all in
one process. Caches are warm: before each sample a contender takes one step untimed. `ours` is
train_steps with K steps a call; `ours_train_step`, at K = 1, train_step on rows that torch gathers.

With --precision bfloat16 those run that can round the operands of their products: ours by its own
option, eager rivals by torch.autocast, step_compiled by casts. Then a contender may be off from the
twin by twice what plain PyTorch under autocast is, and one rounding.
"""

import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import command, machine, twin
from .contender import PRECISIONS, Contender, Entry
from .lines import Line
from .ours import OURS
from .problem import Problem, make_problem
from .rivals import RIVALS
from .rivals.stacked import Stacked
from .shapes import SHAPES, Shape
from .tables import plain_table

CHECK_STEPS = 3
SINGLE_CALLS = 10  # of K = 1 in one sample
MIN_ROUNDS = 3
QUICK_SECONDS = 45.0  # for a shape, checks included, after which rounds end


@dataclass
class Running:
    """A contender that passed its check, and its samples: milliseconds a step, by K."""

    name: str
    contender: Contender
    compile_seconds: float | None
    samples: dict[int, list[float]]


@dataclass
class Field:
    """The contenders of one shape at one number of threads, ready to be timed.

    Args:
        problem: what they were given.
        base: what their result lines have in common.
        running: those that passed their check.
        failed: a line for each of the others.
        passed: whether none of those was wrong.
    """

    problem: Problem
    base: Line
    running: list[Running]
    failed: list[Line]
    passed: bool = True


def check_steps(contender: Contender) -> list[float]:
    """Takes three steps that must be the twin's; returns the seconds of each.

    Raises:
        Mismatch: they are not.
    """
    problem = contender.problem
    indices = problem.indices(CHECK_STEPS, seed=1)
    given, used = contender.check_eps(CHECK_STEPS, seed=2)
    losses, seconds = [], []
    for k in range(CHECK_STEPS):  # one by one, since the first compiles
        begin = time.perf_counter()
        eps = None if given is None else given[k : k + 1]
        losses.append(contender.steps(indices[k : k + 1], eps))
        seconds.append(time.perf_counter() - begin)
    plain = None
    if problem.precision != "float32":
        stacked = Stacked(problem, contender.threads, shared=True)
        plain = stacked.steps(indices, used), stacked.weights()
    result = torch.cat(losses), contender.weights()
    twin.check(problem, contender.maths, indices, used, *result, plain)
    return seconds


@dataclass(frozen=True)
class Suite:
    """What a command times.

    Args:
        prog, about, quick: the command's name, its description, and what a quick run is.
        entries: the contenders.
        shapes: by name.
        quick_shapes: the names of a quick run.
        Ks: steps a call.
        check: raises unless a new contender is right; returns its calls' seconds, the first first.
        measure: (field, suite, rounds, end of its time) to result lines.
        table: of those lines, to print.
        kind: of the result lines, where they are not to be compared with those of bench.run.
        precisions: those that --precision offers.
        all_threads: whether all cores are what --threads is without being given.
    """

    prog: str
    about: str | None
    quick: str
    entries: Sequence[Entry]
    shapes: Mapping[str, Shape]
    quick_shapes: Sequence[str]
    Ks: Sequence[int]
    check: Callable[[Contender], list[float]]
    measure: "Callable[[Field, Suite, int, float], list[Line]]"
    table: Callable[[Sequence[Line]], str] = plain_table
    kind: str | None = None
    precisions: Sequence[str] = ("float32",)
    all_threads: bool = False


def start(entry: Entry, problem: Problem, threads: int, suite: Suite) -> Running:
    """Makes a contender and checks it; what stops it is raised."""
    contender = entry.make(problem, threads)
    try:
        seconds = suite.check(contender)
    except BaseException:
        contender.close()
        raise
    compile_seconds = seconds[0] - seconds[-1] if entry.compiles else None
    samples: dict[int, list[float]] = {K: [] for K in suite.Ks if K == 1 or not entry.single}
    return Running(entry.name, contender, compile_seconds, samples)


def sample(contender: Contender, indices: Tensor) -> float:
    """Milliseconds a step: of one call of K steps, or the mean of several calls of one."""
    K = len(indices)
    calls = SINGLE_CALLS if K == 1 else 1
    contender.steps(indices[:1])
    begin = time.perf_counter()
    for _ in range(calls):
        contender.steps(indices)
    return (time.perf_counter() - begin) / (calls * K) * 1e3


def time_rounds(running: Sequence[Running], problem: Problem, rounds: int, end: float) -> None:
    """Fills `samples`: every contender once a round, each round beginning with the next one."""
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for i in range(len(running)):
            turn = running[(i + number) % len(running)]
            for K, samples in turn.samples.items():
                samples.append(sample(turn.contender, problem.indices(K, seed=100 + number)))


def measure_rounds(field: Field, suite: Suite, rounds: int, end: float) -> list[Line]:
    """The rounds, and a result line for each contender and K."""
    time_rounds(field.running, field.problem, rounds, end)
    # a machine shared with others can look slow for a moment, and a share of that peak too high
    again = machine.rates(field.base["threads"], field.problem.shape.state_bytes)
    base = field.base | {name: max(rate, field.base[name]) for name, rate in again.items()}
    return [line for turn in field.running for line in lines_of(turn, field.problem, base)]


def lines_of(turn: Running, problem: Problem, base: Line) -> list[Line]:
    """One result line for each K."""
    contender = turn.contender
    step_bytes = contender.step_bytes(problem.indices(1, seed=3))
    memory = contender.resident() | {"step": step_bytes}
    flop, traffic = contender.flop(), contender.traffic()
    lines = []
    for K, samples in turn.samples.items():
        low, median, high = quantiles(samples)
        line = {
            "contender": turn.name,
            "maths": contender.maths,
            "K": K,
            "ms_per_step": median,
            "ms_q20": low,
            "ms_q80": high,
            "rounds": len(samples),
            "flop_per_step": flop,
            "bytes_per_step": traffic,
            "share_of_peak": flop / (median * 1e6) / base["peak_gflops"] if flop else None,
            "share_of_copy": traffic / (median * 1e6) / base["state_gb_s"] if traffic else None,
            "compile_seconds": turn.compile_seconds,
            "memory_bytes": memory,
        }
        lines.append(base | line)
    return lines


def quantiles(samples: Sequence[float]) -> tuple[float, float, float]:
    """The 20 % quantile, the median and the 80 % quantile."""
    low, _, _, high = statistics.quantiles(samples, n=5, method="inclusive")
    return low, statistics.median(samples), high


@contextmanager
def field_of(
    name: str, threads: int, suite: Suite, entries: Sequence[Entry], precision: str
) -> Iterator[Field]:
    """Checked contenders of one shape, which are closed in the end."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # compiled code has its number of threads built in
    shape = suite.shapes[name]
    base: Line = machine.circumstances(name, threads, precision)
    base |= machine.rates(threads, shape.state_bytes)
    base |= {"kind": suite.kind} if suite.kind else {}
    print(
        f"\n{name}, {threads} threads, {precision}: peak {base['peak_gflops']:.0f} GF/s, "
        f"copy {base['copy_gb_s']:.0f} GB/s, of a state's size {base['state_gb_s']:.0f} GB/s",
        flush=True,
    )
    field = Field(make_problem(shape, precision=precision), base, [], [])
    try:
        for entry in entries:
            if threads < entry.min_threads or precision not in entry.precisions:
                continue
            try:
                field.running.append(start(entry, field.problem, threads, suite))
                maths = field.running[-1].contender.maths
                print(f"  {entry.name} ({maths}): correct", flush=True)
            except Exception as error:
                mistaken = isinstance(error, twin.Mismatch) or not entry.compiles
                field.passed = field.passed and not mistaken
                text = traceback.format_exception_only(error)[-1].strip()
                print(f"  {entry.name}: not timed: {text}", flush=True)
                field.failed.append(base | {"contender": entry.name, "error": text})
        yield field
    finally:
        for turn in field.running:
            turn.contender.close()


def run(suite: Suite, arguments: Sequence[str] | None) -> int:
    """Runs what the command line asks for; 1 if a contender was wrong."""
    parser = command.parser(suite.prog, suite.about, suite.shapes, suite.entries, suite.quick)
    if len(suite.Ks) > 1:
        parser.add_argument("--K", nargs="+", type=int, default=list(suite.Ks), help="steps a call")
    if len(suite.precisions) > 1:
        parser.add_argument(
            "--precision", default="float32", choices=suite.precisions, help="of products' operands"
        )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, help="end a shape's rounds when it took so many")
    options = parser.parse_args(arguments)
    if suite.all_threads:
        options.threads = options.threads or [machine.cores()]
    command.settle(options, suite.shapes, suite.quick_shapes)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else float("inf"))
    command.check_least(parser, options, threads=1, rounds=MIN_ROUNDS)
    if len(suite.Ks) > 1:
        command.check_least(parser, options, K=1)
        suite = replace(suite, Ks=options.K)
    entries = command.wanted(suite.entries, options)
    precision = getattr(options, "precision", "float32")
    passed = True
    # a cache of its own, so that compile seconds are those of a first use
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for threads in options.threads:
            for name in options.shape:
                end = time.perf_counter() + seconds
                with field_of(name, threads, suite, entries, precision) as field:
                    lines = field.failed + suite.measure(field, suite, options.rounds, end)
                passed = passed and field.passed
                print(suite.table(lines), flush=True)
                command.append(options.out, lines)
    return 0 if passed else 1


TRAINING = Suite(
    prog="run",
    about=__doc__,
    quick="about two minutes on two cores",
    entries=(*OURS, *RIVALS),
    shapes=SHAPES,
    quick_shapes=("tiny", "small"),
    Ks=(1, 50),
    check=check_steps,
    measure=measure_rounds,
    precisions=PRECISIONS,
)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(TRAINING, arguments)


if __name__ == "__main__":
    sys.exit(main())
