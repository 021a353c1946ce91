"""An optimizer inside backward: `python -m bench in_backward [--quick] [--out FILE]`.

Three models that are not NoProp's (models.py), each trained by AdamW with nk.OptimizerInBackward
and by its rivals: eager torch with fused AdamW, compiled, torch's recipe of a hook for each
parameter, and optimi's gradient release. Correctness comes first: every trainer's weights after one
step against float64, and our losses after many steps against torch's (check.py). Then the trainers
take turns, in rounds. Peak memory is measured in a process for each.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from typing import Any

import torch

from ..contenders.contender import Entry
from ..machine import host
from ..report.cells import aligned
from ..report.lines import Line, best_rival
from ..suites import command
from ..suites.rounds import MIN_ROUNDS, quantiles, time_rounds
from ..suites.suite import Checked
from .check import STEPS, Mismatch, check_first_step, check_losses
from .memory import measure_apart
from .models import TASKS, Task, mnist_gap, task
from .trainers import TRAINERS, gap

KIND = "in_backward"
WARM_STEPS = 3
QUICK_STEPS = 20


def start(name: str, given: Task) -> Checked:
    """A trainer that passed its check, warm."""
    begin = time.perf_counter()
    trainer: Any = TRAINERS[name](given)
    trainer.steps(given.indices(1, seed=1))
    seconds = time.perf_counter() - begin
    check_first_step(given, TRAINERS[name])
    trainer.steps(given.indices(WARM_STEPS, seed=2))
    return Checked(name, trainer, seconds if trainer.compiles else None, {1: []})


def run_model(
    given: Task, threads: int, names: Sequence[str], rounds: int, end: float
) -> tuple[list[Line], bool]:
    """The result lines of a model, and whether no trainer was wrong."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # the number of threads is built into compiled code
    base = host.circumstances(given.name, threads) | {"kind": KIND, "maths": "adamw", "K": 1}
    checked, lines, passed = [], [], True
    for name in names:
        try:
            if reason := gap(name):
                raise ModuleNotFoundError(reason)
            checked.append(start(name, given))
            print(f"  {name}: correct", flush=True)
        except Exception as error:
            missing = isinstance(error, ModuleNotFoundError)
            passed = passed and (missing or TRAINERS[name].compiles)
            passed = passed and not isinstance(error, Mismatch)
            text = traceback.format_exception_only(error)[-1].strip()
            print(f"  {name}: not timed: {text}", flush=True)
            lines.append(base | {"contender": name, "error": text})
    time_rounds(checked, given, rounds, end)  # type: ignore[arg-type]  # it has indices
    for turn in checked:
        low, median, high = quantiles(turn.samples[1])
        line = {
            "contender": turn.name,
            "ms_per_step": median,
            "ms_q20": low,
            "ms_q80": high,
            "rounds": len(turn.samples[1]),
            "compile_seconds": turn.compile_seconds,
            "memory_bytes": {"rss_growth": measure_apart(given.name, turn.name, threads)},
        }
        lines.append(base | line)
    return lines, passed


def table(lines: Sequence[Line]) -> str:
    """Fastest first; ratio: the best rival's time over the line's."""
    timed = sorted(
        (line for line in lines if "error" not in line), key=lambda line: line["ms_per_step"]
    )
    best = best_rival(timed, "adamw")
    rows = [("contender", "ms/step", "20%", "80%", "ratio", "compile s", "peak MiB")]
    for line in timed:
        seconds = line["compile_seconds"]
        rows.append(
            (
                line["contender"],
                *(f"{line[name]:.3f}" for name in ("ms_per_step", "ms_q20", "ms_q80")),
                f"{best['ms_per_step'] / line['ms_per_step']:.2f}" if best else "",
                "" if seconds is None else f"{seconds:.0f}",
                f"{line['memory_bytes']['rss_growth'] / 2**20:.1f}",
            )
        )
    return aligned(rows, left=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 if a trainer was wrong."""
    entries: Any = [Entry(name, make) for name, make in TRAINERS.items()]  # type: ignore[arg-type]
    parser = command.parser("in_backward", __doc__, TASKS, entries, quick="few rounds and steps")
    parser.add_argument("--rounds", type=int, help="default 20; a quick run's 5")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end a model's rounds")
    parser.add_argument("--steps", type=int, help=f"of the losses' check; default {STEPS}")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (5 if options.quick else 20)
    options.steps = options.steps or (QUICK_STEPS if options.quick else STEPS)
    command.settle(options, TASKS, TASKS)
    command.check_least(parser, options, threads=1, rounds=MIN_ROUNDS, steps=4)
    names = [entry.name for entry in command.wanted(entries, options)]
    passed = True
    # a cache of its own, so that compile seconds are those of a first use
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for model in options.shape:
            if model == "mlp" and (reason := mnist_gap()):
                print(f"\n{model}: left out: {reason}", flush=True)
                continue
            given = task(model)
            try:
                print(f"\n{check_losses(given, TRAINERS['ours'], options.steps)}", flush=True)
            except Mismatch as error:
                print(f"\n{error}", flush=True)
                passed = False
                continue
            for threads in options.threads:
                print(f"{model}, {threads} threads", flush=True)
                end = time.perf_counter() + options.seconds
                lines, right = run_model(given, threads, names, options.rounds, end)
                passed = passed and right
                print(table(lines), flush=True)
                command.append(options.out, lines)
    return 0 if passed else 1
