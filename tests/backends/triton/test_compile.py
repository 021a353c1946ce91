"""Every kernel compiled ahead of time for GPUs that are not here: instructions, no spills."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from noprop_kernels.backends.triton import launch_options

pytestmark = [pytest.mark.triton, pytest.mark.ahead_of_time]

PRODUCTS = ("dense_kernel", "result_gradient_kernel", "update_kernel")
MATRIX = {
    "sm_80": {"mma.sync"},
    "sm_90": {"wgmma", "mma.sync"},
    "sm_100": {"tcgen05.mma", "mma.sync"},
    "gfx942": {"v_mfma"},
}
SPILLED = 32  # bytes a thread at most
SHARED = {"gfx942": 64 << 10}  # bytes; NVIDIA's smallest since sm_80 have 99 KiB


def outcome(*arguments: str) -> list[dict]:
    """The lines that the program printed."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "support.ahead_of_time", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target, precision", [("sm_80", "tf32"), ("sm_90", "bfloat16")])
def test_warps_of_tuning_keep_the_matrix_instruction(kernels, target: str, precision: str) -> None:
    static = {"sm_80": ["mma.sync"], "sm_90": ["wgmma"]}[target]
    for kernel in ("dense_kernel", "result_gradient_kernel"):
        for warps in launch_options.WARPS[kernel]:
            products = [f for f in outcome(target, precision, str(warps)) if f["kernel"] == kernel]
            assert products and all(fact["matrix"] == static for fact in products), products


@pytest.mark.parametrize(
    "target, precision",
    [
        ("sm_80", "tf32"),
        ("sm_90", "float32"),
        ("sm_90", "bfloat16"),
        ("sm_100", "tf32"),
        ("gfx942", "float32"),
        ("gfx942", "bfloat16"),
    ],
)
def test_kernels_compile(kernels, target: str, precision: str, capsys) -> None:
    found = outcome(target, precision)
    # other numbers of slices and rows need no other code, several steps that of reading draws and
    # of losses that are not aligned
    again = {fact["kernel"] for fact in found if "again" in fact}
    assert again <= {"add_noise_kernel", "loss_kernel"}
    found = [fact for fact in found if "again" not in fact]
    folder = Path(kernels.__file__).parent / "kernels"
    every = {
        name
        for file in folder.glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
    }
    assert {fact["kernel"] for fact in found} == every
    with capsys.disabled():
        print(f"\n{target}, {precision}: kernel, registers, shared memory, spilled bytes")
        for fact in found:
            print("  {kernel:28}{registers:5}{shared:8}{spilled:5}".format(**fact))
    for fact in found:
        assert fact["spilled"] <= SPILLED, fact
        assert fact["shared"] <= SHARED.get(target, 99 << 10), fact
        assert fact["waits"] == (target in ("sm_90", "sm_100")), fact
        # float32 products are multiply-adds on NVIDIA
        if fact["kernel"] in PRODUCTS and (precision != "float32" or target == "gfx942"):
            allowed = MATRIX[target]
            assert any(name.startswith(tuple(allowed)) for name in fact["matrix"]), fact
