"""What a GPU has to show, in parts, under ten minutes: `bash bench/gpu_check.sh OUT [PART ...]`.

Each part is a command with a time limit; its result is a line of OUT/parts.jsonl as soon as it is
known, and what it prints is appended to OUT/log.txt. A part that fails stops none of the next. What
no time was left for is told as "cut", what cannot be tried here as "skipped", each with its reason.
Exit status 1 if a part failed.

    NOPROP_REHEARSE=1  takes the same way on the CPU, with shapes that measure nothing
    NOPROP_SECONDS     the time for everything, 570 unless given
    NOPROP_DATA        MNIST's files, for the last part
    NOPROP_COMMIT      what the result lines call the commit, where the sources have no .git

This file needs nothing but Python, since the package is not built when it starts. The package is
built from a copy of the sources and installed into a folder that is removed in the end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 570.0
SKIPPED = 77  # exit status of a part that cannot be tried here; its last line says why
SOURCES = ("csrc", "noprop_kernels", "python", "pyproject.toml", "setup.py", "CMakeLists.txt")
BESIDE = ("MANIFEST.in", "README.md", "LICENSE")  # what the build reads too
CHECKS = ("bench", "tests", "pyproject.toml", "README.md")  # that run away from the sources
OURS = ("ours", "ours_no_pdl", "ours_train_step", "ours_by_hand")
BEST = ("stacked_shared_graphed", "step_compiled", "step_compiled_graphed")
LARGE = ("ours", "stacked_shared", "step_compiled", "step_compiled_triton", "flex_gemm")


Line = dict[str, object]


@dataclass(frozen=True)
class Part:
    """One command.

    Args:
        name: as in the results.
        seconds: its limit.
        command: what runs, in the folder of the checks.
        env: variables beside the caller's.
        gap: a reason not to try it, or "".
    """

    name: str
    seconds: float
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    gap: str = ""


@dataclass(frozen=True)
class Place:
    """Where a check works and writes.

    Args:
        out: the folder of results.
        work: a folder of its own, removed in the end.
        rehearse: on the CPU, measuring nothing.
        commit: of the sources.
    """

    out: Path
    work: Path
    rehearse: bool
    commit: str = ""

    @property
    def site(self) -> Path:
        return self.work / "site"

    @property
    def checks(self) -> Path:
        return self.work / "checks"

    def lay(self) -> None:
        """Copies the sources to build from, and the checks, where they shadow nothing."""
        skip = shutil.ignore_patterns("__pycache__", "*.so", "results", "build", "*.egg-info")
        for folder, names in (("source", (*SOURCES, *BESIDE)), ("checks", CHECKS)):
            (self.work / folder).mkdir()
            for name in names:
                source, target = ROOT / name, self.work / folder / name
                if source.is_dir():
                    shutil.copytree(source, target, ignore=skip)
                else:
                    shutil.copy(source, target)


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-u", *arguments]


def bench(place: Place, name: str, shapes: Sequence[str], precision: str, *more: str) -> list[str]:
    """A benchmark's command; a rehearsal has a shape of its own and few contenders."""
    out = ["--out", str(place.out / "gpu.jsonl")]
    if place.rehearse:
        names = ("ours", "stacked_shared", "stacked_shared_graphed")
        more = ("--rounds", "3", "--contender", *names)
        return python("-m", "bench.run", "--device", "rehearsal", *more, *out)
    common = ["--device", "cuda", "--precision", precision, "--shape", *shapes]
    return python("-m", "bench.run", *common, *more, *out)


def benchmarks(place: Place) -> list[Part]:
    """The headline first: every contender on `small`; then the best of them on all shapes."""
    every = ("--seconds", "90")
    core = ("--seconds", "16", "--contender", *OURS, *BEST)
    large = ("--seconds", "25", "--rounds", "5", "--contender", *LARGE)
    rows: list[tuple[str, float, Sequence[str], str, Sequence[str]]] = [
        ("bench small tf32", 120, ["small"], "tf32", every),
        ("bench tf32", 75, ["tiny", "stream", "wide"], "tf32", core),
        ("bench large tf32", 45, ["large"], "tf32", large),
        ("bench bfloat16", 50, ["small", "tiny"], "bfloat16", core),
        ("bench float32", 50, ["small", "tiny"], "float32", core),
        ("bench large bfloat16", 40, ["large"], "bfloat16", large),
        ("bench huge bfloat16", 60, ["huge"], "bfloat16", (*large, "--K", "1", "5")),
        ("bench more bfloat16", 40, ["stream", "wide"], "bfloat16", core),
        ("bench more float32", 40, ["stream", "wide"], "float32", core),
        ("bench large float32", 60, ["large"], "float32", (*large, "--K", "1", "5")),
    ]
    if place.rehearse:
        rows = [("bench small tf32", 200, [], "tf32", ())]
    return [
        Part(name, limit, bench(place, name, shapes, precision, *more))
        for name, limit, shapes, precision, more in rows
    ]


def sanitizers(place: Place) -> list[Part]:
    small = python("-m", "bench.sanitize", *(["--rehearse"] if place.rehearse else []))
    out = ["--out", str(place.out / "sanitizers.jsonl")]
    few = ["--precision", "tf32"]
    gap = "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not on PATH"
    gap = "a rehearsal has no GPU" if place.rehearse else gap
    parts = [
        Part("small shapes", 40, [*small, *(few if place.rehearse else []), *out]),
        Part("consan", 120, [*small, "--consan", *out]),
    ]
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=99", *small, *few]
        parts.append(Part(tool, 45, command, gap=gap))
    return parts


def mnist(place: Place) -> Part:
    """Trained end to end by the command that every user has, into a folder that is not kept."""
    device = "cpu" if place.rehearse else "cuda"
    data, epochs = ("digits", "2") if place.rehearse else ("mnist", "10")
    gap = "" if place.rehearse or os.environ.get("NOPROP_DATA") else "NOPROP_DATA is not set"
    options = ["--data", data, "--preset", "mlp", "--epochs", epochs, "--seed", "0"]
    options += ["--device", device, "--json", "--out", str(place.work / "run")]
    # the rehearsal's interpreter would take hours
    env = {"TRITON_INTERPRET": "0"} if place.rehearse else {}
    return Part("mnist", 60, python("-m", "noprop", "train", *options), env, gap=gap)


def every_part(place: Place) -> list[Part]:
    rehearse = ["--rehearse"] if place.rehearse else []
    device = ["--out", str(place.out / "device.jsonl")]
    pip = ("-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index")
    target = ("--target", str(place.site), str(place.work / "source"))
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "-o"]
    # another torch than the one developed with has other warnings
    tests += ["filterwarnings=default", "tests/gpu"]
    memory = ["--precision", "tf32", "--out", str(place.out / "gpu_memory.jsonl")]
    names = ["--contender", "ours_by_1", "stacked_shared"] if place.rehearse else []
    return [
        Part("facts", 30, python("-m", "bench.gpu", "facts", *rehearse, *device)),
        Part("build", 150, python(*pip, *target)),
        Part("backends", 30, python("-m", "noprop_kernels")),
        Part("tests", 150, python(*tests)),
        Part("peaks", 40, python("-m", "bench.gpu", "peaks", *rehearse, *device)),
        *benchmarks(place)[:2],
        Part("memory", 45, python("-m", "bench.gpu_memory", *rehearse, *memory, *names)),
        *sanitizers(place)[:2],
        mnist(place),
        *sanitizers(place)[2:],
        *benchmarks(place)[2:],
    ]


def run_part(part: Part, place: Place, left: float, echo: Callable[[str], None]) -> Line:
    """Runs a part within its limit and what is left; its result line."""
    line: Line = {"part": part.name, "limit_s": part.seconds}
    if part.gap:
        return line | {"status": "skipped", "reason": part.gap}
    limit = min(part.seconds, left)
    if limit < min(5, part.seconds):
        return line | {"status": "cut", "reason": f"{max(left, 0):.0f} s were left"}
    begin = time.perf_counter()
    status, output = output_of(part, place, limit)
    seconds = time.perf_counter() - begin
    for text in output.splitlines():
        echo(text)
    said = output.strip().splitlines()
    line |= {"seconds": round(seconds, 1), "rc": status}
    if status == 0:
        return line | {"status": "passed"}
    if status == SKIPPED:
        return line | {"status": "skipped", "reason": said[-1] if said else ""}
    if status is None:
        reason = f"not done in {limit:.0f} s; results until then are kept"
        # a limit of its own is a failure, the end of all time is not
        return line | {"status": "failed" if limit == part.seconds else "cut", "reason": reason}
    return line | {"status": "failed", "reason": "\n".join(said[-3:])[-500:]}


def output_of(part: Part, place: Place, limit: float) -> tuple[int | None, str]:
    """Exit status, None after the limit, and everything printed."""
    path = [str(place.site), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    env |= {"NOPROP_COMMIT": place.commit}
    if place.rehearse:
        env |= {"TRITON_INTERPRET": "1"}
    env |= part.env
    with tempfile.TemporaryFile("w+") as file:
        try:
            process = subprocess.Popen(
                part.command,
                cwd=place.checks,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return 127, str(error)
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_session(process)
        file.seek(0)
        return status, file.read()


def end_session(process: subprocess.Popen) -> None:
    """Ends a part and whatever it started, such as a compiler's workers."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def commit() -> str:
    """NOPROP_COMMIT, or git's name for the sources, with "-dirty" if files differ from it."""
    if given := os.environ.get("NOPROP_COMMIT"):
        return given
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def check(parts: Sequence[Part], place: Place, seconds: float) -> int:
    """Runs the parts in order; 1 if one failed."""
    end, failed = time.perf_counter() + seconds, False
    with (place.out / "parts.jsonl").open("a") as results, (place.out / "log.txt").open("a") as log:

        def echo(text: str) -> None:
            log.write(text + "\n")
            print(text, flush=True)

        for part in parts:
            echo(f"\n== {part.name}")
            line = run_part(part, place, end - time.perf_counter(), echo)
            line |= {"rehearsal": True} if place.rehearse else {}
            failed = failed or line["status"] == "failed"
            echo(f"== {part.name}: {line['status']} {line.get('reason', '')}".rstrip())
            results.write(json.dumps(line) + "\n")
            results.flush()
            log.flush()
    return int(failed)


def main(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 2
    # so that a part does not outlive the check
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out, wanted = Path(arguments[0]).resolve(), arguments[1:]
    out.mkdir(parents=True, exist_ok=True)
    seconds = float(os.environ.get("NOPROP_SECONDS") or SECONDS)
    rehearse = os.environ.get("NOPROP_REHEARSE", "") not in ("", "0")
    with tempfile.TemporaryDirectory(prefix="noprop-gpu-check-") as work:
        place = Place(out, Path(work), rehearse, commit())
        parts = every_part(place)
        known = [part.name for part in parts]
        if unknown := [name for name in wanted if name not in known]:
            print(f"gpu_check: PART must be among {known}, got {unknown}")
            return 2
        place.lay()
        chosen = [part for part in parts if not wanted or part.name in (*wanted, "build")]
        return check(chosen, place, seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
