"""The machine: its facts, the installed versions, and its rates."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import noprop_kernels as nk
from noprop_kernels.backends import dispatch

GEMM_SIZES = (512, 1024, 2048)
COPY_BYTES = 1 << 28  # beyond most last-level caches
FMA_ROUNDS = 20  # about 13 ms on a core of 115 GF/s


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe() -> dict[str, object]:
    """The machine, for the result files."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": platform.platform(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def versions() -> dict[str, object]:
    found: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mkl": torch.backends.mkl.is_available(),
        "noprop_kernels": nk.__version__,
    }
    if dispatch.native_gap() is None:
        from noprop_kernels.backends.cpu import backend as cpu

        built = cpu.describe()
        found |= {"compiler": built["compiler"], "isa": built["isa_used"]}
    return found


def commit() -> str:
    """The working tree's commit, with "-dirty" if files differ from it; else NOPROP_COMMIT."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--verify", "HEAD")
    if not head:
        return os.environ.get("NOPROP_COMMIT") or "unknown"
    return head + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def best_rate(work: Callable[[], float], seconds: float) -> float:
    """The highest rate of `work`, which returns the units done, over repetitions for this long."""
    best, end = 0.0, time.perf_counter() + seconds
    work()
    while time.perf_counter() < end:
        start = time.perf_counter()
        units = work()
        best = max(best, units / (time.perf_counter() - start))
    return best


def circumstances(shape: str, threads: int, precision: str = "float32") -> dict[str, Any]:
    """The fields of every result line on its run."""
    return {
        "shape": shape,
        "threads": threads,
        "precision": precision,
        "cache": "warm",
        "machine": describe(),
        "versions": versions(),
        "commit": commit(),
        "date": now(),
    }


def rates(threads: int, state_bytes: int) -> dict[str, float]:
    """The measured limits of the machine, for the result lines.

    `copy_gb_s` is memory's rate; `state_gb_s` that of the cache into which all blocks' state fits.
    """
    return {
        "peak_gflops": peak_gflops(threads),
        "copy_gb_s": copy_gb_s(threads, 2 * COPY_BYTES),
        "state_gb_s": copy_gb_s(threads, state_bytes),
    }


def peak_gflops(threads: int, seconds: float = 2.0) -> float:
    """The machine's float32 multiply-add peak: the best of torch's products and FMAs in registers.

    Other work on the machine only lowers a rate, so that the highest one counts.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = []
        for n in GEMM_SIZES:
            a, b, out = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)

            def product(a=a, b=b, out=out, n=n) -> float:
                torch.mm(a, b, out=out)
                return 2e-9 * n**3

            rates.append(best_rate(product, seconds / 4))
        if dispatch.native_gap() is None:
            from noprop_kernels.backends.cpu import backend as cpu

            rates.append(best_rate(lambda: cpu.fma_gflop(threads, FMA_ROUNDS), seconds / 4))
        return max(rates)
    finally:
        torch.set_num_threads(before)


def copy_gb_s(threads: int, size: int, seconds: float = 0.5) -> float:
    """Bytes read and written a second, in 1e9, by copies between two arrays of `size` in sum.

    The best of one thread and all: a small copy is not worth waking the others.
    """
    before = torch.get_num_threads()
    try:
        source = torch.ones(size // 8)
        target = torch.empty_like(source)

        def copy() -> float:
            target.copy_(source)
            return 8e-9 * len(source)

        rates = []
        for count in {1, threads}:
            torch.set_num_threads(count)
            rates.append(best_rate(copy, seconds / 2))
        return max(rates)
    finally:
        torch.set_num_threads(before)
