"""The device header and the emulator that runs CUDA kernels on the host.

Programs in C++ are built plainly, with AddressSanitizer and UndefinedBehaviorSanitizer, and with
ThreadSanitizer. A kernel runs in four schedules: first come first served (seed 0), last come first,
random, and fixed random priorities.

No test here can show the device's memory model beyond the declared orders of atomics (the host is
sequentially consistent, so that only ThreadSanitizer sees a missing release or acquire), stale
caches and ld.global.nc, bank conflicts, whether blocks are co-resident, any time, a jump of over
128 bytes from a tile into another one, and whether a PTX string does the same as its twin: for
that, run layout_kernels.h on a GPU first.
"""

import ctypes
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from support import PROGRAMS, ROOT
from support.host_programs import Builder, run, with_marks

pytestmark = pytest.mark.cuda_host

ALWAYS = {
    "ldmatrix_outside": "ldmatrix: byte 64 of shared memory, which has 64",
    "ldmatrix_misaligned": r"ldmatrix: the address \w+ is not aligned to 16 bytes",
    "never_written": "ok",
    "rounds_wrap": "ok",
    "cluster_rounds": "ok",
    "cluster_too_large": "a cluster must have 1 to 8 blocks that divide the grid's 9, has 9",
    "cluster_uneven": "a cluster must have 1 to 8 blocks that divide the grid's 9, has 2",
    "skip_cluster_barrier": r"""DEADLOCK in kernel 'bad' \(seed 0\): 127 threads live, none can run
  block 0 threads 0-63: cluster barrier at \S+cluster_cases.h:\d+ \(127 of 128 arrived\)
  block 1 threads 0-36: cluster barrier at \S+cluster_cases.h:\d+ \(127 of 128 arrived\)
  block 1 thread 37: returned from the kernel
  block 1 threads 38-63: cluster barrier at \S+cluster_cases.h:\d+ \(127 of 128 arrived\)
  block 2 threads 0-63: returned from the kernel""",
    "two_cluster_barriers": r"divergent cluster: cluster barrier at \S+:(\d+) here, "
    r"cluster barrier at \S+:(?!\1)\d+ in 32 other",
    "flags": "ok",
    "indices": "ok",
    "skip_barrier": r"""DEADLOCK in kernel 'bad' \(seed 0\): 63 threads live, none can run
  block 0 threads 0-63: returned from the kernel
  block 1 threads 0-36: __syncthreads at \S+behaviour.cpp:\d+ \(63 of 64 arrived\)
  block 1 thread 37: returned from the kernel
  block 1 threads 38-63: __syncthreads at \S+behaviour.cpp:\d+ \(63 of 64 arrived\)$""",
    "skip_group_barrier": r"block 1 thread 0: group barrier at .* \(value 5, waits for >= 6\)",
    "two_barriers": r"divergent block: __syncthreads at \S+:(\d+) here, "
    r"__syncthreads at \S+:(?!\1)\d+ in 32 other",
    "two_warp_operations": r"divergent warp: shuffle at \S+ here, __syncwarp at",
    "half_a_warp": r"block 0 threads 0-15: shuffle at \S+ \(16 of 32 arrived\)",
    "wide_shuffle": "shuffle: lane 0 takes from lane 32",
    "carve_too_much": "Carve: tiles take .* bytes of shared memory, the launch gave 256",
    "launch_inside": "kernel 'inner': a kernel cannot launch another",
    "odd_threads": r"a block must be \(threads, 1, 1\), .* is \(48, 1, 1\)",
    "flat": r"a block must be \(threads, 1, 1\), .* is \(32, 2, 1\)",
    "too_many_blocks": "the grid must have 1 to 132 blocks, so that all are co-resident, has 133",
}
PLAINLY = {  # each a fault or a race that a sanitizer would end the program for, or long with one
    "rounds": "ok",
    "orders": "ok",
    "policies": "ok",
    "write_past_end": "thread 5: signal 11: 128 bytes past the end of shared memory of block 0",
    "write_before": "a store to byte -1 of shared memory of block 0, which has 256",
    "write_far_before": "signal 11: 4096 bytes before shared memory of block 0",
    "write_null": r"signal 11: address \(nil\)",
    "overflow": "signal 11: stack overflow",
}
NEEDED = {"plain": ALWAYS | PLAINLY, "address": ALWAYS, "thread": ALWAYS}
VARIANTS = list(NEEDED)
NEEDED["ucontext"] = NEEDED["plain"]  # how fibers switch on processors but x86-64

WRONG = r"seed \d: [1-9]\d* wrong"
RACE = "WARNING: ThreadSanitizer: data race"
# each variant's message for a fault: plainly in one of four schedules, a sanitizer in the first
FAULTS = {
    "MISSING_BARRIER_AFTER_COPY": {"plain": WRONG, "thread": RACE},
    "MISSING_BARRIER_BEFORE_REFILL": {"plain": WRONG, "thread": RACE},
    "MISSING_BARRIER_AFTER_STORE": {"plain": WRONG, "thread": RACE},
    "MISSING_WARP_BARRIER": {"plain": WRONG, "thread": RACE},
    "MISSING_GROUP_BARRIER": {"plain": WRONG, "thread": RACE},
    "MISSING_GROUP_BARRIER_AT_END": {"plain": WRONG, "thread": RACE},
    "RELAXED_RELEASE": {"thread": RACE},
    "RELAXED_ACQUIRE": {"thread": RACE},
    "WRONG_FRAGMENT": {"plain": WRONG},
    "MISSING_TRANSPOSE": {"plain": WRONG},
    "WRONG_ACCUMULATOR": {"plain": WRONG},
    "SHARED_OVERRUN": {
        "plain": "past the end of shared memory",
        "address": "buffer-overflow|poison",
    },
    "TILE_OVERRUN": {"address": "AddressSanitizer: use-after-poison"},
    "GLOBAL_OVERRUN": {"address": "AddressSanitizer: heap-buffer-overflow"},
    "BARRIER_SKIPPED": {"plain": "DEADLOCK in kernel 'relay'"},
    "GROUP_BARRIER_SKIPPED": {"plain": r"group barrier at .* \(value 17, waits for >= 18\)"},
    "DIVERGENT_BARRIER": {"plain": "divergent block: __syncthreads"},
}
CLUSTER_FAULTS = {  # the same kernel, whose blocks are a cluster
    "MISSING_GROUP_BARRIER": {"plain": WRONG, "thread": RACE},
    "MISSING_GROUP_BARRIER_AT_END": {"plain": WRONG, "thread": RACE},
    "GROUP_BARRIER_SKIPPED": {"plain": r"DEADLOCK.*cluster barrier at \S+ \(128 of 192 arrived\)"},
    "NO_CLUSTER": {"plain": WRONG, "thread": RACE},
}


@pytest.mark.parametrize("variant", with_marks((v,) for v in VARIANTS))
def test_primitives_match_plain_loops(builder: Builder, variant: str) -> None:
    said = run(builder.build("layouts", [PROGRAMS / "layouts.cpp"], variant))
    assert re.fullmatch(r"0 of \d{7} wrong\n", said), said


@pytest.mark.parametrize("variant", with_marks((v,) for v in NEEDED))
def test_emulator_says_what_a_kernel_did(builder: Builder, variant: str) -> None:
    program = builder.build("behaviour", [PROGRAMS / "behaviour.cpp"], variant)
    said = run(program, *NEEDED[variant])
    texts = dict(re.findall(r"^\[(\w+)\] (.*?)(?=^\[|\Z)", said, re.DOTALL | re.MULTILINE))
    assert list(texts) == list(NEEDED[variant])
    for name, pattern in NEEDED[variant].items():
        text = texts[name].removesuffix("\n")
        match = re.fullmatch if pattern == "ok" else re.search
        assert match(pattern, text), f"{name}: {text}"


def test_library_gives_errors_to_python(builder: Builder) -> None:
    """A kernel's fault is an error in the process of Python and PyTorch, which continues."""
    path = builder.build("behaviour", [PROGRAMS / "behaviour.cpp"], "plain", shared=True)
    library = ctypes.CDLL(str(path))
    library.run_case.restype = ctypes.c_char_p
    for name in ("write_null", "overflow", "skip_barrier", "flags"):
        text = library.run_case(name.encode()).decode()
        assert re.search(NEEDED["plain"][name], text), f"{name}: {text}"
        assert torch.ones(1000, 1000).sum() == 1e6
    assert library.run_case(b"no such case") is None


def test_launches_of_two_threads_take_turns(builder: Builder) -> None:
    path = builder.build("behaviour", [PROGRAMS / "behaviour.cpp"], "plain", shared=True)
    library = ctypes.CDLL(str(path))
    library.run_case.restype = ctypes.c_char_p
    names = ["rounds_wrap", "skip_barrier"] * 5
    with ThreadPoolExecutor(2) as threads:
        texts = list(threads.map(lambda name: library.run_case(name.encode()).decode(), names))
    for name, text in zip(names, texts, strict=True):
        assert re.search(NEEDED["plain"][name], text), f"{name}: {text}"


@pytest.mark.parametrize("blocks", ["group", "cluster"])
@pytest.mark.parametrize("variant", with_marks((v,) for v in VARIANTS))
def test_kernel_without_a_fault(builder: Builder, variant: str, blocks: str) -> None:
    said = run(build(builder, variant), "none", blocks, *"01234567")
    assert said == "".join(f"seed {seed}: 0 wrong\n" for seed in range(8))


@pytest.mark.parametrize(
    "fault, variant",
    with_marks((fault, variant) for fault, said in FAULTS.items() for variant in said),
)
def test_fault_is_caught(builder: Builder, fault: str, variant: str) -> None:
    caught(builder, variant, fault, "group", FAULTS[fault][variant])


@pytest.mark.parametrize(
    "fault, variant",
    with_marks((fault, variant) for fault, said in CLUSTER_FAULTS.items() for variant in said),
)
def test_fault_in_a_cluster_is_caught(builder: Builder, fault: str, variant: str) -> None:
    caught(builder, variant, fault, "cluster", CLUSTER_FAULTS[fault][variant])


def build(builder: Builder, variant: str) -> Path:
    return builder.build("faults", [PROGRAMS / "faults.cpp"], variant)


def caught(builder: Builder, variant: str, fault: str, blocks: str, pattern: str) -> None:
    seeds, status = ("0123", 0) if variant == "plain" else ("0", None)
    said = run(build(builder, variant), fault, blocks, *seeds, status=status)
    assert re.search(pattern, said, re.DOTALL), said


def test_every_fault_is_tried() -> None:
    planted = re.findall(r'\bhas\("(\w+)"\)', (PROGRAMS / "faults.cpp").read_text())
    assert set(planted) == {*FAULTS, *CLUSTER_FAULTS}


def test_header_compiles_for_devices(tmp_path: Path) -> None:
    """Compiles, which is all that is known of the device's branch without a GPU."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    strict = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror"]
    strict += ["-Xptxas", "-warn-spills,-Werror"]
    common = [
        nvcc,
        "-std=c++20",
        "-I",
        str(ROOT / "csrc"),
        *strict,
        str(PROGRAMS / "touch.cu"),
        "-o",
    ]
    codes = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90, 100)]
    run(*common, tmp_path / "touch.o", "-c", *codes, "-gencode=arch=compute_100,code=compute_100")
    run(*common, tmp_path / "touch.ptx", "-ptx", "-arch=compute_80")
    made = (tmp_path / "touch.ptx").read_text()
    assert "barrier.cluster" not in made
    run(*common, tmp_path / "touch90.ptx", "-ptx", "-arch=compute_90")
    made += (tmp_path / "touch90.ptx").read_text()
    for instruction in (
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        *(f"ldmatrix.sync.aligned.m8n8.x{n}{t}.shared.b16" for n in (2, 4) for t in ("", ".trans")),
        "cvt.rn.bf16.f32",
        "cvt.rn.bf16x2.f32",
        "cvt.rna.tf32.f32",
        "barrier.cluster.arrive.release",
        "barrier.cluster.wait.acquire",
        "red.release.gpu.global.add.u32",
        "ld.acquire.gpu.global.u32",
        "fma.rn.f32",
        "sqrt.rn.f32",
        "div.rn.f32",
        "mul.hi.u32",
        "bar.warp.sync",
    ):
        assert re.search(rf"\b{re.escape(instruction)}[\s;]", made), instruction


# kernels leave these to dev.h; else its twin on the host, or the emulator's watch, would be missed
RAW = r"\b(asm|volatile|__CUDACC__|__CUDA_ARCH__|__shared__|__ldg|(__sync|__shfl|atomic[A-Z])\w*)\b"


def test_kernels_leave_the_device_to_its_headers() -> None:
    assert re.search(RAW, "while (*static_cast<volatile int*>(flag) == 0) {}")
    assert re.search(RAW, "__syncthreads();") and not re.search(RAW, "dev::sync_block();")
    folder = ROOT / "csrc" / "cuda"
    if not folder.exists():
        pytest.skip("the sources are not here")
    for path in folder.iterdir():
        if path.name.startswith("dev") or path.suffix not in (".cuh", ".cu"):
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(RAW, line.split("//")[0]), f"{path.name}:{number}: {line}"
