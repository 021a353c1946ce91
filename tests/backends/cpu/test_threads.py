"""PyTorch's OpenMP threads are let go before a call of ours, and never in a forked child."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LET_GO = """
import os, time, torch
import sklearn.cluster  # brings an OpenMP runtime of its own
from noprop_kernels.backends.cpu import backend as cpu, openmp
torch.set_num_threads(2)
def work(): torch.ones(2000, 300) @ torch.ones(300, 300); torch.ones(10**6).exp()
def count(): return len(os.listdir("/proc/self/task"))
before = count()
work()
spinning = count()
assert spinning > before, (before, spinning)
cpu.threads = lambda: 2
cpu._call_threads()
end = time.monotonic() + 10
while count() >= spinning and time.monotonic() < end: time.sleep(0.01)
assert count() < spinning, (spinning, count())
work()  # makes them anew
child = os.fork()
if child == 0:
    os._exit(int(openmp.pause_function() is not None))
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_openmp_threads_are_let_go_and_never_in_a_child():
    environment = {name: v for name, v in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LET_GO], capture_output=True, text=True,
        timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
