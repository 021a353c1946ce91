"""Products and updates of the persistent kernel on the host, in C++ against loops in float64.

AddressSanitizer sees what is read or written outside, ThreadSanitizer a barrier that is missing,
and the schedules a result that depends on who comes first.
"""

from pathlib import Path

import pytest

from support import HOST, PROGRAMS, ROOT
from support.host_programs import Builder, run

pytestmark = pytest.mark.cuda_host

CHECKS = ("products", "updates", "refusals")


def build(builder: Builder, program: str, variant: str) -> Path:
    sources = [
        PROGRAMS / f"{program}.cpp",
        HOST / "runtime_host.cpp",
        ROOT / "csrc/cuda/launch.cpp",
    ]
    return builder.build(program, sources, variant)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("program", CHECKS)
def test_against_loops(builder, program, seed, monkeypatch):
    monkeypatch.setenv("NOPROP_HOST_SEED", str(seed))
    assert run(build(builder, program, "plain")).endswith(" 0 failures\n")


@pytest.mark.sanitizers
@pytest.mark.parametrize("variant", ["address", "thread"])
@pytest.mark.parametrize("program", CHECKS[:2])
def test_with_sanitizer(builder, program, variant):
    assert run(build(builder, program, variant), "quick").endswith(" 0 failures\n")
