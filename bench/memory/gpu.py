"""Memory on a GPU in parts, its peak and the time: `python -m bench gpu_memory [--out FILE]`.

Ours with 1, 2, 5 and all blocks a launch (`blocks_per_launch`), and rivals, among them end-to-end
back-propagation. Bytes are those of PyTorch's allocator, one contender after the other: weights and
optimizer state between steps, gradients that exist at once, all else that a step allocates (ours:
workspace; rivals: activations), and the peak of all while steps run, K in a call, including our
CUDA graph.
"""

import gc
import traceback
from collections.abc import Sequence
from functools import partial

import torch

from ..contenders.contender import PRECISIONS, Contender, Entry
from ..contenders.ours import OursOnGPU
from ..contenders.rivals import RIVALS
from ..machine import gpu, host
from ..problem.problem import Problem, make_problem
from ..problem.sizes import GPU_SHAPES, REHEARSAL
from ..report.cells import aligned
from ..report.lines import Line
from ..report.suite_rows import gpu_memory_rows
from ..suites import command
from ..suites.rounds import sample

GROUPS = (1, 2, 5)  # blocks a launch, beside all
RIVAL_NAMES = (
    *("sequential", "stacked_shared", "step_compiled"),
    *("end_to_end", "end_to_end_checkpointed"),
    *("end_to_end_accumulated", "end_to_end_in_backward"),
)
ENTRIES = (
    Entry("ours", OursOnGPU),
    *(Entry(f"ours_by_{size}", partial(OursOnGPU, blocks_per_launch=size)) for size in GROUPS),
    *(entry for entry in RIVALS if entry.name in RIVAL_NAMES),
)
STEPS, SAMPLES = 10, 5


def measure(entry: Entry, problem: Problem, K: int, samples: int) -> Line:
    """Measures one contender's memory, and its fastest sample in milliseconds a step."""
    device, indices = problem.device, problem.indices(K, seed=1)
    counted = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if counted else 0
    contender = entry.make(problem, 1)
    for _ in range(3):  # compiles, captures, replays
        contender.steps(indices)
    step = contender.step_bytes(indices)
    peak = None
    if counted:
        gpu.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    times = [sample(contender, indices) for _ in range(samples)]
    if counted:
        peak = torch.cuda.max_memory_allocated(device) - before
    return {
        "maths": contender.maths,
        "ms_per_step": min(times),
        "memory_bytes": parts(contender, step) | {"peak": peak},
    }


def parts(contender: Contender, step: int | None) -> dict[str, int]:
    gradients = contender.gradient_bytes()
    more = max((step or 0) - gradients, 0)
    name, other = "workspace", "activations"
    if not isinstance(contender, OursOnGPU):
        name, other = other, name
    return contender.resident() | {"gradients": gradients, name: more, other: 0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 1 if a contender that compiles nothing failed."""
    shapes = GPU_SHAPES | {REHEARSAL.name: REHEARSAL}
    parser = command.parser("gpu_memory", __doc__, shapes, ENTRIES, quick="small alone")
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, where nothing counts")
    options = parser.parse_args(arguments)
    if not (options.rehearse or torch.cuda.is_available()):
        parser.error("no GPU that PyTorch can use")
    device = torch.device("cpu" if options.rehearse else "cuda")
    names = options.shape or (["small"] if options.quick else ["small", "wide"])
    names = [REHEARSAL.name] if options.rehearse else names
    gpu.set_precision(options.precision)
    K, samples = (2, 1) if options.rehearse else (STEPS, SAMPLES)
    passed = True
    for name in names:
        problem = make_problem(shapes[name], device=device, precision=options.precision)
        base = host.circumstances(name, 1, options.precision)
        base |= {"kind": "rehearsal" if options.rehearse else "gpu_memory", "K": K}
        if not options.rehearse:
            base["machine"] |= gpu.describe(device)
        lines: list[Line] = []
        for entry in ENTRIES:
            if options.contender and entry.name not in options.contender:
                continue
            line = base | {"contender": entry.name}
            try:
                line |= measure(entry, problem, K, samples)
            except Exception as error:
                line["error"] = traceback.format_exception_only(error)[-1].strip()
                print(f"  {entry.name}: not measured: {line['error']}", flush=True)
                passed = passed and entry.compiles
            lines.append(line)
            command.append(options.out, [line])
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        print(aligned(gpu_memory_rows(lines, base["kind"])), flush=True)
    return 0 if passed else 1
