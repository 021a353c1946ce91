"""Times operations in turns: `python -m bench parts [--quick] [--op linear ...] [--out FILE]`.

    linear            forward, both gradients and AdamW: nk.Linear
    linear_forward    its forward alone, in eval mode
    dense             nk.functional.dense
    dense_update_     the gradients of weight and bias, and AdamW: nk.functional.dense_update_
    convolution       the paper's three, by blocks of a plan with one; convolution_d_x and _d_weight
                      are the backward with that gradient alone, since no function is one product
    denoising_loss    losses and d_logits: nk.functional.denoising_loss, and nk.DenoisingLoss
    add_noise         z of labels: nk.functional.add_noise
    blocks.add_noise  z of all blocks: DenoisingBlocks.add_noise
    output_head       a step on z_T: nk.OutputHead
    blocks.update     AdamW of all blocks for given gradients: DenoisingBlocks.update

A shape is B x inputs x outputs, B x M, T x B x M, or T x the width of x x that of hidden layers; a
convolution's T x B x C x H x W x channels x the window of its pool, 1 without.
`eager` is PyTorch with its fused AdamW, `compiled` the same formulas written out with AdamW under
torch.compile, `compiled_fused` the compiled module with fused AdamW. Each is checked first, against
float64. A ratio is the best rival's time over ours in the same round: its median, 20 and 80 %. The
control is ours once more, so that its ratio to ours shows what the machine's noise does to one. The
frame is the same call through PyTorch's graph with nothing in it; with the products at the peak and
the state at the rate of a copy it is the floor of a function that is written in Python.
`pytest bench/ops --benchmark-only` runs the same cases under pytest-benchmark.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from math import inf
from types import SimpleNamespace

import torch

from ..machine import host
from ..problem.twin import Mismatch
from ..report.cells import aligned, spread
from ..report.lines import Line, highest_peaks, is_ours, rescaled
from ..report.suite_rows import parts_rows
from ..suites import command
from ..suites.rounds import MIN_ROUNDS, in_turns, quantiles, ratios
from .cases import CASES, CONTENDERS, OPS, Case, Started, start
from .op import Call

CONTROL, FRAME = "control", "frame"
SAMPLE_SECONDS = 5e-3
MOST_CALLS = 200  # in a sample
RATE_SECONDS = 0.2  # for each rate of the machine, before each case
LEAST_COPY = 1 << 16  # bytes whose copy has a rate
SHAPES = tuple(dict.fromkeys(case.shape for case in CASES))
QUICK = ("128x784x256", "128x10", "10x128x10", "10x784x256")


def sample(call: Call, calls: int) -> float:
    """Milliseconds a call, after calls that bring its data and its threads back."""
    for _ in range(1 + calls // 10):
        call()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls * 1e3


def checked(case: Case, names: Sequence[str], base: Line) -> tuple[dict[str, Started], list[Line]]:
    """What passed its check, ours twice, and a line for each that did not."""
    started, failed = {}, []
    for name in names:
        try:
            started[name] = start(case, name)
            if name == "ours":
                started[CONTROL] = Started(start(case, name).call, started[name].seconds)
        except Exception as error:
            text = traceback.format_exception_only(error)[-1].strip()
            print(f"  {name}: not timed: {text}", flush=True)
            failed.append(base | {"contender": name, "K": 1, "error": text})
    return started, failed


def measure(case: Case, names: Sequence[str], base: Line, rounds: int) -> list[Line]:
    """A result line for each contender, after rounds in which they take turns."""
    torch.compiler.reset()
    started, failed = checked(case, names, base)
    op, lines = case.op(*case.size), []
    if "ours" in started and (frame := op.frame()):
        started[FRAME] = Started(frame, started["ours"].seconds)
    samples: dict[str, list[float]] = {name: [] for name in started}
    for _, name in in_turns([*started], rounds, inf):
        call, seconds = started[name]
        calls = min(MOST_CALLS, 1 + int(SAMPLE_SECONDS / min(seconds)))
        samples[name].append(sample(call, calls))
    control, framed = samples.pop(CONTROL, None), samples.pop(FRAME, None)
    rivals = {name: quantiles(each)[1] for name, each in samples.items() if not is_ours(name)}
    best = min(rivals, key=lambda name: rivals[name], default=None)
    for name, each in samples.items():
        low, median, high = quantiles(each)
        line = {"ms_q20": low, "ms_per_step": median, "ms_q80": high, "rounds": len(each)}
        print(f"  {name:<15} {spread(line)}", flush=True)
        line |= {"flop_per_step": op.flop, "bytes_per_step": op.traffic}
        shares = (("peak", op.flop, "peak_gflops"), ("copy", op.traffic, "state_gb_s"))
        for limit, work, rate in shares:
            line[f"share_of_{limit}"] = work / (median * 1e6) / base[rate] if work else None
        if name.startswith("compiled"):
            line["compile_seconds"] = started[name].seconds[0] - started[name].seconds[-1]
        if is_ours(name) and best:
            line |= {"rival": best} | named("ratio", ratios(samples[best], each))
        if name == "ours" and control:
            line |= named("control", ratios(control, each))
        if name == "ours":
            work = (op.flop / base["peak_gflops"], op.traffic / base["state_gb_s"])
            frame_ms = quantiles(framed)[1] if framed else 0.0
            line |= {"frame_ms": frame_ms, "floor_ms": frame_ms + max(work) / 1e6}
        lines.append(base | {"contender": name, "K": 1} | line)
    return lines + failed


def named(name: str, values: tuple[float, float, float]) -> Line:
    return dict(zip((f"{name}_q20", name, f"{name}_q80"), values, strict=True))


def mistaken(line: Line) -> bool:
    """Whether its contender is wrong: it failed, and not just because torch.compile did."""
    compiled = line["contender"].startswith("compiled")
    return "error" in line and (Mismatch.__name__ in line["error"] or not compiled)


def main(arguments: Sequence[str] | None = None) -> int:
    entries = [SimpleNamespace(name=name) for _, name in CONTENDERS]
    parser = command.parser("parts", __doc__, SHAPES, entries, f"only {', '.join(QUICK)}")
    known = [op.name for op in OPS]
    parser.add_argument("--op", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args(arguments)
    command.settle(options, SHAPES, QUICK)
    command.check_least(parser, options, threads=1, rounds=MIN_ROUNDS)
    lines: list[Line] = []
    # a cache of its own, so that compile seconds are those of a first use
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for threads in options.threads:
            torch.set_num_threads(threads)
            for case in CASES:
                if case.shape in options.shape and case.op.name in options.op:
                    print(f"{case}, {threads} threads:", flush=True)
                    names = [n for n in case.op.contenders if n in (options.contender or [n])]
                    found = measure(case, names, circumstances(case, threads), options.rounds)
                    command.append(options.out, found)
                    lines += found
    print(aligned(parts_rows(rescaled(line, highest_peaks(lines)) for line in lines), left=3))
    return 1 if any(map(mistaken, lines)) else 0


def circumstances(case: Case, threads: int) -> Line:
    """The common part of a case's result lines, with the machine's rates as they are now."""
    size = max(LEAST_COPY, case.op(*case.size).traffic)
    return host.circumstances(case.shape, threads) | {
        **{"kind": "parts", "maths": case.op.name},
        "peak_gflops": host.peak_gflops(threads, RATE_SECONDS),
        "state_gb_s": host.copy_gb_s(threads, size, RATE_SECONDS),
    }
