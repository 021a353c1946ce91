"""Helpers of the tests, and where the sources are that they read and build."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "tests/backends/cuda"
HOST = CUDA / "emulator"  # CUDA on the host, and the kernels built with it
PROGRAMS = CUDA / "programs"
