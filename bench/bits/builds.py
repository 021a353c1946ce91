"""Builds a commit's sources in a folder of their own, and runs programs there."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
THREADS = "2"


def git(*arguments: str) -> bytes:
    """Runs git, and returns its output."""
    identity = ("-c", "user.name=bits", "-c", "user.email=bits@localhost")  # of a temporary commit
    done = subprocess.run(["git", *identity, *arguments], cwd=ROOT, capture_output=True)
    if done.returncode:
        raise SystemExit(f"bits: git {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return done.stdout


def resolve(commit: str) -> str:
    """The commit's full name."""
    return git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()


def working_tree() -> str:
    """A commit of the tracked files as they are now; no branch refers to it. Nothing else
    changes."""
    return git("stash", "create").decode().strip() or resolve("HEAD")


def unpack(commit: str, folder: Path) -> None:
    """Writes the commit's files into a folder; the repository does not record the folder."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", commit))) as archive:
        archive.extractall(folder, filter="data")


def environment(tree: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment for both commits: their own sources, fixed threads, no outside settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NOPROP_", "TRITON_", "OMP_", "MKL_", "PYTEST_"))
    }
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'python'}",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": THREADS,
        "OMP_WAIT_POLICY": "passive",
        "MKL_CBWR": "AUTO",  # else sums of the reference may depend on the operands' alignment
        "MKL_NUM_THREADS": THREADS,
        **extra,
    }


def side_by_side(
    command: Sequence[str], trees: Sequence[Path], extra: Sequence[Mapping[str, str]]
) -> list[tuple[int, str]]:
    """Runs the command in both trees at the same time: its status and its output.

    Whatever ends this program also ends them and their children.
    """
    started: list[subprocess.Popen[bytes]] = []
    logs = [tree.parent / f"{tree.name}.log" for tree in trees]
    try:
        for tree, log, more in zip(trees, logs, extra, strict=True):
            with log.open("wb") as file:
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=tree,
                        env=environment(tree, more),
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        statuses = [process.wait() for process in started]
    finally:
        end(started)
    return [
        (status, log.read_text(errors="replace"))
        for status, log in zip(statuses, logs, strict=True)
    ]


def end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends processes that still run, with their children, before their folder is removed."""
    left = [process for process in started if process.poll() is None]
    for process in left:
        os.killpg(process.pid, signal.SIGTERM)  # a build tool passes it on to its compilers
    for process in left:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def build(trees: Sequence[Path]) -> None:
    """Builds the CPU extension of each tree in place."""
    import pybind11

    cmake = shutil.which("cmake", path=environment(ROOT, {})["PATH"])
    if cmake is None:
        raise SystemExit("bits: cmake is not on PATH, which builds the CPU extension")
    options = [
        "-DNOPROP_CUDA=OFF",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    for command in (
        [cmake, "-S", ".", "-B", "build-bits", *options],
        [cmake, "--build", "build-bits", "-j", str(len(os.sched_getaffinity(0)))],
        [cmake, "--install", "build-bits", "--prefix", "."],
    ):
        for tree, (status, text) in zip(
            trees, side_by_side(command, trees, [{}] * len(trees)), strict=True
        ):
            if status:
                raise SystemExit(f"bits: {tree.name}: {' '.join(command)}:\n{text[-5000:]}")
