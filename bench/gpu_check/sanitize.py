"""Small shapes for tools that look for races: `python -m bench sanitize [--backend cuda] ...`.

Every kernel of the Triton backend runs once or twice: plain steps, a captured graph and its replay,
normalisation, both optimizers, prediction, each precision. With --backend cuda the persistent CUDA
kernel does the same, its steps in launches of one and of three. Without a tool the command checks
that two runs of the same steps give the same bits; it is meant to run under compute-sanitizer's
memcheck, racecheck and synccheck. Exit status 77: the CUDA backend cannot run here.

With --consan steps without normalisation run under Triton's own concurrency sanitizer
(TRITON_INSTRUMENTATION_MODE=consan), which asserts on the device, and kernels that it instrumented
are counted. A precision whose kernels it cannot compile is reported (tf32 and bfloat16 for sm_90
with Triton 3.7); float32 must compile. Exit status 77: this Triton has no such sanitizer.
"""

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SKIPPED = 77  # exit status where nothing could run; the last line says why
PRECISIONS = ("float32", "tf32", "bfloat16")
MODE = "TRITON_INSTRUMENTATION_MODE"


def consan_gap() -> str | None:
    """The reason why Triton's concurrency sanitizer cannot run, or None; does not import Triton."""
    found = importlib.util.find_spec("triton")
    if found is None or found.origin is None:
        return "Triton is not installed"
    compiler = Path(found.origin).parent / "backends" / "nvidia" / "compiler.py"
    if not compiler.exists() or "consan" not in compiler.read_text():
        return "this Triton has no concurrency sanitizer"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "the concurrency sanitizer is of compiled kernels, and the interpreter runs"
    return None


def cuda_gap(device: str) -> str | None:
    """The reason why the CUDA kernels cannot run, or None."""
    import torch

    from noprop_kernels.backends import dispatch

    reason = dispatch.gap("cuda", None, torch.device(device), "float32")
    return reason and f"the CUDA backend: {reason}"


def train(backend: str, device: str, precision: str, norm: bool, K: int) -> dict[str, Any]:
    """The state and the answers after some steps of small blocks."""
    import torch

    import noprop_kernels as nk

    torch.manual_seed(0)
    T, B, F, M = 2, 24, 33, 10
    plan = nk.plans.paper_dt(F, M, M) if norm else nk.plans.mlp(F, M, M, hidden=40)
    optimizer = nk.SGD(lr=0.1, momentum=0.9) if norm else nk.AdamW()
    blocks = nk.DenoisingBlocks(
        plan,
        nk.DT(nk.NoiseSchedule.cosine(T)),
        optimizer=optimizer,
        precision=precision,
        backend=backend,
    ).to(device)
    X, Y = torch.randn(100, F).to(device), torch.randint(M, (100,)).to(device)
    losses = [blocks.train_step(X[:B], Y[:B]).loss]
    for _ in range(3):  # plain launches, a capture, a replay
        losses.append(blocks.train_steps(X, Y, torch.randint(100, (K, B)).to(device)))
    answers = blocks.eval().predict(X[:5]).logits
    state = {name: value.clone() for name, value in blocks.state_dict().items()}
    return state | {"losses": torch.cat([loss.flatten() for loss in losses]), "answers": answers}


def runs(
    backend: str, device: str, precisions: Sequence[str], norms: Sequence[bool], K: int
) -> Iterator[dict[str, Any]]:
    """A result line for each precision and plan."""
    import torch

    for precision in precisions:
        for norm in norms:
            plan = "paper_dt" if norm else "mlp"
            line = {"backend": backend, "precision": precision, "plan": plan}
            try:
                first, second = (train(backend, device, precision, norm, K) for _ in range(2))
            except RuntimeError as error:
                if "PassManager" not in str(error):  # the sanitizer's own, while it compiles
                    raise
                yield line | {"error": f"RuntimeError: {error}"}
                continue
            same = all(torch.equal(value, second[name]) for name, value in first.items())
            finite = all(torch.isfinite(value).all().item() for value in first.values())
            yield line | {"same_bits": same, "finite": finite}


def instrumented(folder: str) -> dict[str, int]:
    """Kernels in Triton's cache, and those that the concurrency sanitizer changed."""
    texts = [path.read_text() for path in Path(folder).rglob("*.llir")]
    return {"kernels": len(texts), "instrumented": sum("consan" in text for text in texts)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench sanitize", description=__doc__)
    parser.add_argument("--consan", action="store_true", help="under Triton's own sanitizer")
    parser.add_argument("--backend", default="triton", choices=("triton", "cuda"))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, by the interpreter")
    parser.add_argument("--plain", action="store_true", help="without graphs")
    parser.add_argument("--precision", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--out", type=Path, help="append JSON lines to this file")
    options = parser.parse_args(arguments)
    if options.consan and options.backend != "triton":
        parser.error("--consan must have --backend triton, whose sanitizer it is")
    device = "cpu" if options.rehearse else "cuda"
    reason = consan_gap() if options.consan else None
    if reason or (options.backend == "cuda" and (reason := cuda_gap(device))):
        print(reason)
        return SKIPPED
    # a single step is no graph of Triton's; the CUDA kernel keeps moments from step to step
    single = options.backend == "triton" and (options.rehearse or options.plain)
    K = 1 if single else 3
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        if options.consan:
            os.environ |= {MODE: "consan", "TRITON_CACHE_DIR": folder}
            give_scratch()
        norms = (False,) if options.consan or options.rehearse else (False, True)
        for line in runs(options.backend, device, options.precision, norms, K):
            passed = passed and acceptable(line)
            line |= {"tool": "consan" if options.consan else "none"}
            line |= {"rehearsal": True} if options.rehearse else {}
            line |= instrumented(folder) if options.consan else {}
            print(json.dumps(line), flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    return 0 if passed else 1


def acceptable(line: dict[str, Any]) -> bool:
    """Whether a run was right; kernels that the sanitizer cannot compile are wrong in float32."""
    if "error" in line:
        return line["precision"] != "float32"
    return line["same_bits"] and line["finite"]


def give_scratch() -> None:
    """Gives instrumented kernels the global memory for their records."""
    import torch
    import triton

    def allocate(size: int, alignment: int, stream: int | None) -> Any:
        return torch.zeros(size, dtype=torch.int8, device="cuda")

    triton.set_allocator(allocate)
