"""Shows whether a change of the sources changed a bit of the results.

`python -m bench bits BEFORE [AFTER]` builds two commits on this machine, runs the same cases in
both on every backend, and compares digests of all states, losses, gradients and predictions.
"""

import argparse
import json
import re
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from . import builds
from .compare import Comparison, compare, largest_difference, read

TEST = "tests/test_bits_cases.py"
SHOWN = 6  # differing cases of a run with their tensors shown, and lines of its problems


class Run(NamedTuple):
    """One backend in one environment."""

    name: str
    backend: str
    environment: Mapping[str, str]


ISAS = ("avx512bf16", "avx512", "avx2", "baseline", "neon")
RUNS = (
    Run("reference", "reference", {}),
    *(Run(f"cpu {isa}", "cpu", {"NOPROP_ISA": isa}) for isa in ISAS),
    Run("cuda on the host", "cuda", {"NOPROP_CUDA_HOST": "1"}),
    Run("triton interpreted", "triton", {"TRITON_INTERPRET": "1"}),
)
BACKENDS = tuple(dict.fromkeys(run.backend for run in RUNS))


def run_cases(
    run: Run, trees: Sequence[Path], only: Path | None = None
) -> tuple[list[Path], list[str | None]]:
    """Runs the cases in both trees: the folders of their outputs, and the reason for one that
    failed."""
    test = f"{TEST}::test_bits[{run.backend}]"
    # without the options and warning filters of the commit's own tests
    options = ["-q", "-rs", "-W", "ignore", "-o", "addopts=", "--import-mode=importlib"]
    outs = [tree.parent / f"{tree.name}-out" for tree in trees]
    extra = []
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        more = {**run.environment, "NOPROP_BITS_OUT": str(out)}
        extra.append(more if only is None else more | {"NOPROP_BITS_ONLY": str(only)})
    command = [sys.executable, "-m", "pytest", *options, test]
    gaps: list[str | None] = []
    for tree, (status, text) in zip(trees, builds.side_by_side(command, trees, extra), strict=True):
        skipped = re.search(r"^SKIPPED \[1\] \S+ (.*)$", text, re.MULTILINE)
        if status:
            raise SystemExit(f"bits: {run.name} in {tree.name}:\n{text[-5000:]}")
        gaps.append(skipped[1] if skipped else None)
    return outs, gaps


def tell_differences(run: Run, trees: Sequence[Path], found: Comparison) -> None:
    """The first differing cases run once more, to compare their tensors."""
    cases = list(found.differing)[:SHOWN]
    only = trees[0].parent / "only.json"
    only.write_text(json.dumps(cases))
    outs, _ = run_cases(run, trees, only)
    before, after = (torch.load(out / "tensors.pt") for out in outs)
    for case in cases:
        print(f"  {case}")
        for name in found.differing[case]:
            print(f"    {name}: {largest_difference(before[case][name], after[case][name])}")
    if left := len(found.differing) - len(cases):
        print(f"  and {left} cases more:", *list(found.differing)[SHOWN:], sep="\n    ")


def run_all(runs: Sequence[Run], trees: Sequence[Path]) -> bool:
    """Whether every backend ran, and all its results are equal."""
    same, ran = True, set()
    for run in runs:
        outs, gaps = run_cases(run, trees)
        before, after = gaps
        if before is not None and after is not None:
            print(f"{run.name}: does not run here: {after}", flush=True)
            continue
        if before is not None or after is not None:
            print(f"{run.name}: BEFORE {before or 'runs'}, AFTER {after or 'runs'}", flush=True)
            same = False
            continue
        ran.add(run.backend)
        found = compare(*(read(out / "lines.jsonl") for out in outs))
        same = same and found.same
        print(
            f"{run.name}: {found.equal} cases equal, {len(found.differing)} differ, "
            f"{len(found.problems)} problems, {found.refused} refused by both",
            flush=True,
        )
        for problem in found.problems[:SHOWN]:
            print(f"  {problem}")
        if left := len(found.problems[SHOWN:]):
            print(f"  and {left} problems more")
        if found.differing:
            tell_differences(run, trees, found)
        sys.stdout.flush()
    if missing := sorted({run.backend for run in runs} - ran):
        print(f"not shown: {', '.join(missing)} did not run; --backend leaves a backend out")
        return False
    return same


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench bits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", metavar="BEFORE", help="a commit")
    after = parser.add_mutually_exclusive_group()
    after.add_argument("after", metavar="AFTER", nargs="?", default="HEAD", help="default HEAD")
    after.add_argument(
        "--working-tree", action="store_true", help="AFTER is the tracked files as they lie here"
    )
    parser.add_argument(
        "--backend", nargs="+", choices=BACKENDS, default=BACKENDS, help="default: all"
    )
    parser.add_argument(
        "--case", default="", metavar="TEXT", help="only cases with this in their name"
    )
    options = parser.parse_args(arguments)
    names = (
        builds.resolve(options.before),
        (builds.working_tree() if options.working_tree else builds.resolve(options.after)),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folders are removed too
    with TemporaryDirectory(prefix="noprop-bits-") as folder:
        trees = [Path(folder) / side for side in ("BEFORE", "AFTER")]
        for tree, commit in zip(trees, names, strict=True):
            builds.unpack(commit, tree)
            shutil.copytree(Path(__file__).with_name("cases"), tree / "bits_cases")
            (tree / TEST).write_text("from bits_cases.run_cases import test_bits\n")
        builds.build(trees)
        print(f"BEFORE {names[0]}\nAFTER  {names[1]}", flush=True)
        chosen = {"NOPROP_BITS_CASE": options.case}
        runs = [
            run._replace(environment={**run.environment, **chosen})
            for run in RUNS
            if run.backend in options.backend
        ]
        same = run_all(runs, trees)
    of = f", of the cases with {options.case!r}" if options.case else ""
    print(("equal" if same else "not equal") + of)
    return 0 if same else 1
