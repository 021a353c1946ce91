"""No sequence of public calls and assignments ends the process, or leaves half a change."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("surface.py")
TAIL = 60  # lines: a sequence has 15 steps of two


def test_no_sequence_ends_the_process() -> None:
    examples = os.environ.get("NOPROP_FUZZ_EXAMPLES", "100")  # fewer under sanitizers
    command = [sys.executable, "-X", "faulthandler", str(PROGRAM), "--examples", examples]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    said = "\n".join([*done.stdout.splitlines()[-TAIL:], *done.stderr.splitlines()[-TAIL:]])
    assert done.returncode == 0, f"exit status {done.returncode} after\n{said}"
    steps = done.stdout.splitlines()
    assert steps.count("    done") > len(steps) // 10  # not everything is refused
