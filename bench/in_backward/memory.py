"""The peak memory of a trainer's steps, in a process that does nothing else."""

import json
from pathlib import Path

import torch

from ..memory.cpu import answer_apart, give_back, status
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
    """`measure` in a new process."""
    call = f"from bench.in_backward.memory import child; child({model!r}, {name!r}, {threads})"
    return answer_apart(name, call)


def child(model: str, name: str, threads: int) -> None:
    """The main of the new process: prints the answer as its last line."""
    print(json.dumps(measure(model, name, threads)))
