"""Programs in C on the C interface alone: a block trained, and the kernels against plain loops; and
others in C++ on threads. The build that they share with others has hostile flags, which change none
of their numbers."""

import json
import subprocess

import pytest

from support.cmake import Build


def run(build: Build, name: str, *arguments: str) -> dict:
    command = [str(build.folder / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def test_one_block_trains_in_the_memory_of_its_parts(hostile_build: Build) -> None:
    outcome = run(hostile_build, "train_one_block", "40")
    assert outcome["same_bits"] and outcome["last_loss"] * 10 < outcome["first_loss"]
    assert outcome["moments"] == 2 * outcome["weights"]
    parts = sum(outcome[part] for part in ("program", "weights", "moments", "data", "workspace"))
    # beside the code that has run since, the gradients do not fit
    assert parts < outcome["peak"] < parts + outcome["code"] + outcome["weights"]


def test_kernels_match_plain_loops(hostile_build: Build) -> None:
    outcome = run(hostile_build, "kernels_match")
    assert outcome["failures"] == 0 and outcome["cases"] == 108 * len(outcome["worst"])
    assert all(0 < worst < 1e-5 for worst in outcome["worst"].values())


def test_threads_are_fetched_and_kept_apart(hostile_build: Build) -> None:
    outcome = run(hostile_build, "apart")
    if outcome.pop("processors") == 1:
        pytest.skip("one processor: nowhere to move a thread to")
    # each bit: see the program
    assert outcome == {"wrong": 0, "moved": 1, "kept": 1, "ran_here": 1, "apart": 0b1111}


def test_steps_of_a_slice_are_taken_in_turn_and_evenly(hostile_build: Build) -> None:
    outcome = run(hostile_build, "step_tasks")
    assert outcome["faults"] == 0
    # (slices, steps, threads): (10, 20, 2), (10, 20, 8), (10, 20, 4), (10, 20, 3), (3, 20, 2),
    # (5, 20, 2), (10, 1, 8), (3, 20, 8), (8, 20, 8), (3, 3, 2)
    assert outcome["steps"] == [20, 5, 10, 10, 10, 10, 1, 20, 20, 3]
    # slices, steps, and the seconds that each thread needs for a step
    speeds = [(10, 20, (1, 1)), (10, 20, (1, 2)), (10, 20, (2, 1)), (16, 10, (1, 1, 1, 4))]
    for (n, steps, seconds), (end, tasks) in zip(speeds, outcome["simulated"], strict=True):
        assert end <= n * steps / sum(1 / one for one in seconds) * 1.06
        assert tasks == n if len({*seconds}) == 1 else tasks <= 3 * n
