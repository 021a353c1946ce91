"""A copy of the CUDA kernel with faults planted in it, of which a program chooses one as it runs.

One compilation has them all: where a fault stands, the copy asks for `planted_fault` and otherwise
does what the kernel does.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import ROOT


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        file: of csrc/cuda.
        old: an expression, or whole statements with their last semicolon; once in the file.
        new: what stands there instead; may be empty for statements.
        around: text with `old` in it that is once in the file, where `old` itself is not.
    """

    file: str
    old: str
    new: str
    around: str = ""


def plant(folder: Path, faults: Sequence[Fault]) -> Path:
    """csrc with the faults in it, numbered from 1; a folder for -I."""
    shutil.copytree(ROOT / "csrc/cuda", folder / "cuda")
    shutil.copy(ROOT / "csrc/noprop_cuda.h", folder)
    places: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for number, fault in enumerate(faults, 1):
        place = (fault.file, fault.around or fault.old, fault.old)
        places.setdefault(place, []).append((number, fault.new))
    for (name, around, old), planted in places.items():
        path = folder / "cuda" / name
        text = path.read_text()
        counts = text.count(around), around.count(old)
        assert counts == (1, 1), f"{name}: to plant a fault, must be there once: {around}"
        path.write_text(text.replace(around, around.replace(old, choice(old, planted))))
    path = folder / "cuda/dev_target.h"
    path.write_text(path.read_text() + "\nextern int planted_fault;\n")
    return folder


def choice(old: str, planted: list[tuple[int, str]]) -> str:
    if old.endswith(";"):
        cases = "".join(f"if (planted_fault == {n}) {{ {new} }} else " for n, new in planted)
        return f"{cases} {{ {old} }}"
    cases = "".join(f"planted_fault == {n} ? ({new}) : " for n, new in planted)
    return f"({cases} ({old}))"
