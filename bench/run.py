"""Times every contender: `python -m bench.run [--quick] [--shape small ...] [--out FILE]`.

Each contender first takes three steps that must be those of a float64 twin, on the very shape; one
that fails is not timed. Then come rounds, in each of which every contender takes its turn, all in
one process. Caches are warm: before each sample a contender takes one step untimed. `ours` is
train_steps with K steps a call; `ours_train_step`, at K = 1, train_step on rows that torch gathers.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import command, machine, twin
from .contender import Contender, Entry
from .ours import OURS
from .problem import Problem, make_problem
from .report import Line, plain_table
from .rivals import RIVALS
from .shapes import SHAPES, Shape

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


@dataclass(frozen=True)
class Suite:
    """What a command times.

    Args:
        prog, about, quick: the command's name, its description, and what a quick run is.
        entries: the contenders.
        shapes: by name.
        quick_shapes: the names of a quick run.
        Ks: steps a call.
        flop: operations of a step.
        check: raises unless a new contender is right; returns its calls' seconds, the first first.
    """

    prog: str
    about: str | None
    quick: str
    entries: Sequence[Entry]
    shapes: Mapping[str, Shape]
    quick_shapes: Sequence[str]
    Ks: Sequence[int]
    flop: Callable[[Shape], int]
    check: Callable[[Contender], list[float]]


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
    twin.check(problem, contender.maths, indices, used, torch.cat(losses), contender.weights())
    return seconds


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


def lines_of(turn: Running, problem: Problem, base: Line) -> list[Line]:
    """One result line for each K."""
    step_bytes = turn.contender.step_bytes(problem.indices(1, seed=3))
    memory = turn.contender.resident() | {"step": step_bytes}
    lines = []
    for K, samples in turn.samples.items():
        q20, _, _, q80 = statistics.quantiles(samples, n=5, method="inclusive")
        median = statistics.median(samples)
        line = {
            "contender": turn.name,
            "maths": turn.contender.maths,
            "K": K,
            "ms_per_step": median,
            "ms_q20": q20,
            "ms_q80": q80,
            "rounds": len(samples),
            "share_of_peak": base["flop_per_step"] / (median * 1e6) / base["peak_gflops"],
            "compile_seconds": turn.compile_seconds,
            "memory_bytes": memory,
        }
        lines.append(base | line)
    return lines


def bench(
    name: str, threads: int, suite: Suite, options: argparse.Namespace
) -> tuple[list[Line], bool]:
    """All result lines of one shape at one number of threads, and whether every check passed."""
    end = time.perf_counter() + options.seconds
    torch.set_num_threads(threads)
    torch.compiler.reset()  # compiled code has its number of threads built in
    problem = make_problem(suite.shapes[name])
    base: Line = machine.circumstances(name, threads) | machine.rates(threads)
    base["flop_per_step"] = suite.flop(problem.shape)
    rates = f"peak {base['peak_gflops']:.0f} GF/s, copy {base['copy_gb_s']:.0f} GB/s"
    print(f"\n{name}, {threads} threads: {rates}", flush=True)
    running: list[Running] = []
    lines: list[Line] = []
    passed = True
    try:
        for entry in suite.entries:
            if threads < entry.min_threads:
                continue
            try:
                running.append(start(entry, problem, threads, suite))
                print(f"  {entry.name}: correct", flush=True)
            except Exception as error:
                passed = passed and entry.compiles and not isinstance(error, twin.Mismatch)
                text = traceback.format_exception_only(error)[-1].strip()
                print(f"  {entry.name}: not timed: {text}", flush=True)
                lines.append(base | {"contender": entry.name, "error": text})
        time_rounds(running, problem, options.rounds, end)
        # a machine shared with others can look slow for a moment, and a share of that peak too high
        base["peak_gflops"] = max(base["peak_gflops"], machine.peak_gflops(threads))
        for turn in running:
            lines += lines_of(turn, problem, base)
    finally:
        for turn in running:
            turn.contender.close()
    return lines, passed


def run(suite: Suite, arguments: Sequence[str] | None) -> int:
    """Runs what the command line asks for; 1 if a contender was wrong."""
    parser = command.parser(suite.prog, suite.about, suite.shapes, suite.entries, suite.quick)
    if len(suite.Ks) > 1:
        parser.add_argument("--K", nargs="+", type=int, default=list(suite.Ks), help="steps a call")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, help="end a shape's rounds when it took so many")
    options = parser.parse_args(arguments)
    command.settle(options, suite.shapes, suite.quick_shapes)
    options.seconds = options.seconds or (QUICK_SECONDS if options.quick else float("inf"))
    command.check_least(parser, options, threads=1, rounds=MIN_ROUNDS)
    if len(suite.Ks) > 1:
        command.check_least(parser, options, K=1)
        suite = replace(suite, Ks=options.K)
    suite = replace(suite, entries=command.wanted(suite.entries, options))
    passed = True
    # a cache of its own, so that compile seconds are those of a first use
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for threads in options.threads:
            for name in options.shape:
                lines, right = bench(name, threads, suite, options)
                passed = passed and right
                print(plain_table(lines), flush=True)
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
    flop=lambda shape: shape.flop,
    check=check_steps,
)


def main(arguments: Sequence[str] | None = None) -> int:
    return run(TRAINING, arguments)


if __name__ == "__main__":
    sys.exit(main())
