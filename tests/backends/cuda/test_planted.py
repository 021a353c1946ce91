"""Faults planted in the persistent kernel itself: each must be noticed, and without one nothing is.

Recorded launches (test_replay.py) run on a copy of the kernel that has all of the faults and does
one of them. A fault is noticed by wrong bytes in one of the four schedules, by what the emulator
says, or by a sanitizer.

These tests have limits. A missing release or acquire changes no byte on the host, whose processor
orders stores, so that ThreadSanitizer alone reports it, by the orders that C++ gives; the device's
are PTX that no test here runs. Nor a barrier too few where the tiles of a stage are too few to use
its scratch twice.
"""

import re
from pathlib import Path

import pytest

from support import HOST, PROGRAMS
from support.host_programs import Builder, run, with_marks
from support.planted import Fault, plant

pytestmark = pytest.mark.cuda_host

WRONG = r"seed \d: [1-9]\d* wrong"
RACE = "WARNING: ThreadSanitizer: data race"
OVERRUN = "AddressSanitizer: heap-buffer-overflow"
BETWEEN_TILES = "AddressSanitizer: use-after-poison"
DEADLOCK = r"DEADLOCK in kernel 'train' (.|\n)*"
BARRIER = "dev::group_barrier(p.barriers + g, p.blocks, epoch);"
AFTER_STORE = "b_tile.store(b_now, thread);\n        dev::sync_block();"
PUT_BACK = "if (held >= 0) move_resident<P, false>(p, held, rank, resident);"
LAST = "    }\n    dev::sync_block();\n  }\n\n  // one step from k on"

# each build's message for a fault
FAULTS: dict[str, tuple[Fault, dict[str, str]]] = {
    "no group barrier": (
        Fault("run.cuh", BARRIER, "dev::sync_block();"),
        {"plain": WRONG, "thread": RACE},
    ),
    "no group barrier behind the norm": (
        Fault("run.cuh", BARRIER, f"if (s.kind == Kind::kNorm) dev::sync_block(); else {BARRIER}"),
        {"plain": WRONG, "thread": RACE},
    ),
    "one thread block skips a group barrier": (
        Fault("run.cuh", BARRIER, f"if (rank == 0 || k == 0 || stage != 3) {BARRIER}"),
        {"plain": DEADLOCK + "group barrier at"},
    ),
    "no release": (
        Fault(
            "dev.h",
            "__atomic_fetch_add(p, value, __ATOMIC_RELEASE);",
            "__atomic_fetch_add(p, value, __ATOMIC_RELAXED);",
        ),
        {"thread": RACE},
    ),
    "no acquire": (
        Fault(
            "dev.h",
            "return __atomic_load_n(p, __ATOMIC_ACQUIRE);",
            "return __atomic_load_n(p, __ATOMIC_RELAXED);",
        ),
        {"thread": RACE},
    ),
    "no barrier before an operand tile is multiplied": (
        Fault("tiles.cuh", AFTER_STORE, "b_tile.store(b_now, thread);"),
        {"plain": WRONG, "thread": RACE},
    ),
    "no barrier before an operand tile is refilled": (
        Fault("tiles.cuh", "if (kBuffers == 1 && start > 0) dev::sync_block();", ""),
        {"plain": WRONG, "thread": RACE},
    ),
    "no barrier behind a product": (
        Fault("tiles.cuh", "dev::sync_block();", "", around=LAST),
        {"plain": WRONG, "thread": RACE},
    ),
    "half of a thread block skips a barrier": (
        Fault(
            "norm.cuh",
            "dev::sync_block();",
            "if (thread_index() < 128) dev::sync_block();",
            around="dev::sync_block();  // also: s_sums may be written again",
        ),
        {"plain": r"DEADLOCK in kernel 'train'|divergent block: __syncthreads at"},
    ),
    "no barrier before the norm's sums are read": (
        Fault(
            "norm.cuh",
            "dev::sync_block();",
            "",
            around="s_sums[thread] = sum;\n    dev::sync_block();",
        ),
        {"plain": WRONG, "thread": RACE},
    ),
    "no barrier before the loss is summed": (
        Fault(
            "loss.cuh",
            "dev::sync_block();",
            "",
            around="s_chunks[warp_index()] = sum;\n    dev::sync_block();",
        ),
        {"thread": RACE},
    ),
    "a wrong column of a tf32 fragment": (
        Fault("tiles.cuh", "first_column + n * 8 + g", "first_column + n * 8 + (g ^ 1)"),
        {"plain": WRONG},
    ),
    "a bfloat16 fragment with two quarters exchanged": (
        Fault(
            "tiles.cuh",
            "load<TileA>(left[m], a, first_row + m * 16, k, low, odd, high);",
            "load<TileA>(left[m], a, first_row + m * 16, k, low, high, odd);",
        ),
        {"plain": WRONG},
    ),
    "a tile's rows too far apart in shared memory": (
        Fault("operand_tile.cuh", "place / kAcross * kStride", "place / kAcross * (kStride + 4)"),
        {"plain": WRONG, "address": BETWEEN_TILES},
    ),
    "a read past a row's end": (
        Fault("operand_tile.cuh", "e < count ? first[e] : 0.0f", "first[e]"),
        {"address": OVERRUN},
    ),
    "a write past a matrix's rows": (
        Fault(
            "tiles.cuh",
            "row(e) < to.rows && column(e) < to.columns",
            "column(e) < to.columns",
            around="const bool inside = row(e) < to.rows && column(e) < to.columns;\n"
            "      if (inside) to.first",
        ),
        {"address": OVERRUN},
    ),
    "rows of the data set one too far": (
        Fault("gather.cuh", "data + source * s.F", "data + (source + 1) * s.F"),
        {"plain": WRONG, "address": OVERRUN},
    ),
    "moments that stay behind in shared memory": (
        Fault("run.cuh", PUT_BACK, "", around=f"{PUT_BACK}\n  }}\n}}"),
        {"plain": WRONG},
    ),
}
NUMBER = {name: number for number, name in enumerate(FAULTS, 1)}
VARIANTS = ("plain", "address", "thread")


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    return plant(folder, [fault for fault, _ in FAULTS.values()])


def say(builder: Builder, copy: Path, variant: str, number: int, *rest: str | Path) -> str:
    sources = [
        PROGRAMS / "replay.cpp",
        HOST / "runtime_host.cpp",
        copy / "cuda/launch.cpp",
    ]
    program = builder.build("planted", sources, variant, csrc=copy)
    failed = None if number and variant != "plain" else 0
    return run(program, str(number), *rest, status=failed)


@pytest.mark.parametrize("variant", with_marks((v,) for v in VARIANTS))
def test_without_a_fault(builder, copy, recordings, variant: str) -> None:
    """Whole launches, every stage in them, also under sanitizers.

    Only wrong bytes show an overrun from one buffer of the workspace into the next, or from a slice
    into its neighbour, since both are parts of one allocation.
    """
    seeds = "0123" if variant == "plain" else "0"
    said = say(builder, copy, variant, 0, seeds, *recordings)
    assert said == "".join(f"seed {seed}: 0 wrong\n" for seed in seeds) * len(recordings)


CASES = [(name, variant) for name, (_, says) in FAULTS.items() for variant in says]


@pytest.mark.parametrize("name, variant", with_marks(CASES))
def test_a_fault_is_noticed(
    builder,
    copy,
    recordings,
    monkeypatch,
    name: str,
    variant: str,
) -> None:
    monkeypatch.setenv("TSAN_OPTIONS", "halt_on_error=1")
    seeds = "0123" if variant == "plain" else "0"
    said = say(builder, copy, variant, NUMBER[name], seeds, *recordings[:3])
    assert re.search(FAULTS[name][1][variant], said), said[:3000]
