"""The peak memory of a trainer's steps, in a process that does nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from ..memory.cpu import TIMEOUT, give_back, status
from .models import task
from .trainers import TRAINERS

STEPS = 6


def measure(model: str, name: str, threads: int) -> int:
    """Bytes by which the resident set grows at most, from before the model is made.

    Raises:
        OSError: the system does not report, or reset, a process' peak.
    """
    torch.set_num_threads(threads)
    given = task(model)
    TRAINERS[name](given).steps(given.indices(2, seed=1))  # loads what torch loads late
    give_back()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    trainer = TRAINERS[name](given)
    for k in range(STEPS):
        trainer.steps(given.indices(1, seed=10 + k))
    return status("VmHWM") - before


def measure_apart(model: str, name: str, threads: int) -> int:
    """`measure` in a new process.

    Raises:
        RuntimeError: it failed or timed out; the text is its last line.
    """
    call = f"from bench.in_backward.memory import child; child({model!r}, {name!r}, {threads})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", call],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{name} was not done in {TIMEOUT} s") from error
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def child(model: str, name: str, threads: int) -> None:
    """The main of the new process: prints the answer as its last line."""
    print(json.dumps(measure(model, name, threads)))
