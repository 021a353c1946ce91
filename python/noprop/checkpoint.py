"""A checkpoint: model.json and the tensors file that it names. The two always form one state.

The tensors are written first, under a name made of their checksum; renaming model.json then
replaces the old state by the new one atomically. Both files carry their checksums: a flipped bit is
an error, never a wrong number.
"""

import hashlib
import json
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import noprop_kernels as nk
from noprop_kernels.backends import dispatch
from noprop_kernels.backends.cpu import backend as cpu

from . import strict_json
from .errors import InputError, train_extra
from .files import LOCK, atomic_file, locked, sweep
from .modules.blocks import ModuleBlocks

RECORD = "model.json"
TENSORS = re.compile(r"tensors-[0-9a-f]{16}\.safetensors")  # unique to this folder
TEMPORARY = ("tensors-*.safetensors", RECORD)
# 1: of a DT, which older versions read; 2: of a CT or FM, of several replicas, of what is learned,
# of a radial head; 3: of some of the blocks, of units that have lives of their own, of networks of
# one's own
FORMATS = (1, 2, 3)
OF_DEVICE = {"device", "backend", "instruction_set", "compiler", "triton"}  # versions of one thing


def save(
    folder: Path, content: dict[str, Any], tensors: dict[str, Tensor], format: int = FORMATS[0]
) -> None:
    """Writes a state into `folder`; after a crash at any moment the old one or the new one loads.

    Args:
        folder: the run's folder, made where it is missing.
        content: what JSON can hold.
        tensors: any shapes and dtypes, on any device.
        format: the oldest of FORMATS that can hold the content.

    Raises:
        ImportError: safetensors is not installed.
        InputError: another process is writing there.
        OSError: the disk refuses; the old state is still there.
    """
    with train_extra():
        from safetensors.torch import save as to_bytes
    data = to_bytes({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    name = f"tensors-{digest[:16]}.safetensors"
    record = {"format": format, **content, "tensors": {"file": name, "sha256": digest}}
    text = strict_json.dumps(record | {"sha256": _digest(record)}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        with atomic_file(folder / name) as file:
            file.write(data)
        with atomic_file(folder / RECORD) as file:
            file.write(text.encode())
        sweep(folder, TEMPORARY)
        for stale in folder.glob("tensors-*.safetensors"):
            if stale.name != name:
                stale.unlink()


def is_unused(folder: Path) -> bool:
    """Whether a folder holds only the leftovers of a save that was killed."""
    return all(
        path.name == LOCK
        or TENSORS.fullmatch(path.name)
        or path.name.startswith((".tensors-", f".{RECORD}."))
        for path in folder.iterdir()
    )


def load(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads the content and tensors that `save` wrote into `folder`, also while a save is running.

    Raises:
        InputError: a file is missing, cut short or changed, or of another format.
        ImportError: safetensors is not installed.
    """
    with train_extra():
        from safetensors import SafetensorError
        from safetensors.torch import load as from_bytes
    record = load_content(folder)
    while not (path := folder / record["tensors"]["file"]).exists():
        newer = load_content(folder)  # a save has removed the file since the record was read
        if newer["tensors"] == record["tensors"]:
            break
        record = newer
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != record["tensors"]["sha256"]:
        raise InputError(f"{path} is corrupt: its sum is not the one in {RECORD}")
    try:
        return record, from_bytes(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is corrupt: it holds no tensors ({error})") from error


def load_content(folder: Path) -> dict[str, Any]:
    """The content alone, checked.

    Raises:
        InputError: model.json is missing, cut short or changed, or of another format.
    """
    path = folder / RECORD
    text = _read(path)
    try:
        record = json.loads(text)
        written = record.pop("sha256")
        right = written == _digest(record)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is corrupt: it is no record with a sum") from error
    if not right:
        raise InputError(f"{path} is corrupt: its sum does not fit")
    if record.get("format") not in FORMATS:
        known = f"{', '.join(map(str, FORMATS[:-1]))} and {FORMATS[-1]}"
        raise InputError(
            f"{path} has format {record.get('format')}, this version reads formats {known}"
        )
    tensors = record.get("tensors")
    name = tensors.get("file") if isinstance(tensors, dict) else None
    if not isinstance(name, str) or not TENSORS.fullmatch(name):
        raise InputError(f"{path} must name a file of tensors in {folder}, got {name!r}")
    return record


def versions(blocks: nk.DenoisingBlocks | ModuleBlocks) -> dict[str, str | None]:
    """The backend, its build and the versions: what a run's bits depend on beside its settings.

    Raises:
        BackendError: no backend runs the blocks.
    """
    device = blocks.device
    backend = "torch"
    if isinstance(blocks, nk.DenoisingBlocks):
        module = dispatch.choose(blocks.plan, device, blocks.precision, blocks.backend)
        backend = dispatch.name_of(module)
    built = cpu.describe() if backend == "cpu" else {}
    return {
        # a GPU's model without its index, which changes no bit
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "noprop": nk.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": backend,
        "instruction_set": built.get("isa_used"),
        "compiler": built.get("compiler"),
        "triton": dispatch.triton_version() if backend == "triton" else None,
    }


def differences(then: dict[str, str | None], now: dict[str, str | None]) -> list[str]:
    """A line for each version that has changed; one for the device with all that belongs to it."""
    then, now = ({"device": "cpu"} | one for one in (then, now))  # early runs did not record it
    names, lines = then.keys() | now.keys(), []
    if then["device"] != now["device"]:
        names -= OF_DEVICE
        places = (f"{one['device']} (backend {one.get('backend')})" for one in (then, now))
        lines.append("device was {}, is {}: the algorithm is the same".format(*places))
    return lines + [
        f"{name} was {then.get(name)}, is {now.get(name)}"
        for name in sorted(names)
        if then.get(name) != now.get(name)
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(strict_json.dumps(record, sort_keys=True).encode()).hexdigest()
