"""Launches of the CUDA kernel as files that backends/cuda/programs/replay.cpp runs again.

A recording is a launch's program and, of all memory that it points into, the bytes before and after
the launch on the host's module. A program with a sanitizer then runs the same launch without Python
and compares every byte.
"""

import ctypes
import gc
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from noprop_kernels.backends.calls import Rule, UpdateCall
from noprop_kernels.optimizers import SGD, AdamW
from support.calls import PLANS, make_slices, make_train_call
from support.chains import make_predict_call
from support.stages import fill

PRECISIONS = ("float32", "tf32", "bfloat16")
Relocation = tuple[int, int]  # where in the program, what address


@dataclass(frozen=True)
class Recording:
    """A launch.

    Args:
        kinds: of its stages.
        program: bytes of the struct.
        relocations: its addresses.
        starts: of the storages that these lie in.
        before, after: their bytes.
    """

    kinds: frozenset[str]
    program: bytes
    relocations: list[Relocation]
    starts: list[int]
    before: list[bytes]
    after: list[bytes]

    def write(self, path: Path) -> Path:
        """Numbers of int64, then bytes, in replay.cpp's order."""
        counts = (len(self.program), len(self.starts), len(self.relocations))
        with path.open("wb") as file:
            file.write(struct.pack("3q", *counts) + self.program)
            for before, after in zip(self.before, self.after, strict=True):
                file.write(struct.pack("q", len(before)) + before + after)
            for place, address in self.relocations:
                at = self._storage(address)
                file.write(struct.pack("3q", place, at, address - self.starts[at]))
        return path

    def _storage(self, address: int) -> int:
        ranges = zip(self.starts, self.before, strict=True)
        return next(i for i, (start, b) in enumerate(ranges) if start <= address < start + len(b))


class Recorder:
    """The host's module, which launches and keeps recordings."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.recordings = module, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def launch(self, program: dict, device: int, stream: int) -> None:
        record, relocations = to_struct(described(self.module), program)
        storages = storages_of({address for _, address in relocations})
        before = [memory(*each) for each in storages]
        self.module.launch(program, device, stream)
        after = [memory(*each) for each in storages]
        kinds = frozenset(stage["kind"] for stage in program["stages"])
        starts = [start for start, _ in storages]
        made = Recording(kinds, record, relocations, starts, before, after)
        self.recordings.append(made)


def memory(start: int, size: int) -> bytes:
    return ctypes.string_at(start, size)


def storages_of(addresses: set[int]) -> list[tuple[int, int]]:
    """Start and bytes of the storages of living tensors that contain the addresses."""
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, torch.nn.Parameter)]
    whole = (
        item.untyped_storage()
        for item in tensors
        if item.device.type == "cpu" and item.layout == torch.strided
    )
    found = sorted({(each.data_ptr(), each.nbytes()) for each in whole})
    used = [(s, size) for s, size in found if any(s <= a < s + size for a in addresses)]
    lost = [a for a in addresses if not any(s <= a < s + size for s, size in used)]
    assert not lost, f"{len(lost)} of {len(addresses)} addresses lie in no tensor"
    return used


def described(module: ModuleType) -> dict[str, Any]:
    return json.loads(module.description())


def to_struct(struct_of: dict[str, Any], program: dict) -> tuple[bytes, list[Relocation]]:
    """The struct that bindings.cpp makes of the program, its addresses null, and the addresses."""
    memory, relocations = bytearray(struct_of["size"]), []
    values = {**program, "num_stages": len(program["stages"])}
    fill(memory, struct_of, values, addresses=relocations)
    return bytes(memory), relocations


def record_all(kernels: ModuleType) -> None:
    """Few launches with all kinds of stages: norms, skips, several tiles a stage, odd sizes."""
    for precision in PRECISIONS:
        steps = make_train_call(
            PLANS["branches"](70, 5, 6), 3, 3, 19, 2, optimizer=AdamW(), gather=True
        )
        steps.slices.precision = precision
        kernels.train(steps)
    options = {"extras": True, "head": "linear", "flow": 1.0, "per_row": True, "sigma": 0.5}
    plan = PLANS["branches"](9, 5, 6)
    kernels.train(make_train_call(plan, 3, 2, 19, 1, optimizer=SGD(lr=0.1), **options))
    kernels.predict(make_predict_call(PLANS["added_input"](9, 5, 6), 2, 2, 19, 1))
    kernels.update(update_call())


def update_call() -> UpdateCall:
    generator = torch.Generator().manual_seed(3)
    optimizer, plan = SGD(lr=0.1, momentum=0.9), PLANS["branches"](9, 5, 6)
    slices = make_slices(plan, 3, 2, optimizer=optimizer, generator=generator)
    grads = {
        name: torch.randn(2, *shape, generator=generator)
        for name, shape in plan.parameters().items()
    }
    rates = torch.full((1, 2), 0.1, dtype=torch.float64)
    return UpdateCall(slices, grads, torch.tensor([True, False]), Rule(optimizer, rates, rates[0]))
