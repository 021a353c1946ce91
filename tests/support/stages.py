"""Single stages of the CUDA kernel on the host: its headers, compiled with the emulator of CUDA.

The records of csrc/cuda/program.h are read from that file, so that no second description of them
can differ from the first; their sizes are compared with the compiler's.
"""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support import HOST, PROGRAMS, ROOT

HEADER = ROOT / "csrc/cuda/program.h"
SCALARS = {
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


def read_enums(text: str) -> dict[str, dict[str, int]]:
    """Names without their k, and values."""
    found = re.findall(r"enum class (\w+) : int32_t \{(.*?)\}", text, re.DOTALL)
    return {
        name: {value[1:]: i for i, value in enumerate(re.findall(r"\bk\w+", body))}
        for name, body in found
    }


def read_fields(body: str, types: dict[str, Any], sizes: dict[str, int]) -> list[tuple[str, Any]]:
    fields = []
    for declaration in body.split(";"):
        match = re.fullmatch(r"\s*(?:const )?(\w+)(.*)", declaration, re.DOTALL)
        if match is None:
            assert not declaration.strip(), f"program.h: not understood: {declaration}"
            continue
        for declarator in match[2].split(","):
            stars, name, size = re.fullmatch(r"\s*(\**)\s*(\w+)(?:\[(\w+)\])?", declarator).groups()  # type: ignore[union-attr]
            kind = ctypes.c_void_p if stars else types[match[1]]
            fields.append((name, kind * sizes[size] if size else kind))
    return fields


def read_program() -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """The structs of program.h by name, and its enums."""
    text = re.sub(r"//[^\n]*", "", HEADER.read_text())
    enums = read_enums(text)
    sizes = {name: int(value) for name, value in re.findall(r"\b(kMax\w+) = (\d+)", text)}
    types: dict[str, Any] = SCALARS | dict.fromkeys(enums, ctypes.c_int32)
    for name, body in re.findall(r"^struct (\w+) \{(.*?)^\};", text, re.DOTALL | re.MULTILINE):
        union = re.search(r"union \{(.*?)\};", body, re.DOTALL)
        made: dict[str, Any] = {}
        if union is not None:
            members = {"_fields_": read_fields(union[1], types, sizes)}
            types["Stages"] = type("Stages", (ctypes.Union,), members)
            body, made["_anonymous_"] = body.replace(union[0], "Stages stages;"), ("stages",)
        made["_fields_"] = read_fields(body, types, sizes)
        types[name] = type(name, (ctypes.Structure,), made)
    return types, enums


TYPES, ENUMS = read_program() if HEADER.exists() else ({}, {})


def compiler() -> str | None:
    return shutil.which("c++") or shutil.which("g++")


def gap() -> str | None:
    """Why the stages cannot be built here; None if they can."""
    if not HEADER.exists():
        return "the sources are not here"
    return None if compiler() else "no C++ compiler is on PATH"


def build(folder: Path, *flags: str) -> ctypes.CDLL:
    """The library of tests/backends/cuda/programs/stage_library.cpp."""
    sources = [str(path) for path in sorted(HOST.glob("host_*.cpp"))]
    library = folder / "stages.so"
    options = ["-std=c++20", "-O2", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra"]
    options.append("-Wno-unknown-pragmas")  # unroll is for nvcc
    options += [f"-I{ROOT / 'csrc'}", f"-I{HOST}", *flags, "-o", str(library)]
    sources.append(str(PROGRAMS / "stage_library.cpp"))
    subprocess.run([compiler() or "c++", *options, *sources], check=True)
    return load(library)


def load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.run_stage.restype = ctypes.c_char_p
    for i, name in enumerate(("Program", "Stage")):
        assert library.sizes(i) == ctypes.sizeof(TYPES[name]), f"program.h: {name} was misread"
    return library


def buffer(value: Tensor | None, *, steps: bool = False, group: bool = False) -> dict[str, Any]:
    """A Buffer of a tensor (n, ...), (K, n, ...) with `steps`, (groups, ...) with `group`."""
    if value is None:
        return {"data": None}
    step = value.stride(0) if steps else 0
    return {
        "data": value,
        "step": step,
        "slice": value.stride(int(steps)),
        "by_group": int(group),
    }


def number(value: Tensor) -> dict[str, Any]:
    """A Number or Integer of (K, n, B), a Real or an Integer of (K, n); any may be expanded."""
    names = ("step", "slice", "row")[: value.ndim]
    return {"data": value, **dict(zip(names, value.stride(), strict=True))}


def fill(record: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        assert hasattr(record, name), f"{type(record).__name__} has no {name}"
        if isinstance(value, dict):
            fill(getattr(record, name), value)
        elif isinstance(value, list):
            for entry, inner in zip(getattr(record, name), value, strict=False):
                fill(entry, inner)
        else:
            setattr(record, name, value.data_ptr() if isinstance(value, Tensor) else value)


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
        kind: a Kind without its k.
        fields: of its record; Buffers and the like by `buffer` and `number`, other tensors are
            pointers.
        tiles: of a slice.
        seed: of the emulator's schedule.
        index: the slice of the object of each slice; by default its own number.
    """
    slices = torch.tensor(range(n) if index is None else index, dtype=torch.int64)
    barriers = torch.zeros(groups, dtype=torch.int32)
    program = TYPES["Program"]()
    fill(program, {"index": slices, "barriers": barriers, "n": n, "K": K, "B": B})
    fill(program, {"groups": groups, "blocks": blocks, "num_stages": 1, "hyper": hyper or {}})
    stage = program.stages[0]
    fill(stage, {"kind": ENUMS["Kind"][kind], "tiles": tiles, "barrier": 1, "once": -1})
    member = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()  # NormGradient: norm_gradient
    fill(getattr(stage, member), fields)
    error = library.run_stage(ctypes.byref(program), seed)
    assert error is None, error.decode()
