"""The parts of check.py: correctness, then the headline, then the rest in the time left."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("csrc", "noprop_kernels", "python", "pyproject.toml", "setup.py", "CMakeLists.txt")
BESIDE = ("MANIFEST.in", "README.md", "LICENSE")  # the build reads these too
CHECKS = ("bench", "tests", "pyproject.toml", "README.md")  # these run away from the sources
OURS = (  # all but ours_sgd; contenders/ours.py cannot be imported yet
    *("ours", "ours_cuda", "ours_cuda_clusters"),
    *("ours_no_pdl", "ours_train_step", "ours_by_hand"),
)
BEST = ("stacked_shared_graphed", "step_compiled_graphed", "step_compiled_pdl_graphed")
EAGER = tuple(
    name + end
    for name in ("stacked_shared", "step_compiled", "baddbmm_sgd", "sequential", "stacked_expanded")
    for end in ("", "_graphed")
)
OPTIONS = tuple(
    name + end
    for name in ("step_compiled_pdl", "step_compiled_triton", "step_compiled_combo", "compiled")
    for end in ("", "_graphed")
)
LENGTHS = (
    *("ours", "ours_cuda", "ours_cuda_clusters"),
    *("stacked_shared_graphed", "step_compiled_graphed"),
)
LARGE = ("ours", "ours_cuda", "stacked_shared", "step_compiled", "step_compiled_triton")


@dataclass(frozen=True)
class Part:
    """One command.

    Args:
        name: its name in the results.
        seconds: its limit.
        command: the command, run in the folder of the checks.
        env: additional variables.
        gap: the reason not to run it, or "".
        keep: a file of results that its last line is appended to, or "".
    """

    name: str
    seconds: float
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    gap: str = ""
    keep: str = ""


@dataclass(frozen=True)
class Place:
    """The folders and options of a check.

    Args:
        out: the folder of results.
        work: a folder of its own, removed in the end.
        rehearse: on the CPU, measuring nothing.
        commit: that of the sources.
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
        """Copies the sources to build, and the checks to a place where they shadow nothing."""
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
        common = ["--device", "rehearsal", "--precision", precision]
        return python("-m", "bench", "run", *common, *more, *out)
    common = ["--device", "cuda", "--precision", precision, "--shape", *shapes]
    return python("-m", "bench", "run", *common, *more, *out)


def benchmarks(place: Place) -> list[Part]:
    """The headline first: every contender on `small`; then the best of them on all shapes.

    `bench lengths` shows what K steps a call save: the persistent kernel beside graphs.
    """
    # long compilations have their own part: a limit would also end the rest
    eager = ("--seconds", "50", "--contender", *OURS, "ours_sgd", *EAGER)
    options = ("--seconds", "55", "--contender", "ours", *OPTIONS, "step_compiled_functional")
    core = ("--seconds", "25", "--contender", *OURS, *BEST)
    lengths = ("--seconds", "35", "--contender", *LENGTHS, "--K", "1", "10", "50", "500")
    large = ("--seconds", "25", "--rounds", "5", "--contender", *LARGE, "flex_gemm")
    rows: list[tuple[str, float, Sequence[str], str, Sequence[str]]] = [
        ("bench small tf32", 80, ["small"], "tf32", eager),
        ("bench lengths tf32", 80, ["tiny", "small"], "tf32", lengths),
        ("bench compiled small tf32", 90, ["small"], "tf32", options),
        ("bench tf32", 100, ["tiny", "stream", "wide"], "tf32", core),
        ("bench large tf32", 45, ["large"], "tf32", large),
        ("bench bfloat16", 65, ["small", "tiny"], "bfloat16", core),
        ("bench float32", 65, ["small", "tiny"], "float32", core),
        ("bench large bfloat16", 40, ["large"], "bfloat16", large),
        ("bench huge bfloat16", 90, ["huge"], "bfloat16", (*large, "--K", "1", "5")),
        ("bench more bfloat16", 65, ["stream", "wide"], "bfloat16", core),
        ("bench more float32", 65, ["stream", "wide"], "float32", core),
        ("bench large float32", 60, ["large"], "float32", (*large, "--K", "1", "5")),
    ]
    if place.rehearse:
        rows = [("bench small tf32", 200, [], "tf32", ())]
    return [
        Part(name, limit, bench(place, name, shapes, precision, *more))
        for name, limit, shapes, precision, more in rows
    ]


def sanitizers(place: Place) -> list[Part]:
    """Small shapes by themselves, under Triton's own sanitizer, and under NVIDIA's tools.

    The tools check each backend in a part of its own.
    """
    small = python("-m", "bench", "sanitize", *(["--rehearse"] if place.rehearse else []))
    out = ["--out", str(place.out / "sanitizers.jsonl")]
    few, cuda = ["--precision", "tf32"], ["--backend", "cuda"]
    gap = "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not on PATH"
    gap = "a rehearsal has no GPU" if place.rehearse else gap
    parts = [
        Part("small shapes", 60, [*small, *(few if place.rehearse else []), *out]),
        Part("small shapes cuda", 60, [*small, *cuda, *out]),
        Part("consan", 120, [*small, "--consan", *out]),
    ]
    # each tensor an allocation of its own, so that its bounds are checked
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = ["compute-sanitizer", f"--tool={tool}", "--error-exitcode=99", *small, *few]
        env = alone if tool == "memcheck" else {}
        parts.append(Part(tool, 60, [*command, "--plain"], env, gap=gap))
        parts.append(Part(f"{tool} cuda", 60, [*command, *cuda, "--plain"], env, gap=gap))
    return parts


def mnist(place: Place) -> Part:
    """Trains from end to end by the public command, into a folder that is not kept."""
    device = "cpu" if place.rehearse else "cuda"
    data, epochs = ("digits", "2") if place.rehearse else ("mnist", "10")
    gap = "" if place.rehearse or os.environ.get("NOPROP_DATA") else "NOPROP_DATA is not set"
    options = ["--data", data, "--preset", "mlp", "--epochs", epochs, "--seed", "0"]
    options += ["--device", device, "--json", "--out", str(place.work / "run")]
    # the rehearsal's interpreter would take hours
    env = {"TRITON_INTERPRET": "0"} if place.rehearse else {}
    return Part(
        "mnist", 60, python("-m", "noprop", "train", *options), env, gap=gap, keep="mnist.jsonl"
    )


def every_part(place: Place) -> list[Part]:
    rehearse = ["--rehearse"] if place.rehearse else []
    device = ["--out", str(place.out / "device.jsonl")]
    pip = ("-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index")
    target = ("--target", str(place.site), str(place.work / "source"))
    marked, where = ("triton", "contract/test_update.py") if place.rehearse else ("gpu", "gpu")
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", marked]
    tests += [f"tests/backends/{where}"]
    tests += ["-o", "filterwarnings=default"]  # another torch has other warnings
    memory = ["--precision", "tf32", "--out", str(place.out / "gpu_memory.jsonl")]
    names = ["--contender", "ours_by_1", "stacked_shared"] if place.rehearse else []
    return [
        Part("facts", 30, python("-m", "bench", "gpu", "facts", *rehearse, *device)),
        Part("build", 200, python(*pip, *target)),
        Part("backends", 30, python("-m", "noprop_kernels")),
        Part("tests", 150, python(*tests)),
        Part("peaks", 40, python("-m", "bench", "gpu", "peaks", *rehearse, *device)),
        *benchmarks(place)[:4],
        Part("memory", 45, python("-m", "bench", "gpu_memory", *rehearse, *memory, *names)),
        sanitizers(place)[0],
        mnist(place),
        *sanitizers(place)[1:],
        *benchmarks(place)[4:],
    ]
