"""Rounds in which every contender takes its turn, and their result lines."""

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from ..contenders.contender import Contender
from ..machine import gpu, host
from ..problem.problem import Problem
from ..report.lines import Line
from .suite import Checked, Lineup, Suite

SINGLE_CALLS = 10  # calls of K = 1 in one sample, of steps that are short
LONG = 0.1  # seconds of a step
MIN_ROUNDS = 3

Turn = TypeVar("Turn")


def sample(contender: Contender, indices: Tensor, least: float = 0.0) -> float:
    """Milliseconds a step: of one call of K steps, or the mean of several calls of one, and of as
    many as take `least` seconds."""
    K = len(indices)
    begin = time.perf_counter()
    contender.steps(indices[:1])
    gpu.synchronize(indices.device)
    calls = SINGLE_CALLS if K == 1 and time.perf_counter() - begin < LONG else 1
    begin, done = time.perf_counter(), 0
    while done < calls or time.perf_counter() - begin < least:
        contender.steps(indices)
        done += 1
    gpu.synchronize(indices.device)
    return (time.perf_counter() - begin) / (done * K) * 1e3


def in_turns(turns: Sequence[Turn], rounds: int, end: float) -> Iterator[tuple[int, Turn]]:
    """Each once a round, with the round's number, in another order every round."""
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for turn in random.Random(number).sample(turns, len(turns)):
            yield number, turn


def time_rounds(checked: Sequence[Checked], problem: Problem, rounds: int, end: float) -> None:
    """Fills `samples`: every contender once a round."""
    for number, turn in in_turns(checked, rounds, end):
        for K, samples in turn.samples.items():
            samples.append(sample(turn.contender, problem.indices(K, seed=100 + number)))


def measure_rounds(lineup: Lineup, suite: Suite, rounds: int, end: float) -> list[Line]:
    """The rounds, and a result line for each contender and K."""
    time_rounds(lineup.checked, lineup.problem, rounds, end)
    # a shared machine can be slow for a moment, and a share of that peak would be too high
    again = measured_rates(lineup.problem, lineup.base["threads"])
    base = lineup.base | {name: max(rate, lineup.base[name]) for name, rate in again.items()}
    return [line for turn in lineup.checked for line in lines_of(turn, lineup.problem, base)]


def measured_rates(problem: Problem, threads: int) -> dict[str, float]:
    """The measured limits of the problem's device."""
    if problem.device.type == "cuda":
        return gpu.rates(problem.device, problem.precision, problem.shape.state_bytes)
    return host.rates(threads, problem.shape.state_bytes)


def lines_of(turn: Checked, problem: Problem, base: Line) -> list[Line]:
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


def ratios(of: Sequence[float], to: Sequence[float]) -> tuple[float, float, float]:
    """The quantiles of the ratio in each round: what slows a round slows both."""
    return quantiles([a / b for a, b in zip(of, to, strict=True)])
