"""Builds CUDA kernels with the host's compiler, as a program or a shared library."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from support import HOST, ROOT

# no contraction, for not every host has a fused multiply-add
FLAGS = ["-std=c++20", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
FLAGS += ["-Wno-unknown-pragmas"]  # unroll is for nvcc
SOURCES = ROOT / "csrc"
VARIANTS = {
    "plain": ["-O1"],
    "address": [
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
    ],
    "thread": ["-O1", "-fsanitize=thread"],
}
# ThreadSanitizer must not see the scheduler, which reports its fibers to it instead
EMULATOR = VARIANTS | {
    "plain": ["-O2"],
    "thread": ["-O1", "-DHC_TSAN"],
    "ucontext": ["-O2", "-DHC_UCONTEXT"],
}
VARIANTS["ucontext"] = VARIANTS["plain"]


def compiler_gap() -> str | None:
    """Why kernels cannot be built for the host here; None if they can."""
    if not (ROOT / "csrc").exists():
        return "the sources are not here"
    return None if shutil.which("g++") else "g++ is not on PATH"


def fixed_addresses() -> list[str]:
    """A prefix for where addresses are more random than GCC 12's ThreadSanitizer can bear."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    return ["setarch", "-R"] if bits.exists() and int(bits.read_text()) > 28 else []


def run(*command: str | Path, status: int | None = 0, timeout: float = 300) -> str:
    """The command's output; it must end with `status`, or with any but 0 where that is None."""
    done = subprocess.run(
        [*fixed_addresses(), *(str(part) for part in command)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    wrong = done.returncode == 0 if status is None else done.returncode != status
    assert not wrong, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


class Builder:
    """Compiles into a folder; each object and program once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def emulator(self, variant: str) -> list[Path]:
        """The emulator's objects."""
        return [
            self._compile(source, EMULATOR[variant], f"emulator-{variant}")
            for source in sorted(HOST.glob("host_*.cpp"))
        ]

    def build(
        self,
        name: str,
        sources: Sequence[Path],
        variant: str,
        shared: bool = False,
        csrc: Path = SOURCES,
    ) -> Path:
        """The program, or shared library, of these sources, csrc's headers and the emulator."""
        out = self.folder / f"{name}-{variant}{'.so' if shared else ''}"
        if not out.exists():
            where = variant if csrc == SOURCES else f"{name}-{variant}"
            objects = [self._compile(source, VARIANTS[variant], where, csrc) for source in sources]
            link = [*VARIANTS[variant], *(["-shared"] if shared else [])]
            run("g++", *link, *objects, *self.emulator(variant), "-lpthread", "-o", out)
        return out

    def _compile(
        self, source: Path, flags: Sequence[str], where: str, csrc: Path = SOURCES
    ) -> Path:
        out = self.folder / "objects" / where / f"{source.stem}.o"
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            run("g++", *FLAGS, *flags, "-I", csrc, "-I", HOST, "-c", source, "-o", out)
        return out


def with_marks(cases: Iterable[tuple[str, ...]]) -> list:
    """Parameters, the variant last, of a test; builds with a sanitizer are marked."""
    return [
        pytest.param(*case, marks=[pytest.mark.sanitizers] * (case[-1] in ("address", "thread")))
        for case in cases
    ]
