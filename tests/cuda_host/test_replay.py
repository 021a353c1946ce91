"""Whole launches of the persistent kernel, every stage in them, under sanitizers.

What the backend launches is recorded, with the memory that it works in, and run again by a program
that is built with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer; both
must leave the bytes that the plain module left.

What the host cannot show is in test_emulator.py; and an overrun from one buffer of the workspace
into the next, or from a slice into its neighbour, is inside of one allocation: only wrong bytes
tell of it.
"""

import pytest

from cuda_host_for_tests import HERE, ROOT, run, with_marks

pytestmark = pytest.mark.cuda_host

SOURCES = [HERE / "replay.cpp", HERE / "runtime_host.cpp", ROOT / "csrc/cuda/launch.cpp"]


@pytest.mark.parametrize("variant", with_marks((v,) for v in ("plain", "address", "thread")))
def test_every_byte_is_the_module_s(builder, recordings, variant: str) -> None:
    seeds = "0123" if variant == "plain" else "02"
    said = run(builder.build("replay", SOURCES, variant), "0", seeds, *recordings)
    assert said == "".join(f"seed {seed}: 0 wrong\n" for seed in seeds) * len(recordings)
