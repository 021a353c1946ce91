"""A call's tasks run on the threads of PyTorch's OpenMP runtime, or on our own where those will not
do."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends.cpu import extension, openmp
from support.scripts import BEGIN

SHARED = """
import sklearn.cluster  # brings an OpenMP runtime of its own
torch.set_num_threads(2)
def work(): torch.ones(2000, 300) @ torch.ones(300, 300); torch.ones(10**6).exp()
def threads(): return set(os.listdir("/proc/self/task"))
blocks = make()
blocks.train_step(X, Y)
work()
def stay():
    before = threads()
    blocks.train_step(X, Y)
    work()
    return threads() == before  # none of PyTorch's has ended, and none is new
# not where other processes kept one from running
assert any(stay() or time.sleep(0.3) for _ in range(30))
torch.set_num_threads(1)  # OpenMP's threads are not in a child, and PyTorch would wait for them
child = os.fork()
if child == 0:
    blocks.train_step(X, Y)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads in /proc")
def test_pytorchs_threads_stay_and_a_child_has_its_own():
    environment = {name: v for name, v in os.environ.items() if not name.startswith("OMP_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + SHARED], capture_output=True, text=True,
        timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
PARALLEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
NUM_THREADS, PAUSE = ctypes.CFUNCTYPE(ctypes.c_int), ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)


class Runtime:
    """An OpenMP runtime that counts its regions and pauses; the calling thread does all the work.

    Attributes:
        granted: the threads of a region, whatever is asked for.
        late: whether the other thread of a region comes, after 10 ms.
    """

    def __init__(self) -> None:
        self.granted, self.late, self.regions, self.pauses = 2, False, 0, 0
        self.functions = (
            PARALLEL(self.parallel), NUM_THREADS(lambda: self.granted), PAUSE(self.pause)
        )  # fmt: skip

    def parallel(self, run: int, data: int, threads: int, flags: int) -> None:
        assert threads == 2 and flags == 0
        self.regions += 1
        RUN(run)(data)
        if self.late:
            time.sleep(0.01)
            other = threading.Thread(target=RUN(run), args=(data,))
            other.start()
            other.join()

    def pause(self, kind: int) -> int:
        self.pauses += 1
        return 0


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setattr(extension, "threads", lambda: 2)
    fake = Runtime()
    extension.C.use_openmp(*map(openmp.address, fake.functions))
    yield fake
    time.sleep(0.3)  # as long as a call may remember that threads were late
    extension.C.use_openmp(*openmp.functions())


def losses(steps: int = 3) -> list[list[float]]:
    torch.manual_seed(0)
    x, y = torch.randn(40, 20), torch.arange(40) % 3
    plan = nk.plans.mlp(20, 3, 3, hidden=32)
    blocks = nk.DenoisingBlocks(plan, nk.DT(nk.NoiseSchedule.cosine(T=4)), backend="cpu")
    return [blocks.train_step(x, y).loss.tolist() for _ in range(steps)]


def test_tasks_run_on_openmps_threads(runtime: Runtime) -> None:
    in_regions = losses()
    assert runtime.regions > 0 and runtime.pauses == 0
    extension.C.use_openmp(0, 0, 0)
    assert losses() == in_regions


def test_fewer_threads_than_asked_for_run_nothing(runtime: Runtime) -> None:
    runtime.granted = 1
    on_ours = losses()
    assert runtime.regions == runtime.pauses > 0
    runtime.granted = 2
    assert losses() == on_ours


def test_after_a_late_thread_our_own_run_for_a_while(runtime: Runtime) -> None:
    runtime.late = True
    on_ours = losses()
    assert runtime.regions > 0 and runtime.pauses > 0
    time.sleep(0.3)
    runtime.late, runtime.pauses = False, 0
    assert losses() == on_ours
    assert runtime.pauses == 0
