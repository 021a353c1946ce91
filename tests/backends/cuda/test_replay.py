"""Whole launches of the persistent kernel, every stage in them, run again from recordings.

The backend's launches are recorded with the memory that they work in, and run again by a program
that must leave the same bytes as the module. test_planted.py does so under sanitizers.
"""

import pytest

from support import HOST, PROGRAMS, ROOT
from support.host_programs import run

pytestmark = pytest.mark.cuda_host

SOURCES = [
    PROGRAMS / "replay.cpp",
    HOST / "runtime_host.cpp",
    ROOT / "csrc/cuda/launch.cpp",
]


def test_every_byte_is_the_module_s(builder, recordings) -> None:
    said = run(builder.build("replay", SOURCES, "plain"), "0", "0123", *recordings)
    assert said == "".join(f"seed {seed}: 0 wrong\n" for seed in "0123") * len(recordings)
