"""Times every contender: `python -m bench run [--quick] [--shape small ...] [--out FILE]`.

Each contender first takes three steps that must be those of a float64 twin, on the very shape; one
that fails is not timed. Then come rounds, in each of which every contender takes its turn, all in
one process. Caches are warm: before each sample a contender takes one step untimed. `ours` is
train_steps with K steps a call; `ours_train_step`, at K = 1, train_step on rows that torch gathers.

With --precision bfloat16 only contenders run that can round the operands of their products: ours by
its own option, eager rivals by torch.autocast, step_compiled by casts; with tf32, on a GPU, rivals
by PyTorch's setting. A contender may then differ from the twin by twice the error of plain PyTorch,
or of the twin with rounded operands, and by one rounding.

With --device cuda the Triton kernels, the CUDA kernels (`ours_cuda`, where they can run, and
`ours_cuda_clusters` from compute capability 9.0 on) and a GPU's rivals run there, more shapes too;
--K 1 10 50 500 shows what a launch costs. Each sample waits for the device before and after.
--device rehearsal runs the same code path on the CPU, in Triton's interpreter (TRITON_INTERPRET=1),
with a shape of its own; its lines have the kind "rehearsal".
"""

import argparse
import gc
import os
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..contenders.contender import PRECISIONS, Entry, Missing
from ..contenders.ours import ON_CPU, OURS, OURS_ON_GPU
from ..contenders.rivals import RIVALS
from ..contenders.rivals.on_gpu import GPU_RIVALS
from ..machine import gpu, host
from ..problem import twin
from ..problem.problem import Problem, make_problem
from ..problem.sizes import GPU_SHAPES, REHEARSAL, SHAPES
from ..report.lines import Line
from . import command
from .check import check_steps
from .rounds import MIN_ROUNDS, measure_rounds, measured_rates
from .suite import Checked, Lineup, Suite

WARM_CALLS = 3  # on a GPU: plain launches, a capture, a replay
QUICK_SECONDS = 45.0  # for a shape, checks included, after which rounds end


def start(entry: Entry, problem: Problem, threads: int, suite: Suite) -> Checked:
    """Makes and checks a contender; raises what stops it."""
    contender = entry.make(problem, threads)
    try:
        seconds = suite.check(contender)
    except BaseException:
        contender.close()
        raise
    compile_seconds = seconds[0] - seconds[-1] if entry.compiles else None
    samples: dict[int, list[float]] = {K: [] for K in suite.Ks if K == 1 or not entry.single}
    if suite.device != "cpu":
        for K in samples:
            for call in range(WARM_CALLS):
                contender.steps(problem.indices(K, seed=50 + call))
        gpu.synchronize(problem.device)
    return Checked(entry.name, contender, compile_seconds, samples)


@contextmanager
def lineup_of(
    name: str,
    threads: int,
    suite: Suite,
    entries: Sequence[Entry],
    precision: str,
    end: float = float("inf"),
) -> Iterator[Lineup]:
    """Checked contenders of one shape, closed at the end; on a GPU none starts late."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # the number of threads is built into compiled code
    before = torch.get_float32_matmul_precision()
    problem = make_problem(suite.shapes[name], device=suite.tensors_on, precision=precision)
    base: Line = host.circumstances(name, threads, precision)
    if suite.device == "cuda":
        base["machine"] |= gpu.describe(problem.device)
    base |= measured_rates(problem, threads)
    base |= {"kind": suite.kind} if suite.kind else {}
    print(
        f"\n{name}, {threads} threads, {precision}: peak {base['peak_gflops']:.0f} GF/s, "
        f"copy {base['copy_gb_s']:.0f} GB/s, of a state's size {base['state_gb_s']:.0f} GB/s",
        flush=True,
    )
    lineup = Lineup(problem, base, [], [])
    try:
        if suite.device != "cpu":
            gpu.set_precision(precision)
        for entry in entries:
            if threads < entry.min_threads or precision not in entry.precisions:
                continue
            if not entry.fits(problem.shape):
                continue
            try:
                if suite.device != "cpu" and time.perf_counter() > end:
                    raise Late("the shape's time was over before its turn")
                lineup.checked.append(start(entry, problem, threads, suite))
                maths = lineup.checked[-1].contender.maths
                print(f"  {entry.name} ({maths}): correct", flush=True)
            except Exception as error:
                lineup.passed = lineup.passed and not mistaken(error, entry)
                text = traceback.format_exception_only(error)[-1].strip()
                print(f"  {entry.name}: not timed: {text}", flush=True)
                lineup.failed.append(base | {"contender": entry.name, "error": text})
        yield lineup
    finally:
        for turn in lineup.checked:
            turn.contender.close()
        lineup.checked.clear()
        torch.set_float32_matmul_precision(before)
        gc.collect()
        if suite.device == "cuda":
            torch.cuda.empty_cache()


class Late(Exception):
    """A contender's turn came after the time was over."""


def mistaken(error: Exception, entry: Entry) -> bool:
    """Whether a contender that did not start is wrong: not late, too large, missing, uncompiled."""
    if isinstance(error, twin.Mismatch):
        return True
    return not (entry.compiles or isinstance(error, Late | Missing | torch.OutOfMemoryError))


def run(suite: Suite, arguments: Sequence[str] | None) -> int:
    """Runs the command line; returns 1 if a contender was wrong."""
    parser = command.parser(suite.prog, suite.about, suite.shapes, suite.entries, suite.quick)
    if len(suite.Ks) > 1:
        parser.add_argument("--K", nargs="+", type=int, default=list(suite.Ks), help="steps a call")
    if len(suite.precisions) > 1:
        parser.add_argument(
            "--precision", default="float32", choices=suite.precisions, help="of products' operands"
        )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, help="end a shape's rounds when it took so many")
    options = parser.parse_args(arguments)
    if suite.all_threads:
        options.threads = options.threads or [host.cores()]
    command.settle(options, suite.shapes, suite.quick_shapes)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else float("inf"))
    command.check_least(parser, options, threads=1, rounds=MIN_ROUNDS)
    if len(suite.Ks) > 1:
        command.check_least(parser, options, K=1)
        suite = replace(suite, Ks=options.K)
    entries = command.wanted(suite.entries, options)
    precision = getattr(options, "precision", "float32")
    passed = True
    # a cache of its own, so that compile seconds are those of a first use
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for threads in options.threads:
            for name in options.shape:
                end = time.perf_counter() + seconds
                with lineup_of(name, threads, suite, entries, precision, end) as lineup:
                    lines = lineup.failed + suite.measure(lineup, suite, options.rounds, end)
                passed = passed and lineup.passed
                print(suite.table(lines), flush=True)
                command.append(options.out, lines)
    return 0 if passed else 1


TRAINING = Suite(
    prog="run",
    about=__doc__,
    quick="about two minutes on two cores",
    entries=(*OURS, *RIVALS),
    shapes=SHAPES,
    quick_shapes=("tiny", "small"),
    Ks=(1, 50),
    check=check_steps,
    measure=measure_rounds,
    precisions=ON_CPU,
)
ON_GPU = replace(
    TRAINING,
    quick="four small shapes, without the slow contenders",
    entries=(*OURS_ON_GPU, *GPU_RIVALS),
    shapes=GPU_SHAPES,
    quick_shapes=tuple(SHAPES),
    precisions=PRECISIONS,
    device="cuda",
)
REHEARSED = replace(
    ON_GPU,
    shapes={REHEARSAL.name: REHEARSAL},
    quick_shapes=(REHEARSAL.name,),
    Ks=(1, 2),
    kind="rehearsal",
    device="rehearsal",
)
SUITES = {suite.device: suite for suite in (TRAINING, ON_GPU, REHEARSED)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", choices=SUITES, default="cpu")
    options, rest = parser.parse_known_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU that PyTorch can use")
    # the GPU does not depend on the host's threads
    more = [] if options.device == "cpu" or "--threads" in rest else ["--threads", "1"]
    suite = TRAINING if options.device == "cpu" else SUITES[options.device]
    return run(suite, [*rest, *more])
