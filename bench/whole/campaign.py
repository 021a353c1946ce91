"""Kills workers, drivers and nodes of Ray while they train, and compares the final bits.

`python -m bench campaign` trains once in one process, undisturbed. Then the same run is trained by
`noprop train --engine ray` on a cluster of several nodes on this machine, and disturbed at random
moments: SIGKILL to workers, SIGSTOP to one until others have its blocks, a worker that may write no
file as large as a checkpoint, a node that goes and one that comes, SIGKILL to the driver, after
which the run is resumed. Whatever happened, the tensors must be those of the one process.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from noprop import checkpoint, metrics

from ..machine import host
from ..suites import command

NODES = 3
OF_A_RUN = 14  # disturbances, before a run goes on to its end
STALL_SECONDS = 3.0
FILE_BYTES = 4096  # more than a line of a log, less than a checkpoint
OPTIONS = [
    *("--data", "digits", "--head", "softmax", "--hidden", "32", "--T", "6"),
    *("--checkpoint-seconds", "0.2", "--threads", "1"),
]
WHAT = ("kill", "stall", "disk", "node", "driver")
SUMS = (
    *("workers_joined", "workers_lost", "units_gone_on", "steps_redone", "saves"),
    *("refused_saves", "failed_saves", "bytes_data", "bytes_written", "bytes_read"),
)
PROGRAM = f"""
from noprop.engines import ray_pool
ray_pool.STALL_SECONDS = {STALL_SECONDS}
from noprop.__main__ import main
main()
"""


def environment() -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


class Nodes:
    """A cluster of Ray on this machine: a head without processors, and nodes of one each."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster  # of an extra

        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY},
        )
        self.nodes: list[Any] = []
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        return self.cluster.address

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, **MEMORY))

    def remove(self, rng: random.Random) -> None:
        """Ends all processes of a node at once."""
        node = self.nodes.pop(rng.randrange(len(self.nodes)))
        self.cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        self.cluster.shutdown()


MEMORY = {"object_store_memory": 80 << 20}


class Driver:
    """`noprop train --engine ray` in a process of its own.

    Attributes:
        folder: of the run.
    """

    def __init__(self, folder: Path, address: str, epochs: int, workers: int = NODES) -> None:
        self.folder = folder
        options = [*OPTIONS, "--epochs", str(epochs), "--engine", "ray", "--address", address]
        where = "--resume" if (folder / checkpoint.RECORD).exists() else "--out"
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "train", *options]
            + ["--workers", str(workers), where, str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.first = len(self.events())

    def events(self) -> list[dict[str, Any]]:
        """All that were recorded, by earlier drivers too."""
        with suppress(FileNotFoundError):
            text = (self.folder / "engine.jsonl").read_text()
            return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]
        return []

    def happened(self, what: str) -> int:
        return sum(event["event"] == what for event in self.events()[self.first :])

    def workers(self) -> dict[int, int]:
        """The processes of the workers that are there, by their numbers."""
        there: dict[int, int] = {}
        for event in self.events()[self.first :]:
            if event["event"] == "joined":
                there[event["worker"]] = event["pid"]
            elif event["event"] == "lost":
                there.pop(event["worker"], None)
        return there

    def place(self) -> dict[str, int]:
        """When each unit was stored last."""
        records = (self.folder / "units").glob(f"*/{checkpoint.RECORD}")
        times = {}
        for path in records:
            with suppress(FileNotFoundError):
                times[path.parent.name] = path.stat().st_mtime_ns
        return times

    def ended(self) -> bool:
        return self.process.poll() is not None

    def until(self, condition: Callable[[], bool]) -> bool:
        """Waits; false where the process ended first."""
        while not condition():
            if self.ended():
                return False
            time.sleep(0.01)
        return True

    def finish(self) -> None:
        """
        Raises:
            RuntimeError: it failed.
        """
        _, errors = self.process.communicate()
        if self.process.returncode != 0:
            raise RuntimeError(f"exit status {self.process.returncode}: {errors}")


def disturb(what: str, driver: Driver, nodes: Nodes, rng: random.Random) -> bool:
    """Disturbs a training once it goes on after the last disturbance; whether it hit."""
    before = driver.place()
    if not driver.until(lambda: driver.place() != before and bool(driver.workers())):
        return False
    time.sleep(rng.uniform(0, 0.3))
    if what == "node":
        nodes.remove(rng)
        lost = driver.happened("lost")
        driver.until(lambda: driver.happened("lost") > lost or driver.place() != before)
        nodes.add()
        return not driver.ended()
    if what == "driver":
        driver.process.kill()
        driver.process.communicate()
        return driver.process.returncode == -signal.SIGKILL
    workers = list(driver.workers().values())
    if not workers:
        return False
    pid = rng.choice(workers)
    try:
        if what == "kill":
            os.kill(pid, signal.SIGKILL)
        elif what == "stall":
            return stalled(pid, driver)
        else:
            return without_space(pid, driver)
    except ProcessLookupError:
        return False
    return True


def stalled(pid: int, driver: Driver) -> bool:
    """Stops a worker until others have its blocks and are further with them, then wakes it up."""
    known = driver.happened("stalled")
    os.kill(pid, signal.SIGSTOP)
    try:
        driver.until(lambda: driver.happened("stalled") > known)
        before = driver.place()
        driver.until(lambda: driver.place() != before)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return driver.happened("stalled") > known


def without_space(pid: int, driver: Driver) -> bool:
    """Lets a worker write no large file until it has told that it could not save."""
    known = driver.happened("failed_save")
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FILE_BYTES, most))
    driver.until(
        lambda: driver.happened("failed_save") > known or not Path(f"/proc/{pid}").exists()
    )
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    return driver.happened("failed_save") > known


def tensors_of(folder: Path) -> str:
    """The checksum of a run's tensors."""
    return checkpoint.load_content(folder)["tensors"]["sha256"]


def measure(
    place: Path, plan: Sequence[str], of_a_run: int, epochs: int, rng: random.Random
) -> dict[str, Any]:
    """What happened, in numbers; `other_bits`, runs with other bits than the undisturbed one, must
    be 0.

    Args:
        place: an empty folder.
        plan: the disturbances, of WHAT; one that did not hit is tried again.
        of_a_run: how many a run has at most, before it goes on to its end.
        epochs: of every run.
        rng: of the moments and of whom they hit.
    """
    straight = place / "straight"
    alone = [sys.executable, "-m", "noprop", "train", *OPTIONS, "--epochs", str(epochs)]
    subprocess.run(
        [*alone, "--out", str(straight)],
        check=True, stdout=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip
    counts: dict[str, Any] = {"runs": 0, "other_bits": 0, **dict.fromkeys((*WHAT, *SUMS), 0)}
    left, nodes = list(plan), Nodes(NODES)
    try:
        while left:
            run = place / f"run{counts['runs']}"
            driver, until = Driver(run, nodes.address, epochs), len(left) - of_a_run
            while len(left) > max(0, until) and not driver.ended():
                if disturb(left[0], driver, nodes, rng):
                    what = left.pop(0)
                    counts[what] += 1
                    if what == "driver":
                        driver = Driver(run, nodes.address, epochs)
            driver.finish()
            counts["runs"] += 1
            counts["other_bits"] += tensors_of(run) != tensors_of(straight)
            for name, number in sums(driver.events()).items():
                counts[name] += number
            if (run / "units").exists() or {line["epoch"] for line in metrics.read(run)} != {
                *range(1, epochs + 1)
            }:
                raise RuntimeError(f"{run} must have all its epochs, and no units beside them")
            shutil.rmtree(run)
            if counts["runs"] > len(plan):
                raise RuntimeError(f"{left} did not hit in {counts['runs']} runs")
    finally:
        nodes.end()
    return counts


def sums(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Of a run, those of drivers that were killed included, but for their open turns."""
    kinds = [event["event"] for event in events]

    def total(name: str) -> int:
        return sum(event.get(name, 0) for event in events if event["event"] != "ended")

    return {
        "workers_joined": kinds.count("joined"),
        "workers_lost": kinds.count("lost"),
        "units_gone_on": sum(
            len(event["units"]) for event in events if event["event"] in ("lost", "stalled")
        ),
        "steps_redone": total("steps_redone"),
        "saves": total("saves"),
        "refused_saves": sum(len(event.get("refused", ())) for event in events),
        "failed_saves": kinds.count("failed_save"),
        "bytes_data": sum(event["bytes_data"] for event in events if event["event"] == "ended"),
        "bytes_written": total("bytes_written"),
        "bytes_read": total("bytes_read"),
    }


def plan_of(kills: int, others: int, rng: random.Random) -> list[str]:
    """So many kills, and so many of each other disturbance among them."""
    plan = ["kill"] * kills + [what for what in WHAT if what != "kill"] * others
    rng.shuffle(plan)
    return plan


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench campaign",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=30, help="SIGKILL to workers")
    parser.add_argument("--others", type=int, default=2, help="of each other disturbance")
    parser.add_argument("--epochs", type=int, default=400, help="of every run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="a file for the result, with the machine")
    options = parser.parse_args(arguments)
    command.check_least(parser, options, kills=1, epochs=1)
    rng = random.Random(options.seed)
    place = Path(tempfile.mkdtemp(prefix="noprop-campaign-"))
    try:
        plan = plan_of(options.kills, options.others, rng)
        counts = measure(place, plan, OF_A_RUN, options.epochs, rng)
    finally:
        shutil.rmtree(place)
    result = {
        **host.describe(),
        "ray": metadata.version("ray"),
        **{"seed": options.seed, "epochs": options.epochs, "nodes": NODES},
        **counts,
    }
    print(json.dumps(result))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if counts["other_bits"] == 0 else 1
