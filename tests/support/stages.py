"""Single stages of the CUDA kernel on the host: its headers, compiled with the emulator of CUDA.

The library describes the structs of csrc/cuda/program.h, and values are written into memory by that
description, so that no second one can differ from the first.
"""

import ctypes
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMATS = {"float32": "f", "float64": "d", "int32": "i", "uint32": "I", "int64": "q"}
FORMATS |= {"pointer": "Q"}


def load(path: Path) -> ctypes.CDLL:
    """The library of tests/backends/cuda/programs/stage_library.cpp."""
    library = ctypes.CDLL(str(path))
    library.run_stage.restype = library.description.restype = ctypes.c_char_p
    return library


def buffer(value: Tensor | None, *, steps: bool = False, group: bool = False) -> dict[str, Any]:
    """A Buffer of a tensor (n, ...), (K, n, ...) with `steps`, (groups, ...) with `group`."""
    if value is None:
        return {"data": None}
    step = value.stride(0) if steps else 0
    return {
        "data": value,
        "stride_k": step,
        "stride_slice": value.stride(int(steps)),
        "by_group": int(group),
    }


def per_row(value: Tensor) -> dict[str, Any]:
    """A PerRow of (K, n, B) or (K, n), a PerSlice of (K, n); any may be expanded."""
    names = ("stride_k", "stride_slice", "stride_row")[: value.ndim]
    return {"data": value, **dict(zip(names, value.stride(), strict=True))}


def fill(
    memory: bytearray,
    described: dict[str, Any],
    value: Any,
    start: int = 0,
    addresses: list[tuple[int, int]] | None = None,
) -> None:
    """Writes what is described, of which `value` is a part, into memory of zeros.

    Args:
        described: a struct, by description.h, or a field.
        value: of a struct a dict by its fields, or all of them in order; None: nothing.
        start: where it begins.
        addresses: takes (place, address) of every pointer, in place of the memory.
    """
    if value is None:
        return
    if "count" in described:
        assert len(value) <= described["count"]
        entry = {name: fact for name, fact in described.items() if name != "count"}
        for i, each in enumerate(value):
            fill(memory, entry, each, start + i * described["size"], addresses)
    elif "fields" in described:
        fields = described["fields"]
        values = value if isinstance(value, dict) else dict(zip(fields, value, strict=True))
        if "kind" in fields:  # a stage, whose own fields are a union's
            own = described["kinds"][values["kind"]]
            left = {name: each for name, each in values.items() if name not in fields}
            fill(memory, own, left, start + own["at"], addresses)
            values = {name: each for name, each in values.items() if name in fields}
        for name, each in values.items():
            fill(memory, fields[name], each, start + fields[name]["at"], addresses)
    else:
        number = value.data_ptr() if isinstance(value, Tensor) else value
        number = described["names"].index(number) if "names" in described else number
        kind = described.get("type", "int32")
        if kind == "pointer" and addresses is not None:
            addresses += [(start, number)] if number else []
        else:
            struct.pack_into(FORMATS[kind], memory, start, number)


def run_stage(
    library: ctypes.CDLL,
    kind: str,
    fields: dict[str, Any],
    *,
    n: int,
    B: int,
    tiles: int,
    K: int = 1,
    seed: int = 0,
    groups: int = 2,
    blocks: int = 3,
    index: Sequence[int] | None = None,
    hyper: dict[str, Any] | None = None,
) -> None:
    """Runs a stage for all steps and slices.

    Args:
        kind: its name in Python.
        fields: of its struct; Buffers and the like by `buffer` and `per_row`, other tensors are
            pointers.
        tiles: of a slice.
        seed: of the emulator's schedule.
        index: the slice of the object of each slice; by default its own number.
    """
    slices = torch.tensor(range(n) if index is None else index, dtype=torch.int64)
    barriers = torch.zeros(groups, dtype=torch.int32)
    stage = {"kind": kind, "tiles": tiles, "barrier": 1, "once": -1, **fields}
    program = {"index": slices, "barriers": barriers, "n": n, "K": K, "B": B, "hyper": hyper}
    program |= {"groups": groups, "blocks": blocks, "num_stages": 1, "stages": [stage]}
    described = json.loads(library.description())
    memory = bytearray(described["size"])
    fill(memory, described, program)
    error = library.run_stage((ctypes.c_char * len(memory)).from_buffer(memory), seed)
    assert error is None, error.decode()
