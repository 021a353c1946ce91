"""Kills runs at random moments with SIGKILL, resumes each, and compares the final bits.

`python -m bench kills` trains once undisturbed. Then a run is started, killed, resumed and killed
again, until `--kills` kills have hit; each run is then resumed to its end, and its tensors must be
those of the undisturbed run. Some kills hit between the first two writes of a folder, when the
tensors have their name and the record does not yet.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from noprop import checkpoint

from ..suites import command

ROWS, FEATURES, CLASSES = 600, 8, 3
KILLS_OF_A_RUN = 4  # then the run continues to its end
EARLY = 0.25  # of the runs are first killed as soon as their tensors are written
OPTIONS = ["--hidden", "16", "--T", "3", "--batch-size", "32", "--checkpoint-seconds", "0"]


def train(folder: Path, data: Path, epochs: int, *more: str) -> subprocess.Popen:
    """A process that trains into `folder`, from the start or resumed."""
    arguments = ["--data", str(data), "--epochs", str(epochs), *OPTIONS, *more]
    where = "--resume" if folder.exists() and any(folder.iterdir()) else "--out"
    return subprocess.Popen(
        [sys.executable, "-m", "noprop", "train", *arguments, where, str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def finished(process: subprocess.Popen) -> None:
    """
    Raises:
        RuntimeError: it failed.
    """
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"exit status {process.returncode}: {errors}")


def killed(process: subprocess.Popen, folder: Path, rng: random.Random, *, early: bool) -> bool:
    """Whether SIGKILL hit the process: in the first two writes if `early`, else once it trains."""
    record = folder / checkpoint.RECORD
    begun = record.stat().st_mtime_ns if record.exists() else None
    while process.poll() is None:
        if early and any(folder.glob("tensors-*")) and not record.exists():
            break
        if record.exists() and record.stat().st_mtime_ns != begun:
            time.sleep(rng.uniform(0, 0.3))
            break
        time.sleep(0.0002 if early else 0.005)
    process.kill()
    _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"exit status {process.returncode}: {errors}")
    return process.returncode == -signal.SIGKILL


def tensors_of(folder: Path) -> str:
    """The checksum of a run's tensors."""
    return checkpoint.load_content(folder)["tensors"]["sha256"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench kills",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=300, help="of every run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    command.check_least(parser, options, kills=1, epochs=1)
    rng = random.Random(options.seed)
    place = Path(tempfile.mkdtemp(prefix="noprop-kills-"))
    try:
        counts = measure(place, options.kills, options.epochs, rng)
    finally:
        shutil.rmtree(place)
    print(json.dumps(counts))
    return 0 if counts["other_bits"] == 0 else 1


def measure(place: Path, kills: int, epochs: int, rng: random.Random) -> dict[str, int]:
    """Number of kills that hit, of those before a folder's first record, and of runs with other
    bits than the undisturbed one, which must be 0.
    """
    data = place / "data.npz"
    values = np.random.default_rng(0)
    y = values.integers(0, CLASSES, ROWS)
    x = values.normal(size=(ROWS, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[y]
    np.savez(data, x=x.astype(np.float32), y=y)
    straight = place / "straight"
    finished(train(straight, data, epochs))
    counts = {"kills": 0, "before_the_first_record": 0, "runs": 0, "other_bits": 0}
    while counts["kills"] < kills:
        run, early = place / f"run{counts['runs']}", rng.random() < EARLY
        for attempt in range(min(KILLS_OF_A_RUN, kills - counts["kills"])):
            hit = killed(train(run, data, epochs), run, rng, early=early and attempt == 0)
            counts["kills"] += hit
            counts["before_the_first_record"] += hit and not (run / checkpoint.RECORD).exists()
        finished(train(run, data, epochs))
        counts["runs"] += 1
        counts["other_bits"] += tensors_of(run) != tensors_of(straight)
        left = sorted(path.name for path in run.iterdir())
        if len(left) != 3 or any(name.startswith(".") for name in left):
            raise RuntimeError(f"{run} must have metrics, record and tensors, got {left}")
        shutil.rmtree(run)
    return counts
