"""The cost of a call beside its kernels: `train_step` and `train_steps` with K = 1 at `tiny`,
paired with another build.

    python -m bench boundary OTHER [--rounds 200] [--cpu]

OTHER is the folder of the other build's `noprop_kernels`. Each build runs in a process of its own,
and the two take turns, so that whatever slows the machine slows both. It prints the median of the
pairs' ratios, this build to the other, its quartiles, and the fastest call of each.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parents[2]
CALLS_A_TURN = 5
WORK = f"""
import sys, time, torch
import noprop_kernels as nk
torch.set_num_threads(int(sys.argv[1]))
clock = time.process_time if sys.argv[2] == "True" else time.perf_counter
plan = nk.plans.mlp(784, 10, 10, hidden=64)
blocks = nk.DenoisingBlocks(plan, nk.DT(nk.NoiseSchedule.cosine(T=10)))
generator = torch.Generator().manual_seed(0)
x, y = torch.rand(128, 784, generator=generator), torch.randint(10, (128,), generator=generator)
rows = torch.randperm(128, generator=generator)[None]
calls = {{
    "train_step": lambda: blocks.train_step(x, y),
    "train_steps": lambda: blocks.train_steps(x, y, rows),
}}
print("ready", flush=True)
for name in sys.stdin:
    call = calls[name.strip()]
    times = []
    for _ in range({CALLS_A_TURN}):
        start = clock()
        call()
        times.append(clock() - start)
    print(min(times), flush=True)
"""


class Build:
    """A process that makes calls on command."""

    def __init__(self, folder: Path, threads: int, cpu: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(threads), str(cpu)], text=True, cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.ask("")

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        if line:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise RuntimeError(f"a build ended with {self.process.wait()}")
        return answer

    def seconds(self, call: str) -> float:
        return float(self.ask(call))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench boundary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="processor time, where others run too")
    given = parser.parse_args(arguments)
    options = given.threads, given.cpu
    ours, other = Build(HERE, *options), Build(given.other.resolve(), *options)
    for call in ("train_step", "train_steps"):
        pairs = []
        for turn in range(given.rounds + 10):
            first, second = (ours, other) if turn % 2 else (other, ours)
            times = {first: first.seconds(call), second: second.seconds(call)}
            if turn >= 10:
                pairs.append((times[ours], times[other]))
        low, middle, high = statistics.quantiles((a / b for a, b in pairs), n=4)
        best, best_other = (min(times) * 1e6 for times in zip(*pairs, strict=True))
        print(
            f"{call}: {middle:.3f} ({low:.3f} to {high:.3f}); "
            f"fastest {best:.0f} us, other {best_other:.0f} us"
        )
    return 0
