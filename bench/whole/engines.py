"""Two workers of Ray against one process on two cores, and on paper what more machines would take.

`python -m bench engines` times one process with two threads and with one, two workers of one thread
each, and a block and the head alone; of the workers it takes the time from the moment when all are
there to the end, and the time before. It needs a machine that does nothing else.

On paper N machines like one core of this one train T blocks and the head:

    seconds = start + rows + work * (1 + checkpoints) * max(1, load of the store)
    rows = bytes of the rows * N / network           all from one node, at its worst
    work = epochs * max(ceil(T / N) * block, head)   the slowest machine, a unit of which is whole
    checkpoints = ceil(T / N) * seconds of a checkpoint / seconds between two
    load of the store = T * bytes of a checkpoint / seconds between two / bytes a second

With N > T + 1 machines the rest has nothing to do. All but the network's speed is measured here.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from noprop import metrics

from ..machine import host
from ..suites import command

CHECKPOINT_SECONDS = 30.0
MACHINES = (1, 2, 10, 100, 1000)
BLOCKS = (10, 1000)
PYTHONPATH = os.pathsep.join(path for path in sys.path if path)


@dataclass(frozen=True)
class Measured:
    """Of this machine, in seconds and bytes.

    Attributes:
        process_2, process_1: training of all units in one process, with two threads and with one.
        workers_2: the same by two workers of a thread each; start: until these were there.
        block, head: an epoch of one, alone, with one thread.
        checkpoint: of a block; checkpoint_bytes: its size.
        rows_bytes: what goes to each node.
    """

    process_2: float
    process_1: float
    workers_2: float
    start: float
    block: float
    head: float
    checkpoint: float
    checkpoint_bytes: float
    rows_bytes: int


def on_paper(it: Measured, T: int, N: int, epochs: int, network: float) -> dict[str, Any]:
    """What N machines would take for T blocks and a head, and what limits them.

    Args:
        it: what was measured.
        T, N, epochs: of the run.
        network: bytes a second that a node sends.
    """
    each = math.ceil(T / N)
    parts = {"a machine's blocks": epochs * each * it.block, "the head": epochs * it.head}
    work = max(parts.values())
    saved = T * it.checkpoint_bytes / CHECKPOINT_SECONDS
    load = saved / (it.checkpoint_bytes / it.checkpoint)
    checkpoints = each * it.checkpoint / CHECKPOINT_SECONDS
    rows = it.rows_bytes * (N - 1) / network
    terms = {
        **parts,
        "the start": it.start,
        "the rows": rows,
        "the store": work * (1 + checkpoints) * max(1.0, load) - work,
    }
    return {
        **{"blocks": T, "machines": N, "busy": min(N, T + 1)},
        "seconds": it.start + rows + work * (1 + checkpoints) * max(1.0, load),
        "limited_by": max(terms, key=lambda name: terms[name]),
        "terms": terms,
        "store_load": load,
    }


def train(folder: Path, options: Sequence[str]) -> None:
    """One `noprop train` in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "noprop", "train", *options, "--out", str(folder)],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": PYTHONPATH},
    )


def seconds_of(folder: Path) -> float:
    """Of training, by the lines of the epochs."""
    return sum(line["seconds"] for line in metrics.read(folder))


def measure(place: Path, options: Sequence[str], epochs: int) -> Measured:
    """
    Args:
        place: an empty folder.
        options: of every training, epochs among them.
        epochs: of every run.
    """
    for name, more in {
        "process_2": ["--threads", "2"],
        "process_1": ["--threads", "1"],
        "block": ["--threads", "1", "--blocks", "1"],
        "head": ["--threads", "1", "--blocks", "head"],
    }.items():
        train(place / name, [*options, *more])
    begun = time.time()
    workers = place / "workers"
    train(workers, [*options, "--engine", "ray", "--workers", "2", "--threads", "1"])
    lines = (workers / "engine.jsonl").read_text().splitlines()
    events = {event["event"]: event for event in map(json.loads, lines)}
    agreed, ended = events["agreed"], events["ended"]
    return Measured(
        process_2=seconds_of(place / "process_2"),
        process_1=seconds_of(place / "process_1"),
        workers_2=ended["time"] - agreed["time"],
        start=agreed["time"] - begun,
        block=seconds_of(place / "block") / epochs,
        head=seconds_of(place / "head") / epochs,
        checkpoint=ended["save_seconds"] / ended["saves"],
        checkpoint_bytes=ended["bytes_written"] / ended["saves"],
        rows_bytes=ended["bytes_rows"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epochs", type=int, default=200, help="of every run")
    parser.add_argument("--network", type=float, default=1.25e9, help="bytes a second, on paper")
    parser.add_argument("--out", type=Path, help="a file for the result, with the machine")
    asked = parser.parse_args(arguments)
    command.check_least(parser, asked, epochs=1)
    options = [
        "--data",
        asked.data,
        "--T",
        "10",
        "--head",
        "softmax",
        "--epochs",
        str(asked.epochs),
    ]
    with tempfile.TemporaryDirectory(prefix="noprop-engines-") as place:
        measured = measure(Path(place), options, asked.epochs)
    result = {
        **host.describe(),
        **{"commit": host.commit(), "ray": packages.version("ray")},
        **{"data": asked.data, "epochs": asked.epochs, "network_bytes_a_second": asked.network},
        "measured": asdict(measured),
        "on_paper": [
            on_paper(measured, T, N, asked.epochs, asked.network) for T in BLOCKS for N in MACHINES
        ],
    }
    print(json.dumps(result, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0
