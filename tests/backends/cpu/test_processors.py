"""Threads: what affinity, control groups and limits of the system leave of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from noprop_kernels.backends.cpu import extension
from support.scripts import BEGIN

HERE = len(os.sched_getaffinity(0))

# the text of /proc/self/cgroup, quotas by folder, and the processors that they leave
GROUPS = {
    "no groups": ("", {}, 99),
    "v2, no quota": ("0::/", {"": "max 100000"}, 99),
    "v2, the root's": ("0::/", {"": "100000 100000"}, 1),
    "v2, its own": ("0::/a/b", {"/a/b": "100000 100000"}, 1),
    "v2, a parent's": ("0::/a/b/c", {"/a/b/c": "max 100000", "/a": "100000 100000"}, 1),
    "v2, another's": ("0::/a/b", {"/other": "100000 100000", "/a/bc": "100000 100000"}, 99),
    "v2, of another namespace": ("0::/../../x", {"": "100000 100000"}, 1),
    "v2, a half": ("0::/a", {"/a": "50000 100000"}, 1),
    "v2, one and a half": ("0::/a", {"/a": "150000 100000"}, 2),
    "v1": ("4:cpu,cpuacct:/a/b\n3:memory:/a", {"/cpu,cpuacct/a/b": (100000, 100000)}, 1),
    "v1, a parent's": ("4:cpu,cpuacct:/a/b", {"/cpu/a": (20000, 10000)}, 2),
    "v1, no quota": ("4:cpu:/a", {"/cpu/a": (-1, 100000)}, 99),
    "v1, mounted as its own group": ("4:cpu:/docker/x", {"/cpu": (100000, 100000)}, 1),
    "v1, of another controller": ("4:cpuset:/a", {"/cpuset/a": (100000, 100000)}, 99),
    "both": ("1:cpu:/a\n0::/a", {"/unified/a": "max 100000", "/cpu/a": (100000, 100000)}, 1),
}


@pytest.mark.parametrize("name", GROUPS)
def test_quotas_of_a_group_and_of_all_above_it(name: str, tmp_path: Path) -> None:
    groups, quotas, processors = GROUPS[name]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for group, quota in quotas.items():
        folder = tmp_path / f"sys/fs/cgroup{group}"
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(quota, str):
            (folder / "cpu.max").write_text(quota)
        else:
            for part, number in zip(("quota", "period"), quota, strict=True):
                (folder / f"cpu.cfs_{part}_us").write_text(str(number))
    assert extension.C.processors(str(tmp_path)) == min(processors, HERE)


def test_affinity() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    code += "from noprop_kernels.backends.cpu import backend as cpu, extension\n"
    code += "assert cpu.describe()['processors'] == 1"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


LIMITED = """
torch.set_num_threads(1)
extension.C.use_openmp(0, 0, 0)  # whose threads come and go with the load of the machine
blocks, twin = make(256, T=1), make(256, T=1)
indices = torch.arange(64).expand(3, 64).contiguous()
import resource
def count(): return len(os.listdir("/proc/self/task"))
before = count()
GRANTED = {granted}
extension.threads = lambda: 4
if GRANTED > 1:
    extension.threads, four = lambda: GRANTED, extension.threads
    make().predict(X)
    extension.threads = four
if os.getuid() == 0: os.setuid(65534)  # root has no such limit
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
losses = blocks.train_steps(X, Y, indices)
assert cpu.describe()["threads"] == GRANTED, cpu.describe()
assert count() - before == GRANTED - 1
extension.threads = lambda: 1
assert torch.equal(losses, twin.train_steps(X, Y, indices))
"""


@pytest.mark.parametrize("granted", [1, 2])
def test_fewer_threads_where_the_system_grants_no_more(granted: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BEGIN + LIMITED.replace("{granted}", str(granted))],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
