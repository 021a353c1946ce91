"""Memory in parts, and its measured peak: `python -m bench memory [--quick] [--out FILE]`.

Each contender has a process of its own. First it takes steps so that PyTorch loads all that it
loads late, and is dropped: the process' resident set is now the baseline. Then the contender is
made again, takes steps, and the highest resident set (VmHWM) during further steps counts. Beside it
are the bytes of the parts: weights and optimizer state between steps, gradients that exist at once,
activations (with all else that PyTorch allocates in a step), and the native workspace.
"""

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contenders.contender import Contender, Entry
from ..contenders.ours import OURS, Ours
from ..contenders.rivals import RIVALS
from ..contenders.rivals.paper import PAPER_RIVALS
from ..machine import host
from ..problem.problem import Problem, make_problem
from ..problem.sizes import PAPER_SHAPES, SHAPES, Shape
from ..report.cells import aligned
from ..report.lines import Line
from ..report.suite_rows import memory_rows
from ..suites import command

NAMES = (
    *("ours", "sequential", "stacked_shared", "step_compiled"),
    *("end_to_end", "end_to_end_checkpointed"),
    *("end_to_end_accumulated", "end_to_end_in_backward"),
)
ENTRIES = {entry.name: entry for entry in (*OURS, *RIVALS) if entry.name in NAMES}
PAPER_NAMES = ("ours", "eager", "joined", "grouped", "unfolded")
PAPER_ENTRIES = {e.name: e for e in (*OURS, *PAPER_RIVALS) if e.name in PAPER_NAMES}
WARM_STEPS = 3
STEPS = 12
TIMEOUT = 600  # seconds, of which compiling takes most
BATCHES = 4  # of rows; the data set is not part of the measurement


def entries_of(shape: Shape) -> dict[str, Entry]:
    """The contenders at this shape."""
    return ENTRIES if shape.image is None else PAPER_ENTRIES


def measure(name: str, shape: Shape, threads: int) -> Line:
    """Measures one contender, in a process that has done nothing else.

    Raises:
        OSError: the system does not report, or reset, a process' peak.
    """
    torch.set_num_threads(threads)
    problem = make_problem(replace(shape, rows=BATCHES * shape.B))
    ready(name, problem, threads).close()
    give_back()
    before = status("VmRSS")
    contender = ready(name, problem, threads)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    seconds = [step_seconds(contender, problem.indices(1, seed=10 + i)) for i in range(STEPS)]
    growth = status("VmHWM") - before
    indices = problem.indices(1, seed=3)
    step, gradients = contender.step_bytes(indices), contender.gradient_bytes()
    native = isinstance(contender, Ours)
    assert step is not None
    parts = {"thread": contender.thread_bytes(len(indices))} if native else {}
    parts |= {
        "gradients": gradients,
        "activations": 0 if native else max(step - gradients, 0),
        "workspace": step if native else 0,
        "rss_growth": growth,
    }
    return {
        "maths": contender.maths,
        "ms_per_step": statistics.median(seconds) * 1e3,
        "memory_bytes": contender.resident() | parts,
    }


def ready(name: str, problem: Problem, threads: int) -> Contender:
    """A contender after its first steps and compilation."""
    contender = entries_of(problem.shape)[name].make(problem, threads)
    for i in range(WARM_STEPS):
        contender.steps(problem.indices(1, seed=i))
    return contender


def step_seconds(contender: Contender, indices: Tensor) -> float:
    begin = time.perf_counter()
    contender.steps(indices)
    return time.perf_counter() - begin


def give_back() -> None:
    """Returns freed memory to the system, so that it is not mistaken for memory in use."""
    torch.compiler.reset()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(f"{name}:"):
            return 1024 * int(text.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


def answer_apart(name: str, program: str, request: object = None) -> Any:
    """The JSON that a program prints last, in a new process that gets `request` as JSON on stdin.

    Raises:
        RuntimeError: it failed or timed out; the text is its last line.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(request),
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{name} was not done in {TIMEOUT} s") from error
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def measure_apart(name: str, shape: Shape, threads: int) -> Line:
    """`measure` in a new process."""
    request = {"name": name, "shape": asdict(shape), "threads": threads}
    return answer_apart(name, "from bench.memory import cpu; cpu.child()", request)


def child() -> None:
    """The main of the new process: reads a request on stdin, prints the answer as its last line."""
    request = json.load(sys.stdin)
    print(json.dumps(measure(request["name"], Shape(**request["shape"]), request["threads"])))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 if a contender that compiles nothing failed."""
    shapes = SHAPES | PAPER_SHAPES
    entries = list((ENTRIES | PAPER_ENTRIES).values())
    parser = command.parser("memory", __doc__, shapes, entries, quick="tiny alone")
    options = parser.parse_args(arguments)
    options.threads = options.threads or [host.cores()]
    command.settle(options, shapes, ("tiny",))
    command.check_least(parser, options, threads=1)
    passed = True
    for threads in options.threads:
        for shape in options.shape:
            base = host.circumstances(shape, threads) | {"kind": "memory", "K": 1}
            print(f"\n{shape}, {threads} threads", flush=True)
            lines: list[Line] = []
            for entry in entries_of(shapes[shape]).values():
                if options.contender and entry.name not in options.contender:
                    continue
                line, begin = base | {"contender": entry.name}, time.perf_counter()
                try:
                    line |= measure_apart(entry.name, shapes[shape], threads)
                except Exception as error:
                    passed = passed and entry.compiles
                    text = traceback.format_exception_only(error)[-1].strip()
                    print(f"  {entry.name}: not measured: {text}", flush=True)
                    line["error"] = text
                print(f"  {entry.name}: {time.perf_counter() - begin:.0f} s", flush=True)
                lines.append(line)
            print(aligned(memory_rows(lines)), flush=True)
            command.append(options.out, lines)
    return 0 if passed else 1
