"""A call's tasks run on the threads of PyTorch's OpenMP runtime, or on our own where those will not
do."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import noprop_kernels as nk
from noprop_kernels.backends.cpu import extension, openmp
from support import openmp_runtime, scripts
from support.openmp_runtime import Runtime
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


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setattr(extension, "threads", lambda: 2)
    fake = Runtime()
    assert is_asked(fake)
    fake.regions = fake.pauses = 0
    yield fake
    assert is_asked(fake)
    extension.C.use_openmp(*openmp.functions())


def is_asked(runtime: Runtime) -> bool:
    """Whether calls run in its regions, once it is long enough ago that threads were late."""
    extension.C.use_openmp(*map(openmp.address, runtime.functions))
    runtime.granted, runtime.late, before, end = 2, False, runtime.regions, time.monotonic() + 20
    while runtime.regions == before and time.monotonic() < end:
        losses(1)
        time.sleep(0.05)
    return runtime.regions > before


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


def test_shorter_tasks_have_the_bits_of_whole_ones(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first thread does all, so that it is ahead by two tasks, and takes shorter ones."""

    def trained() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(40, 20, generator=generator), torch.arange(40) % 3
        plan, goal = nk.plans.mlp(20, 3, 3, hidden=32), nk.DT(nk.NoiseSchedule.cosine(T=5))
        blocks = nk.DenoisingBlocks(plan, goal, backend="cpu", seed=3)
        rows = torch.randint(40, (7, 16), generator=generator)
        return blocks.train_steps(x, y, rows), blocks.state_dict()

    shorter, moved = trained()
    assert runtime.regions > 0 and runtime.pauses == 0
    with monkeypatch.context() as alone:
        alone.setattr(extension, "threads", lambda: 1)
        whole, state = trained()
    assert torch.equal(shorter, whole)
    assert all(torch.equal(value, state[name]) for name, value in moved.items())


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
    assert is_asked(runtime)
    runtime.pauses = 0
    assert losses() == on_ours
    assert runtime.pauses == 0


LATE_AGAIN = """
from noprop_kernels.backends.cpu import openmp
from support.openmp_runtime import Runtime
runtime = Runtime()
extension.C.use_openmp(*map(openmp.address, runtime.functions))
runtime.late = True
blocks = make()
def waited():
    begin, before = time.monotonic(), runtime.regions
    while runtime.regions == before:
        blocks.train_step(X, Y)
        time.sleep(0.01)
    return time.monotonic() - begin
found = [waited() for _ in range(5)]
assert found[4] > 1.5, found  # 0.25, 0.5, 1 and 2 s after the first
"""


def test_threads_that_are_late_again_are_asked_again_later() -> None:
    tests = Path(openmp_runtime.__file__).parents[1]
    done = scripts.run(f"sys.path.insert(0, {str(tests)!r})\n{LATE_AGAIN}")
    assert done.returncode == 0, done.stderr
