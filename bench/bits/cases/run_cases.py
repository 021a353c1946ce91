"""The cases whose bits are compared, run in the sources of one commit.

command.py copies this folder into the commit as `bits_cases`; a file in the commit's tests/ imports
`test_bits`, since their fixture `backend` builds and forces a backend. The cases use only public
names of the package, so that they run on commits before and after a move or a renaming. Each case
is a line of JSON in NOPROP_BITS_OUT: its name and the SHA-256 of every tensor that it gave.
NOPROP_BITS_CASE selects cases by a part of their names; NOPROP_BITS_ONLY names a file with the
cases to run, and then their tensors are kept too.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk

from .digests import digest, named
from .interpreter import product
from .selection import all_cases


def run(backend: str, out: Path, part_of_name: str, only: set[str] | None) -> None:
    """Runs the cases and writes their lines; `only` some of them, with their tensors."""
    kept = {}
    with (out / "lines.jsonl").open("w") as file:
        for name, case in all_cases(backend):
            if part_of_name not in name or (only is not None and name not in only):
                continue
            line: dict[str, Any] = {"case": name}
            tensors: dict[str, Tensor] = {}
            try:
                for part, value in case():
                    # now, since the next call may write into the state
                    tensors |= {key: tensor.clone() for key, tensor in named(part, value)}
                line["digests"] = {key: digest(tensor) for key, tensor in tensors.items()}
            except nk.BackendError as error:
                line["refused"] = str(error)
            except Exception as error:  # recorded for both commits; the other cases still run
                line["failed"] = f"{type(error).__name__}: {error}"
            file.write(json.dumps(line) + "\n")
            file.flush()
            if only is not None:
                kept[name] = tensors
    if only is not None:
        torch.save(kept, out / "tensors.pt")


def test_bits(backend: str, monkeypatch: Any) -> None:
    root = Path.cwd()
    assert Path(nk.__file__).is_relative_to(root), f"{nk.__file__} is not of {root}"
    if backend == "triton":
        from triton.runtime.interpreter import InterpreterBuilder

        monkeypatch.setattr(InterpreterBuilder, "create_dot", product)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)  # for torch.nn.Linear's own initialisation, which is then overwritten
    only = os.environ.get("NOPROP_BITS_ONLY")
    chosen = None if only is None else set(json.loads(Path(only).read_text()))
    out, part_of_name = os.environ["NOPROP_BITS_OUT"], os.environ["NOPROP_BITS_CASE"]
    run(backend, Path(out), part_of_name, chosen)
