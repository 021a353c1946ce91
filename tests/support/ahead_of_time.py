"""Compiles every launch of some calls for a GPU that is not here; prints a line of JSON for each.

Run as a program, without TRITON_INTERPRET: python -m support.ahead_of_time TARGET
PRECISION [WARPS]. With WARPS a training step's products get so many; only they are printed.
Calls on the CPU reach Triton's own launcher, which takes the arguments apart as on a GPU and
compiles for the target; only the launch itself is left out.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from noprop_kernels import plans
from noprop_kernels.backends.calls import HeadCall, TrainCall, UpdateCall
from noprop_kernels.backends.gpu import checks
from noprop_kernels.backends.triton import backend, context, launch
from noprop_kernels.optimizers import SGD, Adam, AdamW
from support.calls import PLANS, make_train_call
from support.chains import make_predict_call

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MLP = plans.mlp(784, 10, 10)


@dataclasses.dataclass
class Driver:
    """A GPU as far as compiling for it goes."""

    target: GPUTarget

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launches(target: str) -> list[tuple[str, Any]]:
    """Makes launches compile from here on, and gives the list that they are put on."""
    made: list[tuple[str, Any]] = []
    driver.set_active(Driver(TARGETS[target]))
    pdl = target in ("sm_90", "sm_100")

    def launch(self, kernel, grid, *args, warps=4, stages=2, **meta) -> None:
        options = {"num_warps": warps, "num_stages": stages, "PDL": pdl}
        options |= {"launch_pdl": True} if pdl else {}
        compiled = kernel.warmup(*args, **meta, **options, grid=grid)
        made.append((kernel.__name__, compiled))

    context.Device.launch = launch
    backend.device_of = lambda device: context.Device(interpreted=False, pdl=pdl)
    checks.contents_are_checked = lambda device: False
    backend.check_train = lambda call: None
    return made


def train(plan: Any, precision: str, n: int = 2, B: int = 40, K: int = 1, **options) -> TrainCall:
    call = make_train_call(plan, 3, n, B, K, **options)
    call.slices.precision = precision
    backend.train(call)
    return call


def run_calls(precision: str) -> None:
    """Calls that between them need every kernel."""
    wide = plans.mlp(256, 64, 100, hidden=1024)
    train(wide, precision, optimizer=Adam(), extras=True, flow=1.0, sigma=0.1)
    norms = PLANS["branches"](17, 5, 6)
    train(norms, precision, grads=True, head="cross_entropy")
    train(norms, precision, optimizer=SGD(momentum=0.9, nesterov=True))
    options = {"gather": True, "data_dtype": torch.uint8, "one_hot": True}
    call = train(MLP, precision, optimizer=AdamW(), **options)
    predict = make_predict_call(MLP, 1, 1, 40, 1)
    predict.slices.precision = precision
    backend.predict(predict)
    slices = call.slices
    grads = {name: value[:2] for name, value in slices.params.items()}
    backend.update(UpdateCall(slices, grads, torch.ones(2, dtype=torch.bool), call.rule))
    y = torch.zeros(1, 2, 40, dtype=torch.int64)
    linear = dataclasses.replace(call.objective, head="linear")
    outputs = (torch.zeros(2), torch.zeros(2, 40), torch.zeros(2, 40, 10))
    backend.head(HeadCall(linear, call.embedding, y, torch.zeros(2, 40, 10), None, *outputs))


def facts(name: str, compiled: Any) -> dict[str, Any]:
    """A kernel's costs, and the matrix instructions in it."""
    found = {"kernel": name, "shared": compiled.metadata.shared}
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]
        registers, spilled = (
            int(re.search(rf"\.{key}: *(\d+)", text)[1])
            for key in ("vgpr_count", "vgpr_spill_count")
        )
        matrix = re.findall(r"v_mfma\w+", text)
        return found | {
            "registers": registers, "spilled": 4 * spilled, "matrix": sorted(set(matrix)),
            "waits": False,
        }  # fmt: skip
    text = compiled.asm["ptx"]
    arch = re.search(r"\.target (sm_\w+)", text)[1]
    tools = Path(nvidia.__file__).parent / "bin"
    tool = tools / ("ptxas-blackwell" if arch.startswith("sm_1") else "ptxas")
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(text)
        file.flush()
        command = [tool, "-v", f"-arch={arch}", file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (re.search(p, log) for p in (r"Used (\d+) reg", r"(\d+) bytes spill st"))
    return found | {
        "registers": int(registers[1]),
        "spilled": int(spilled[1]),
        "matrix": [m for m in ("wgmma", "mma.sync", "tcgen05.mma") if m in text],
        "waits": "griddepcontrol.wait" in text,
    }


def tell_products(precision: str, warps: int, made: list[tuple[str, Any]]) -> None:
    """The products of a training step with another number of warps."""
    static = launch.dense_blocks
    launch.dense_blocks = lambda *given: dataclasses.replace(static(*given), warps=warps)
    train(MLP, precision, optimizer=AdamW(), gather=True)
    for name, compiled in made:
        if name in ("dense_kernel", "result_gradient_kernel"):
            print(json.dumps(facts(name, compiled)))


def main() -> None:
    target, precision, *warps = sys.argv[1:]
    made = compile_launches(target)
    if warps:
        return tell_products(precision, int(warps[0]), made)
    run_calls(precision)
    for name, compiled in {compiled.hash: (name, compiled) for name, compiled in made}.values():
        print(json.dumps(facts(name, compiled)))
    seen = {compiled.hash for _, compiled in made}
    made.clear()
    options = {"gather": True, "data_dtype": torch.uint8, "one_hot": True}
    train(MLP, precision, n=1, B=33, K=3, optimizer=AdamW(lr=0.5), **options)
    for name, compiled in made:
        if compiled.hash not in seen:
            print(json.dumps({"kernel": name, "again": True}))


if __name__ == "__main__":
    main()
