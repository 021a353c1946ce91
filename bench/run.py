"""Times every contender: `python -m bench.run [--quick] [--shape small ...] [--out FILE]`.

Each contender first takes three steps that must be those of a float64 twin, on the very shape; one
that fails is not timed. Then come rounds, in each of which every contender takes its turn, all in
one process. Caches are warm: before each sample a contender takes one step untimed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import machine, twin
from .contender import Contender, Entry
from .ours import OURS
from .problem import Problem, make_problem
from .report import Line, plain_table
from .rivals import RIVALS
from .shapes import SHAPES

CHECK_STEPS = 3
SINGLE_CALLS = 10  # of K = 1 in one sample
MIN_ROUNDS = 3
QUICK_SHAPES = ("tiny", "small")
QUICK_SECONDS = 25.0  # of timing for a shape, after which rounds end


@dataclass
class Running:
    """A contender that passed its check, and its samples: milliseconds a step, by K."""

    name: str
    contender: Contender
    compile_seconds: float | None
    samples: dict[int, list[float]] = field(default_factory=dict)


def start(entry: Entry, problem: Problem, threads: int) -> Running:
    """Makes a contender and checks its first steps; what stops it is raised."""
    contender = entry.make(problem, threads)
    try:
        indices = problem.indices(CHECK_STEPS, seed=1)
        given, used = contender.check_eps(CHECK_STEPS, seed=2)
        losses, seconds = [], []
        for k in range(CHECK_STEPS):  # one by one, since the first compiles
            begin = time.perf_counter()
            eps = None if given is None else given[k : k + 1]
            losses.append(contender.steps(indices[k : k + 1], eps))
            seconds.append(time.perf_counter() - begin)
        twin.check(problem, contender.maths, indices, used, torch.cat(losses), contender.weights())
    except BaseException:
        contender.close()
        raise
    return Running(entry.name, contender, seconds[0] - seconds[-1] if entry.compiles else None)


def sample(contender: Contender, indices: Tensor) -> float:
    """Milliseconds a step: of one call of K steps, or the mean of several calls of one."""
    K = len(indices)
    calls = SINGLE_CALLS if K == 1 else 1
    contender.steps(indices[:1])
    begin = time.perf_counter()
    for _ in range(calls):
        contender.steps(indices)
    return (time.perf_counter() - begin) / (calls * K) * 1e3


def time_rounds(
    running: Sequence[Running], problem: Problem, Ks: Sequence[int], rounds: int, seconds: float
) -> None:
    """Fills `samples`: every contender once a round, each round beginning with the next one."""
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for i in range(len(running)):
            turn = running[(i + number) % len(running)]
            for K in Ks:
                indices = problem.indices(K, seed=100 + number)
                turn.samples.setdefault(K, []).append(sample(turn.contender, indices))


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
    name: str, threads: int, entries: Sequence[Entry], options: argparse.Namespace
) -> tuple[list[Line], bool]:
    """All result lines of one shape at one number of threads, and whether every check passed."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # compiled code has its number of threads built in
    problem = make_problem(SHAPES[name])
    base: Line = {
        "shape": name,
        "threads": threads,
        "flop_per_step": problem.shape.flop,
        "peak_gflops": machine.peak_gflops(threads),
        "copy_gb_s": machine.copy_gb_s(threads),
        "precision": "float32",
        "cache": "warm",
        "machine": machine.describe(),
        "versions": machine.versions(),
        "commit": machine.commit(),
        "date": machine.now(),
    }
    rates = f"peak {base['peak_gflops']:.0f} GF/s, copy {base['copy_gb_s']:.0f} GB/s"
    print(f"\n{name}, {threads} threads: {rates}", flush=True)
    running: list[Running] = []
    lines: list[Line] = []
    passed = True
    try:
        for entry in entries:
            if threads < entry.min_threads:
                continue
            try:
                running.append(start(entry, problem, threads))
                print(f"  {entry.name}: correct", flush=True)
            except Exception as error:
                passed = passed and entry.compiles and not isinstance(error, twin.Mismatch)
                text = traceback.format_exception_only(error)[-1].strip()
                print(f"  {entry.name}: not timed: {text}", flush=True)
                lines.append(base | {"contender": entry.name, "error": text})
        time_rounds(running, problem, options.K, options.rounds, options.seconds)
        # a machine shared with others can look slow for a moment, and a share of that peak too high
        base["peak_gflops"] = max(base["peak_gflops"], machine.peak_gflops(threads))
        for turn in running:
            lines += lines_of(turn, problem, base)
    finally:
        for turn in running:
            turn.contender.close()
    return lines, passed


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    names = [entry.name for entry in (*OURS, *RIVALS)]
    cores = machine.cores()
    parser.add_argument("--quick", action="store_true", help="about two minutes on two cores")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, help="default: all")
    parser.add_argument("--contender", nargs="+", choices=names, help="default: all")
    parser.add_argument("--threads", nargs="+", type=int, help="default: 1 and all cores")
    parser.add_argument("--K", nargs="+", type=int, default=[1, 50], help="steps a call")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, help="end a shape's rounds after this many")
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.shape = options.shape or list(QUICK_SHAPES if quick else SHAPES)
    options.threads = options.threads or ([cores] if quick else sorted({1, cores}))
    options.seconds = options.seconds or (QUICK_SECONDS if quick else float("inf"))
    for name in ("K", "threads", "rounds"):
        values = getattr(options, name)
        least = 2 if name == "rounds" else 1
        if min(values if isinstance(values, list) else [values]) < least:
            parser.error(f"--{name} must be at least {least}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what the command line asks for; 1 if a contender was wrong."""
    options = parse(arguments)
    entries = [
        entry
        for entry in (*OURS, *RIVALS)
        if not (options.quick and entry.slow)
        and (not options.contender or entry.name in options.contender)
    ]
    passed = True
    # a cache of its own, so that compile seconds are those of a first use
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for threads in options.threads:
            for name in options.shape:
                lines, right = bench(name, threads, entries, options)
                passed = passed and right
                print(plain_table(lines), flush=True)
                if options.out:
                    options.out.parent.mkdir(parents=True, exist_ok=True)
                    with options.out.open("a") as file:
                        file.writelines(json.dumps(line) + "\n" for line in lines)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
