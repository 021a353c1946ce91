"""The GPU: its facts and rates, and CUDA graphs captured by hand.

    python -m bench gpu facts|peaks [--rehearse] --out FILE

`facts` needs only torch, so it works before the package is built; `peaks` also needs Triton. Each
appends a JSON line. With --rehearse the same code runs on the CPU, and its lines say so.
"""

import argparse
import json
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

SMI = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "memory.total")
MATRIX_SIZES = (4096, 8192)
COPY_BYTES = 1 << 30  # of both arrays, beyond any cache
REPEATS = 20


def synchronize(device: torch.device) -> None:
    """Waits for all work on a GPU; returns at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def apart(device: torch.device, work: Callable[[], Result]) -> Result:
    """Runs `work` on its own stream, as required before a capture."""
    if device.type != "cuda":
        return work()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream(device).wait_stream(stream)
    return result


def capture(device: torch.device, work: Callable[[], Result]) -> Callable[[], Result]:
    """Captures `work` in a CUDA graph; each replay writes the same result tensors.

    On a CPU it returns `work` itself, for tests and rehearsals.
    """
    if device.type != "cuda":
        return work
    graph = torch.cuda.CUDAGraph()
    # other threads, such as a compiler's, may make calls that a capture must not contain
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work()

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def nvidia_smi() -> dict[str, str]:
    """Driver, clocks and more from nvidia-smi, or the reason why it fails."""
    if shutil.which("nvidia-smi") is None:
        return {"nvidia_smi": "not found on PATH"}
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        return {"nvidia_smi": (done.stdout + done.stderr).strip()[-300:]}
    values = done.stdout.strip().splitlines()[0].split(",")
    return dict(zip(SMI, (value.strip() for value in values), strict=True))


def describe(device: torch.device) -> dict[str, Any]:
    """The card, for the result files."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "l2_mib": getattr(properties, "L2_cache_size", 0) / 2**20 or None,
        **nvidia_smi(),
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def tool_version(*command: str) -> str | None:
    """The last line of a tool's output with a version; None: it is not on PATH."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return next((line for line in reversed(lines) if re.search(r"\d\.\d", line)), "")


def milliseconds(device: torch.device, work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The fastest of some runs of `work`, by CUDA events on a GPU; one run warms up."""
    work()
    synchronize(device)
    best = float("inf")
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            work()
            best = min(best, (time.perf_counter() - start) * 1e3)
    return best


def set_precision(precision: str) -> None:
    """The precision to which PyTorch rounds operands of float32 products on a GPU."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def matrix_gflops(
    device: torch.device, precision: str, sizes: Sequence[int] = MATRIX_SIZES
) -> float:
    """The highest rate of torch's products of square random matrices, in 1e9 operations a
    second."""
    before = torch.get_float32_matmul_precision()
    set_precision(precision)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    rates = []
    try:
        for n in sizes:
            a, b, out = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(3))
            ms = milliseconds(device, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
            rates.append(2e-6 * n**3 / ms)
    finally:
        torch.set_float32_matmul_precision(before)
    return max(rates)


def copy_gb_s(device: torch.device, size: int) -> float:
    """Bytes read and written a second, in 1e9, by copies between two arrays of `size` in sum.

    Several copies a measurement, so that a small copy is more than its launch; the rate of an array
    that fits into a cache still contains the cost of one launch.
    """
    source = torch.ones(size // 8, device=device)
    target = torch.empty_like(source)
    copies = 10

    def work() -> None:
        for _ in range(copies):
            target.copy_(source)

    return copies * 8e-6 * len(source) / milliseconds(device, work)


def rates(device: torch.device, precision: str, state_bytes: int) -> dict[str, float]:
    """The measured limits of a GPU, under the names that host.rates has for a CPU's."""
    return {
        "peak_gflops": matrix_gflops(device, precision),
        "copy_gb_s": copy_gb_s(device, COPY_BYTES),
        "state_gb_s": copy_gb_s(device, state_bytes),
    }


def launch_us(device: torch.device, work: Callable[[], Any], count: int = 1000) -> float:
    """Microseconds of wall time for each of many launches, one after the other."""
    work()
    samples = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(count):
            work()
        synchronize(device)
        samples.append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(samples)


def node_us(device: torch.device, work: Callable[[], Any], count: int = 1000) -> float:
    """Microseconds for each of many launches of a CUDA graph, which depend on one another."""

    def many() -> None:
        for _ in range(count):
            work()

    apart(device, work)
    replay = capture(device, many)
    return milliseconds(device, replay, 5) / count * 1e3


def costs(device: torch.device, count: int) -> dict[str, float | None]:
    """Launches and nodes of a graph: torch's, and Triton's without and with early launch (PDL)."""
    from . import launches

    one = torch.zeros(1, device=device)
    found: dict[str, float | None] = {
        "torch_launch_us": launch_us(device, lambda: one.add_(1), count),
        "torch_node_us": node_us(device, lambda: one.add_(1), count),
    }
    early = launches.early(device)
    for name, pdl in (("triton", False), ("triton_pdl", True)):
        if pdl and not early:
            found |= {f"{name}_launch_us": None, f"{name}_node_us": None}
            continue
        work = launches.nothing(one, pdl)
        found[f"{name}_launch_us"] = launch_us(device, work, count)
        found[f"{name}_node_us"] = node_us(device, work, count)
    return found


def facts(device: torch.device) -> dict[str, Any]:
    """The card and what is installed."""
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": version("triton"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "nvcc": tool_version("nvcc", "--version"),
        "cmake": tool_version("cmake", "--version"),
        "compute_sanitizer": tool_version("compute-sanitizer", "--version"),
        "machine": describe(device) if device.type == "cuda" else None,
    }


def peaks(device: torch.device) -> dict[str, Any]:
    """Measures copy bandwidth, matrix rates, and the cost of launches."""
    small = device.type != "cuda"  # a rehearsal
    sizes, copied = ((64,), 1 << 20) if small else (MATRIX_SIZES, COPY_BYTES)
    precisions = ("float32", "tf32", "bfloat16")
    found = {f"matrix_gflops_{name}": matrix_gflops(device, name, sizes) for name in precisions}
    found["copy_gb_s"] = copy_gb_s(device, copied)
    return found | costs(device, 3 if small else 1000)


PARTS = {"facts": facts, "peaks": peaks}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench gpu", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, where nothing counts")
    parser.add_argument("--out", type=Path, required=True, help="append a JSON line to this file")
    options = parser.parse_args(arguments)
    if not (options.rehearse or torch.cuda.is_available()):
        parser.error("no GPU that PyTorch can use")
    device = torch.device("cpu" if options.rehearse else "cuda")
    date = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"part": options.part, "date": date} | PARTS[options.part](device)
    line |= {"rehearsal": True} if options.rehearse else {}
    text = json.dumps(line)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        file.write(text + "\n")
    return 0
